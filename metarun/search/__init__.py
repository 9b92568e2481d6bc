"""Search for hyperparameters by validation.

``space`` reads what is searched and how, ``study`` keeps the trials (with Optuna).
"""
