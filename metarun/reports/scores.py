"""Aggregate scores of learners over several settings, as Agarwal et al. 2021 (arXiv:2108.13264) compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metarun.evaluation.statistics import (
    Array,
    interquartile_mean,
    percentiles,
    performance_profile,
    stratified_bootstrap,
)
from metarun.reports.comparison import Setting

THRESHOLDS = np.linspace(0, 1, 101)
"""Scores at which performance profiles are evaluated."""


@dataclass(frozen=True)
class Score:
    """Scores of one learner over settings and seeds, with intervals from a stratified bootstrap."""

    middle: float
    """Interquartile mean."""
    middle_interval: tuple[float, float]
    mean: float
    mean_interval: tuple[float, float]
    profile: Array
    """Share of runs above each threshold."""
    band: tuple[Array, Array]

    @classmethod
    def of(cls, per_task: Sequence[Array]) -> Score:
        """Compute the scores from one array of seeds' scores per task."""
        every, samples = np.concatenate(per_task), stratified_bootstrap(per_task)
        low, high = percentiles(interquartile_mean(samples))
        mean_low, mean_high = percentiles(samples.mean(-1))
        return cls(
            float(interquartile_mean(every)), (float(low), float(high)),
            float(every.mean()), (float(mean_low), float(mean_high)),
            performance_profile(every, THRESHOLDS), percentiles(performance_profile(samples, THRESHOLDS)),
        )  # fmt: skip


def aggregate(settings: Sequence[Setting]) -> dict[str, Score] | str:
    """Aggregate the scores of the learners that were run in every setting (Agarwal et al. 2021, arXiv:2108.13264).

    The score of a run is its result, scaled within its setting from the worst run (0) to the best (1).

    Returns:
        The score of each learner by its label, or a sentence that says why there are none.
    """
    found = {setting: {row.label: row for row in setting.rows} for setting in settings}
    every_label = dict.fromkeys(label for rows in found.values() for label in rows)
    labels = [label for label in every_label if all(label in rows for rows in found.values())]
    if len(found) < 2 or len(labels) < 2:
        return "Aggregate scores need at least two settings and two learners that were run in each of them."
    scores: dict[str, list[Array]] = {label: [] for label in labels}
    for setting, rows in found.items():
        sign = 1 if setting.higher_is_better else -1
        raw = {
            label: sign * np.array([run.summary["test"][setting.metric]["mean"] for run in rows[label].runs])
            for label in labels
        }
        every = np.concatenate(list(raw.values()))
        if not np.isfinite(every).all():
            return f"A result in {setting.title} is not finite."
        for label, values in raw.items():
            scores[label].append((values - every.min()) / (np.ptp(every) or 1.0))
    return {label: Score.of(per_task) for label, per_task in scores.items()}
