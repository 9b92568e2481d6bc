"""Learners of control tasks, which adapt from their own experience.

``base`` has the base classes, ``collect`` runs policies in environments. MAML's relatives adapt by policy gradients,
RL2 and VariBAD by a hidden state, PEARL by inference from a context.
"""
