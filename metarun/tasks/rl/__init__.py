"""Task families of control: a batch is an environment that holds many tasks at once.

``base`` says what such an environment does. Small worlds are tensor code on any device; ``gym`` wraps any environments
of Gymnasium, ``locomotion`` MuJoCo's robots.
"""
