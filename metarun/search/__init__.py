"""Search for hyperparameters by validation.

``space`` reads search spaces, ``study`` runs trials with Optuna.
"""
