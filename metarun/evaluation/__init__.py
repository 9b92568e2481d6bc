"""Evaluation of learners on held-out tasks: metrics per task, means with intervals, and metrics of generated images."""
