"""Learners that read the support set as an input, and adapt without gradients.

Neural processes, memory networks, SNAIL and in-context transformers; with them, the exact and the untrained baselines
for sequences.
"""
