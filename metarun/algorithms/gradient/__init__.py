"""Learners that adapt by gradient steps: one learner put together from four exchangeable pieces.

What adapts, the update ``rules``, the inner ``losses``, and how the ``outer`` gradient is found. MAML and most of its
relatives are YAML files that combine them.
"""
