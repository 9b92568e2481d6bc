"""Records of a run: its directory, its metrics, Weights & Biases, and the progress display.

``rundir`` is the run directory, whose metrics.jsonl is the truth; ``wandb`` sends a copy; ``console`` shows progress.
"""
