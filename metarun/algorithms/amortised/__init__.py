"""Amortised learners, which read the support set as an input and adapt without gradients.

Neural processes, memory networks, SNAIL and in-context transformers, with the exact and untrained baselines for
sequences.
"""
