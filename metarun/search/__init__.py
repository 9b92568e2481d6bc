"""Hyperparameter search with Optuna: search spaces, and studies that several processes can work on."""
