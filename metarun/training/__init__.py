"""The outer loop of a run.

``loop`` draws meta-batches and takes outer steps, ``experiment`` is a run from its start to its summary, ``checkpoint``
saves and restores it exactly, and ``device`` chooses where it computes.
"""
