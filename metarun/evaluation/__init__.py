"""Evaluation on held-out tasks.

``evaluator`` adapts to each task and measures, ``statistics`` turns the measurements into means with confidence
intervals, and ``samples`` measures generated images.
"""
