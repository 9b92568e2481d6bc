"""Learners that adapt by gradient steps: one learner put together from four exchangeable pieces.

``pieces`` states what each piece must do: what adapts, the update rule, the inner loss, and how the outer gradient is
found. ``inner_loop`` takes the steps. MAML and most of its relatives are YAML files that combine the pieces.
"""
