"""A comparison as plain values, for JSON."""

from __future__ import annotations

from typing import Any

from metarun.evaluation.statistics import Mean
from metarun.reports.comparison import Comparison, Pair, Row, Setting


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return the settings with the results of their rows and the paired differences, and the runs left out."""
    return {
        "settings": [setting_as_dict(setting) for setting in comparison.settings],
        "left_out": [
            {"run": str(each.path), "state": each.state, "reason": each.reason} for each in comparison.left_out
        ],
    }


def setting_as_dict(setting: Setting) -> dict[str, Any]:
    """Return one setting."""
    standing = {metric: setting.standing(metric) for metric in setting.all_metrics}
    return {
        "task": setting.task,
        "title": setting.title,
        "protocol": setting.task_protocol,
        "metric": setting.metric,
        "higher_is_better": setting.higher_is_better,
        "rows": [row_as_dict(row, standing) for row in setting.rows],
        "pairs": [pair_as_dict(pair) for pair in setting.pairs()],
    }


def row_as_dict(row: Row, standing: dict[str, dict[Row, str]]) -> dict[str, Any]:
    """Return one row: its learner, its runs and its test results, each with its standing in the setting."""
    return {
        "label": row.label,
        "algorithm": row.algorithm,
        "model": row.first.choice("model"),
        "keys": row.keys,
        "seeds": [run.seed for run in row.runs],
        "runs": [str(run.path) for run in row.runs],
        "test": {
            metric: {**mean_as_dict(estimate), "standing": standing[metric].get(row) or None}
            for metric in standing
            if (estimate := row.estimate(metric)) is not None
        },
    }


def pair_as_dict(pair: Pair) -> dict[str, Any]:
    """Return one paired difference a - b, or why there is none."""
    names = {"a": pair.a.label, "b": pair.b.label}
    if pair.difference is None:
        return {**names, "why": pair.why}
    return {
        **names,
        "over_episodes": mean_as_dict(pair.difference.episodes),
        "over_seeds": mean_as_dict(pair.difference.seeds),
    }


def mean_as_dict(estimate: Mean) -> dict[str, Any]:
    """Return a mean with its 95 % interval."""
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n}
