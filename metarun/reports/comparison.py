"""Comparison of runs: rows of runs that differ only in their seed, grouped into settings that can be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np

from metarun.evaluation.statistics import (
    Mean,
    Paired,
    normalised_area,
    over_seeds,
    paired,
)
from metarun.reports.runs import ExcludedRun, Run, flatten, is_experiment_key

ALL_PAIRS = 4
"""Largest number of rows for which all pairs are shown. Settings with more rows compare each row with the best."""


@dataclass(frozen=True, eq=False)
class Row:
    """Runs of one learner that differ only in their seed."""

    runs: Sequence[Run]
    model: str
    """Name of the model. Empty if all rows of the setting have the same one."""
    keys: dict[str, str]
    """Values of the keys in which the rows of the setting differ."""
    label_keys: Sequence[str]
    """Keys that distinguish the row from others with the same algorithm and model."""

    @property
    def first(self) -> Run:
        """The run with the lowest seed."""
        return self.runs[0]

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""
        return self.first.choice("algorithm")

    @property
    def label(self) -> str:
        """Short name that is unique within the setting."""
        values = (f"{key.rsplit('.', 1)[-1]}={self.keys[key]}" for key in self.label_keys if key in self.keys)
        return " ".join([self.algorithm, *([self.model] if self.model else []), *values])

    def estimate(self, metric: str) -> Mean | None:
        """Return the test mean of a metric over seeds.

        The interval is over seeds, or over test episodes if there is a single seed. Returns ``None`` if a run did not
        measure the metric.
        """
        if not all(metric in run.summary["test"] for run in self.runs):
            return None
        found = [run.summary["test"][metric] for run in self.runs]
        if len(found) == 1:
            return Mean(found[0]["mean"], found[0]["ci95"], 1)
        return over_seeds([each["mean"] for each in found])

    def adaptation_curve(self) -> tuple[list[int], list[Mean]] | None:
        """Return adaptation steps (or episodes) and the test metric after each of them.

        Returns ``None`` for a learner that does not adapt in steps.
        """
        points = self.first.summary["adaptation"]
        at = [point.get("step", point.get("episode")) for point in points]
        if len(points) < 2 or any(len(run.summary["adaptation"]) != len(points) for run in self.runs):
            return None
        if len(self.runs) == 1:
            return at, [Mean(point["mean"], point["ci95"], 1) for point in points]
        columns = zip(*([p["mean"] for p in run.summary["adaptation"]] for run in self.runs), strict=True)
        return at, [over_seeds(column) for column in columns]

    def efficiency(self) -> Mean | None:
        """Return the normalised area under the adaptation curve over seeds, or ``None`` if there is no curve.

        The interval is unknown for a single seed.
        """
        if self.adaptation_curve() is None:
            return None
        at = [point.get("step", point.get("episode")) for point in self.first.summary["adaptation"]]
        return over_seeds([normalised_area(at, [p["mean"] for p in run.summary["adaptation"]]) for run in self.runs])

    def learning_curve(self, metric: str) -> tuple[list[int], list[float], list[Mean]] | None:
        """Return iterations, minutes since the start and the validation metric where all seeds were validated."""
        shared = sorted(set.intersection(*(set(run.validated) for run in self.runs)))
        name = f"val/{metric}"
        if not shared or not all(name in run.validated[i] for run in self.runs for i in shared):
            return None
        values = [[run.validated[i][name] for run in self.runs] for i in shared]
        if len(self.runs) == 1:
            means = [Mean(v[0], self.first.validated[i].get(f"{name}_ci95", 0), 1) for i, v in zip(shared, values)]  # noqa: B905
        else:
            means = [over_seeds(v) for v in values]
        return shared, [float(np.mean([minutes(run, i) for run in self.runs])) for i in shared], means

    @property
    def has_validation_times(self) -> bool:
        """True if all runs stored the times of their validations."""
        return all(run.summary.get("validated") for run in self.runs)


def minutes(run: Run, iteration: int) -> float:
    """Return the minutes from the start of a run to a validation.

    If the run did not store the time, it is interpolated in proportion to iterations.
    """
    for point in run.summary.get("validated") or ():
        if point["iteration"] == iteration:
            return float(point["seconds"]) / 60
    return float(run.summary["wall_s"]) * iteration / max(1, run.summary["iterations"]) / 60


@dataclass(frozen=True)
class Pair:
    """Two rows of a setting and their paired difference."""

    a: Row
    b: Row
    difference: Paired | None
    """Difference a - b, or ``None`` if results on the same episodes are missing."""
    why: str = ""
    """Reason why there is no difference."""


@dataclass(frozen=True, eq=False)
class Setting:
    """Rows that were evaluated on the same test tasks under the same protocol."""

    task: str
    task_protocol: dict[str, Any]
    """Protocol entries that describe the test tasks."""
    title_keys: dict[str, str]
    """Protocol entries that distinguish it from other settings of the same task."""
    columns: Sequence[str]
    """Keys in which the rows differ."""
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """Name of the task with the protocol entries that distinguish the setting."""
        return " ".join([self.task, *(f"{key}={value}" for key, value in self.title_keys.items())])

    @property
    def runs(self) -> list[Run]:
        """All runs of the setting."""
        return [run for row in self.rows for run in row.runs]

    @property
    def metric(self) -> str:
        """Metric of the task."""
        return self.rows[0].first.metric

    @property
    def higher_is_better(self) -> bool:
        """True if a higher value of the metric is better."""
        return self.rows[0].first.higher_is_better

    @cached_property
    def metrics(self) -> list[str]:
        """The task's metric, for its own and for further episode shapes (``accuracy_20way``)."""
        names = dict.fromkeys(name for run in self.runs for name in run.summary["test"])
        return [name for name in names if name == self.metric or name.startswith(f"{self.metric}_")]

    @property
    def all_metrics(self) -> list[str]:
        """All test metrics of all runs."""
        return list(dict.fromkeys(name for run in self.runs for name in run.summary["test"]))

    def best(self, metric: str) -> Row | None:
        """Return the row with the best mean; ``None`` if fewer than two rows have a finite one."""
        known = {row: e.mean for row in self.rows if (e := row.estimate(metric)) is not None and isfinite(e.mean)}
        if len(known) < 2 or not metric.startswith(self.metric):
            return None
        return (max if self.higher_is_better else min)(known, key=lambda row: known[row])

    def standing(self, metric: str) -> dict[Row, str]:
        """Mark the ``best`` row and those ``within`` its interval; empty if that interval is unknown."""
        best = self.best(metric)
        interval = best.estimate(metric) if best else None
        if best is None or interval is None or not isfinite(interval.half_width):
            return {}
        found = {row: row.estimate(metric) for row in self.rows}
        within = {row: "within" for row, e in found.items() if e and interval.low <= e.mean <= interval.high}
        return {**within, best: "best"}

    def pairs(self) -> list[Pair]:
        """Return paired differences of the metric: all pairs, or each row against the best (see :data:`ALL_PAIRS`)."""
        chosen = list(combinations(self.rows, 2))
        if len(self.rows) > ALL_PAIRS:
            best = self.best(self.metric)
            chosen = [(best, row) for row in self.rows if best and row is not best]
        return [compare_rows(a, b, self.metric) for a, b in chosen]

    def learner_differences(self) -> list[str]:
        """Describe the learners' protocol entries, such as normalisation or test steps, in which the rows differ."""
        said = []
        names = dict.fromkeys(name for run in self.runs for name in run.summary["protocol"])
        for name in names:
            if name in self.task_protocol or (name not in ALWAYS_REPORTED and self._is_algorithm_key(name)):
                continue
            values: dict[str, list[str]] = {}
            for row in self.rows:
                if name in row.first.summary["protocol"]:
                    values.setdefault(str(row.first.summary["protocol"][name]), []).append(row.label)
            if len(values) > 1:
                said.append(f"{name}: " + "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items()))
        return said

    def _is_algorithm_key(self, name: str) -> bool:
        return any(name in key.split(".")[1:] for run in self.runs for key in run.keys if key.startswith("algorithm."))

    def versions(self) -> list[str]:
        """Return the short commits of the code that made the runs."""
        found: dict[str, None] = {}
        for run in self.runs:
            git = run.meta.get("git") or {}
            found[str(git.get("commit", "unknown"))[:7] + (" and changes" if git.get("dirty") else "")] = None
        return list(found)


ALWAYS_REPORTED = ("norm", "selection", "test_steps")
"""Protocol entries of learners that decide whether their numbers are comparable."""


def compare_rows(a: Row, b: Row, metric: str) -> Pair:
    """Return the paired difference of two rows on the test episodes that runs with the same seed share."""
    by_seed = {run.seed: run for run in b.runs}
    couples = [(run, by_seed[run.seed]) for run in a.runs if run.seed in by_seed]
    if not couples:
        return Pair(a, b, None, "no seed in common, so no test episode")
    if any(not run.episodes for couple in couples for run in couple):
        return Pair(a, b, None, "no test.npz: made before runs kept each episode's result")
    if any(task_keys(x) != task_keys(y) for x, y in couples):
        return Pair(a, b, None, "their tasks are configured differently")
    samples = [(x.episodes[metric][:, -1], y.episodes[metric][:, -1]) for x, y in couples]
    if any(len(x) != len(y) for x, y in samples):
        return Pair(a, b, None, "different numbers of test episodes")
    together = couples[0][0].summary["test"][metric].get("together", 1)
    return Pair(a, b, paired([x for x, _ in samples], [y for _, y in samples], together))


def task_keys(run: Run) -> dict[str, Any]:
    """Return the keys that, with the seed, determine the test episodes of a run."""
    return {k: v for k, v in run.keys.items() if k.startswith("task.") and is_experiment_key(k)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs grouped into settings, and what could not be read."""

    settings: Sequence[Setting]
    left_out: Sequence[ExcludedRun]


def compare(runs: Sequence[Run], left_out: Sequence[ExcludedRun]) -> Comparison:
    """Group runs into settings with the same test tasks, and within these into rows that differ only in the seed."""
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(run.choice("task") + canonical(run.task_protocol), []).append(run)
    made = []
    for members in settings.values():
        rows: dict[str, list[Run]] = {}
        for run in members:
            key = [(k, v) for k, v in sorted(run.keys.items()) if is_experiment_key(k)]
            rows.setdefault(canonical([key, run.summary["protocol"], run.choice("algorithm")]), []).append(run)
        task, task_protocol = members[0].choice("task"), members[0].task_protocol
        columns, label_keys = varying_keys(members, ()), varying_keys(members, ("algorithm", "model"))
        models = len({run.choice("model") for run in members}) > 1
        protocols = [dict(flatten(run.task_protocol)) for run in runs if run.choice("task") == task]
        made.append(
            Setting(
                task,
                task_protocol,
                {k: format_value(v) for k, v in flatten(task_protocol) if differ(other.get(k) for other in protocols)},
                columns,
                [
                    Row(
                        sorted(each, key=lambda run: run.seed),
                        each[0].choice("model") if models else "",
                        {key: format_value(each[0].keys[key]) for key in columns if key in each[0].keys},
                        label_keys,
                    )
                    for each in rows.values()
                ],
            )
        )
    return Comparison(made, left_out)


def varying_keys(runs: Sequence[Run], within: Sequence[str]) -> list[str]:
    """Return the keys in which runs of one setting differ.

    A key of the algorithm or the model counts only if it differs between runs of the same algorithm or model, since
    other differences follow from that choice.

    Args:
        runs: Runs of the setting.
        within: Groups such as ``algorithm``. Only runs that made the same choice in each of them are compared.
    """
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.keys):
        if not is_experiment_key(key) or key.endswith("_target_"):
            continue
        groups: dict[tuple[str, ...], list[Any]] = {}
        own = {"algorithm": ("algorithm", "model"), "model": ("model",)}.get(key.split(".")[0], ())
        for run in runs:
            if key in run.keys:
                groups.setdefault(tuple(run.choice(group) for group in {*within, *own}), []).append(run.keys[key])
        if any(differ(values) for values in groups.values()):
            found.append(key)
    return found


def differ(values: Iterable[Any]) -> bool:
    """Return whether not all values are equal."""
    return len({canonical(value) for value in values}) > 1


def canonical(value: Any) -> str:
    """Return JSON with sorted keys, which is the same for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def format_value(value: Any) -> str:
    """Format a value of the configuration as the user would type it."""
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
