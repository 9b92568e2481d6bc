"""Whole runs: carry one out, rebuild a stored one, evaluate its learner, adapt it to the user's own data.

The command line (``metarun.cli``) and the Python API (``metarun.api``) both call these functions.
"""
