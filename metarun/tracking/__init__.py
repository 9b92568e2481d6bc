"""What a run records: its directory, its metrics, Weights & Biases, and the line on the terminal.

``rundir`` is the run directory, whose metrics.jsonl is the truth; ``wandb`` sends a copy; ``console`` shows progress.
"""
