"""The temperature of a learner that no validation has calibrated, fitted to its own support set."""

from __future__ import annotations

import torch

from metarun.adapted.learner import AdaptedLearner
from metarun.evaluation.calibration import best_temperature


def fit_temperature(learner: AdaptedLearner) -> None:
    """Set the temperature to the one of the smallest leave-one-out loss, within 1/128..1024.

    The targets are smoothed: with n examples the true class has the probability (n + 1) / (n + 2), as by Platt (1999,
    section 2.2), so that few examples without an error do not make the learner certain. Nothing changes if no example
    can be left out.
    """
    rows, answer = learner.left_out
    good = torch.isfinite(answer).flatten(1).all(1) if len(rows) else torch.zeros(0, dtype=torch.bool)
    if not learner.classes or not good.any():
        return
    logits, y = answer[good][:, : len(learner.classes)], learner.support.y[0][rows][good]
    smoothing = len(learner.classes) / (len(learner.classes) - 1) / (len(y) + 2)
    learner.temperature = best_temperature(logits, y, torch.logspace(-7, 10, 171, base=2).tolist(), smoothing)
