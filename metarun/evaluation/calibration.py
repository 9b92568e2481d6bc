"""Calibration of predicted probabilities: expected calibration error, likelihood, Brier score, and a temperature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from metarun.evaluation.statistics import standard_error

BINS = 15
"""Number of equal intervals of the confidence (Guo et al. 2017, arXiv:1706.04599)."""
COLUMNS = 3 * BINS + 2
"""Numbers of a task: queries, confidence and right predictions in each bin, and the sums of both scores."""
SAMPLES = 1000
"""Number of bootstrap samples of tasks."""
NEVER = -1e9
"""Logit of a class that a task does not have; its probability is 0 at every temperature."""
SHARPEST, FLATTEST = 0.01, 100.0
"""Limits of a fitted temperature."""


def best_temperature(logits: Tensor, y: Tensor, temperatures: Sequence[float], smoothing: float = 0.0) -> float:
    """Return the temperature of the smallest mean cross-entropy.

    Args:
        logits: Logits [N, C].
        y: Class of each example [N].
        temperatures: Numbers to choose from; of equals, the first.
        smoothing: Part of the target's probability that is spread over all classes.
    """
    losses = [float(F.cross_entropy(logits / each, y, label_smoothing=smoothing)) for each in temperatures]
    return temperatures[min(range(len(losses)), key=losses.__getitem__)]


def calibration_sums(logits: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """Return sums over the queries of each task, from which :class:`Calibration` is computed, [T, COLUMNS].

    Args:
        logits: Predictions [T, N, way].
        y: Labels [T, N].
        temperature: Number by which logits are divided.
    """
    logs = (logits / temperature).log_softmax(-1)
    p = logs.exp()
    confidence, predicted = p.max(-1)
    right = (predicted == y).to(p.dtype)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    empty = p.new_zeros(len(y), BINS)
    parts = [empty.scatter_add(1, bins, values) for values in (torch.ones_like(right), confidence, right)]
    of_label = y[..., None]
    nll = -logs.gather(-1, of_label)[..., 0]
    brier = p.square().sum(-1) - 2 * p.gather(-1, of_label)[..., 0] + 1
    return torch.cat([*parts, nll.sum(1, keepdim=True), brier.sum(1, keepdim=True)], 1)


class TemperatureSums:
    """Sums of test tasks at several temperatures, added batch by batch.

    Args:
        temperatures: Numbers by which logits are divided.
    """

    def __init__(self, temperatures: Iterable[float]) -> None:
        self._parts: dict[float, list[Tensor]] = {temperature: [] for temperature in temperatures}

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Add tasks: logits [T, N, way] and labels [T, N]."""
        for temperature, parts in self._parts.items():
            parts.append(calibration_sums(logits.float(), y, temperature).cpu().double())

    def tables(self) -> dict[float, NDArray[np.float64]]:
        """Return the sums of all tasks by temperature, [n, COLUMNS]; nothing without tasks."""
        return {temperature: torch.cat(parts).numpy() for temperature, parts in self._parts.items() if parts}


class Logits:
    """The predictions for validation tasks, from which a temperature is fitted."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Add tasks: logits [T, N, way] and labels [T, N]."""
        self._parts.append((logits.float().flatten(0, 1).cpu(), y.flatten().cpu()))

    def temperature(self) -> float | None:
        """Return the fitted temperature; ``None`` without predictions, or if one is not finite."""
        if not self._parts:
            return None
        way = max(logits.shape[-1] for logits, _ in self._parts)
        logits = torch.cat([F.pad(part, (0, way - part.shape[-1]), value=NEVER) for part, _ in self._parts])
        return fitted_temperature(logits, torch.cat([y for _, y in self._parts]))


@dataclass(frozen=True)
class Calibration:
    """Calibration of a learner on tasks.

    Attributes:
        sums: Sums of each task, as of :func:`calibration_sums`, [n, COLUMNS].
        together: Number of consecutive tasks that depend on each other.
    """

    sums: NDArray[np.float64]
    together: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Return the measures as plain values.

        The expected calibration error is that of all queries; its interval is 1.96 standard deviations over bootstrap
        samples of tasks. The other intervals are those of a mean over tasks.

        Returns:
            ``ece``, ``nll`` and ``brier`` with ``mean``, ``ci95`` and ``n``, and ``reliability``: for each bin that
            has queries its share of them, mean confidence and accuracy.
        """
        n, queries = len(self.sums), self.sums[:, :BINS].sum(1)
        groups = self.sums.reshape(-1, self.together, COLUMNS).sum(1) if n % self.together == 0 else self.sums
        drawn = np.random.Generator(np.random.Philox(0)).multinomial(
            len(groups), np.full(len(groups), 1 / len(groups)), SAMPLES
        )
        spread = 1.96 * float(expected_error(drawn @ groups).std()) if len(groups) > 1 else float("nan")
        ece = {"mean": float(expected_error(self.sums.sum(0))), "ci95": spread, "n": n}
        scores = {
            name: {"mean": float(values.mean()), "ci95": 1.96 * standard_error(values, self.together), "n": n}
            for name, values in (("nll", self.sums[:, -2] / queries), ("brier", self.sums[:, -1] / queries))
        }
        count, confidence, right = self.sums[:, : 3 * BINS].sum(0).reshape(3, BINS)
        table = [
            [float(c / count.sum()), float(s / c), float(r / c)]
            for c, s, r in zip(count, confidence, right, strict=True)
            if c
        ]
        return {"ece": ece, **scores, "reliability": table}


def expected_error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected calibration error of summed tasks [..., COLUMNS], [...]."""
    bins = sums[..., : 3 * BINS].reshape(*sums.shape[:-1], 3, BINS)
    error: NDArray[np.float64] = np.abs(bins[..., 1, :] - bins[..., 2, :]).sum(-1) / bins[..., 0, :].sum(-1)
    return error


def fitted_temperature(logits: Tensor, y: Tensor) -> float | None:
    """Return the temperature that minimises the negative log-likelihood, or ``None`` if a logit is not finite.

    Args:
        logits: Predictions [N, way].
        y: Labels [N].
    """
    z, y = logits.double(), y.long()
    if not bool(z.isfinite().all()):
        return None
    of_label = z.gather(-1, y[:, None])[:, 0]
    low, high = log(SHARPEST), log(FLATTEST)
    for _ in range(40):  # the likelihood is concave in 1 / temperature: bisection of its slope
        middle = (low + high) / 2
        slope = float((((z / exp(middle)).softmax(-1) * z).sum(-1) - of_label).mean())
        low, high = (middle, high) if slope > 0 else (low, middle)
    return exp((low + high) / 2)
