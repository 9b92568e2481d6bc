"""Records of a run: its directory, its metrics, trackers, and the progress display.

``rundir`` is the run directory, whose metrics.jsonl is the truth; ``sinks`` send copies; ``console`` shows progress.
"""
