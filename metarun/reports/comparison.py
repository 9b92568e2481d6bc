"""What a set of runs says: rows of runs that differ in their seed alone, in settings that may be compared."""

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
    area,
    over_seeds,
    paired,
)
from metarun.reports.runs import LeftOut, Run, flat, matters

ALL_PAIRS = 4
"""Rows of a setting up to which every pair is shown; of more, each row against the best."""


@dataclass(frozen=True, eq=False)
class Row:
    """Runs that differ in their seed alone."""

    runs: Sequence[Run]
    model: str
    """Empty where all rows have the same."""
    keys: dict[str, str]
    """Values of the keys that rows of its setting differ in."""
    telling: Sequence[str]
    """Those that tell it from other rows of the same algorithm and model."""

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def algorithm(self) -> str:
        return self.first.choice("algorithm")

    @property
    def label(self) -> str:
        """Short and, within its setting, its own."""
        values = (f"{key.rsplit('.', 1)[-1]}={self.keys[key]}" for key in self.telling if key in self.keys)
        return " ".join([self.algorithm, *([self.model] if self.model else []), *values])

    def estimate(self, metric: str) -> Mean | None:
        """Mean over seeds; of a single seed its own, with the interval over episodes. ``None`` if not measured."""
        if not all(metric in run.summary["test"] for run in self.runs):
            return None
        found = [run.summary["test"][metric] for run in self.runs]
        if len(found) == 1:
            return Mean(found[0]["mean"], found[0]["ci95"], 1)
        return over_seeds([each["mean"] for each in found])

    def adaptation(self) -> tuple[list[int], list[Mean]] | None:
        """The test metric along adaptation: where, and what; ``None`` for a learner that adapts at once."""
        points = self.first.summary["adaptation"]
        at = [point.get("step", point.get("episode")) for point in points]
        if len(points) < 2 or any(len(run.summary["adaptation"]) != len(points) for run in self.runs):
            return None
        if len(self.runs) == 1:
            return at, [Mean(point["mean"], point["ci95"], 1) for point in points]
        columns = zip(*([p["mean"] for p in run.summary["adaptation"]] for run in self.runs), strict=True)
        return at, [over_seeds(column) for column in columns]

    def efficiency(self) -> Mean | None:
        """Mean height of the adaptation curve, over seeds; of a single seed without an interval."""
        if self.adaptation() is None:
            return None
        at = [point.get("step", point.get("episode")) for point in self.first.summary["adaptation"]]
        return over_seeds([area(at, [p["mean"] for p in run.summary["adaptation"]]) for run in self.runs])

    def learning(self, metric: str) -> tuple[list[int], list[float], list[Mean]] | None:
        """Validation where every seed was validated: iterations, minutes until then, and the metric."""
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
    def timed(self) -> bool:
        """Whether the runs noted when they validated."""
        return all(run.summary.get("validated") for run in self.runs)


def minutes(run: Run, iteration: int) -> float:
    """Since the run's start; taken as proportional to iterations where the run did not note it."""
    for point in run.summary.get("validated") or ():
        if point["iteration"] == iteration:
            return float(point["seconds"]) / 60
    return float(run.summary["wall_s"]) * iteration / max(1, run.summary["iterations"]) / 60


@dataclass(frozen=True)
class Pair:
    a: Row
    b: Row
    difference: Paired | None
    """a - b; ``None`` where the same episodes' results are not there."""
    why: str = ""


@dataclass(frozen=True, eq=False)
class Setting:
    """Rows judged on the same test tasks under the same protocol."""

    task: str
    judged_on: dict[str, Any]
    told_apart: dict[str, str]
    """What of ``judged_on`` tells it from the other settings of its task."""
    columns: Sequence[str]
    """Keys that its rows differ in."""
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        return " ".join([self.task, *(f"{key}={value}" for key, value in self.told_apart.items())])

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @property
    def metric(self) -> str:
        return self.rows[0].first.metric

    @property
    def higher_is_better(self) -> bool:
        return self.rows[0].first.higher_is_better

    @cached_property
    def metrics(self) -> list[str]:
        """The task's metric and the same under the task's further shapes (``accuracy_20way``)."""
        names = dict.fromkeys(name for run in self.runs for name in run.summary["test"])
        return [name for name in names if name == self.metric or name.startswith(f"{self.metric}_")]

    @property
    def all_metrics(self) -> list[str]:
        return list(dict.fromkeys(name for run in self.runs for name in run.summary["test"]))

    def standing(self, metric: str) -> dict[Row, str]:
        """``best`` and, of the others, ``within`` its interval; nothing where there is nothing to compare."""
        known = {row: e for row in self.rows if (e := row.estimate(metric)) is not None and isfinite(e.mean)}
        if len(known) < 2 or not metric.startswith(self.metric):
            return {}
        pick = max if self.higher_is_better else min
        best = pick(known, key=lambda row: known[row].mean)
        of = known[best]
        within = {row: "within" for row, e in known.items() if of.low <= e.mean <= of.high}
        return {**within, best: "best"}

    def pairs(self) -> list[Pair]:
        """Paired differences of the metric: all, or against the best where there are many rows."""
        chosen = list(combinations(self.rows, 2))
        if len(self.rows) > ALL_PAIRS:
            best = [row for row, how in self.standing(self.metric).items() if how == "best"]
            chosen = [(best[0], row) for row in self.rows if best and row is not best[0]]
        return [compared(a, b, self.metric) for a, b in chosen]

    def learner_differences(self) -> list[str]:
        """What the learners bring to the protocol where rows differ in it: normalisation, selection, steps at test."""
        said = []
        names = dict.fromkeys(name for run in self.runs for name in run.summary["protocol"])
        for name in names:
            if name in self.judged_on or (name not in FOREMOST and self._is_own_key(name)):
                continue
            values: dict[str, list[str]] = {}
            for row in self.rows:
                if name in row.first.summary["protocol"]:
                    values.setdefault(str(row.first.summary["protocol"][name]), []).append(row.label)
            if len(values) > 1:
                said.append(f"{name}: " + "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items()))
        return said

    def _is_own_key(self, name: str) -> bool:
        return any(name in key.split(".")[1:] for run in self.runs for key in run.keys if key.startswith("algorithm."))

    def versions(self) -> list[str]:
        """The code that the runs were made by."""
        found: dict[str, None] = {}
        for run in self.runs:
            git = run.meta.get("git") or {}
            found[str(git.get("commit", "unknown"))[:7] + (" and changes" if git.get("dirty") else "")] = None
        return list(found)


FOREMOST = ("norm", "selection", "test_steps")
"""Parts of the protocol that learners bring, and that decide how their numbers compare."""


def compared(a: Row, b: Row, metric: str) -> Pair:
    """On the test episodes that runs of one seed share."""
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
    return Pair(a, b, paired([x for x, _ in samples], [y for _, y in samples]))


def task_keys(run: Run) -> dict[str, Any]:
    """What its test episodes are made from, beside the seed."""
    return {k: v for k, v in run.keys.items() if k.startswith("task.") and matters(k)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs grouped into settings, and what could not be read."""

    settings: Sequence[Setting]
    left_out: Sequence[LeftOut]


def compare(runs: Sequence[Run], left_out: Sequence[LeftOut]) -> Comparison:
    """Group runs into rows and settings."""
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(run.choice("task") + canonical(run.judged_on), []).append(run)
    made = []
    for members in settings.values():
        rows: dict[str, list[Run]] = {}
        for run in members:
            key = [(k, v) for k, v in sorted(run.keys.items()) if matters(k)]
            rows.setdefault(canonical([key, run.summary["protocol"], run.choice("algorithm")]), []).append(run)
        task, judged_on = members[0].choice("task"), members[0].judged_on
        columns, telling = differing(members, ()), differing(members, ("algorithm", "model"))
        models = len({run.choice("model") for run in members}) > 1
        told = [dict(flat(run.judged_on)) for run in runs if run.choice("task") == task]
        made.append(
            Setting(
                task,
                judged_on,
                {k: shown(v) for k, v in flat(judged_on) if differs(other.get(k) for other in told)},
                columns,
                [
                    Row(
                        sorted(each, key=lambda run: run.seed),
                        each[0].choice("model") if models else "",
                        {key: shown(each[0].keys[key]) for key in columns if key in each[0].keys},
                        telling,
                    )
                    for each in rows.values()
                ],
            )
        )
    return Comparison(made, left_out)


def differing(runs: Sequence[Run], within: Sequence[str]) -> list[str]:
    """Keys in which runs of one setting differ, or those of one choice of every group ``within`` do.

    Beside those that follow from the choice: of an algorithm's or a model's own keys, only differences between runs of
    one algorithm or model count.
    """
    found = []
    for key in dict.fromkeys(key for run in runs for key in run.keys):
        if not matters(key) or key.endswith("_target_"):
            continue
        groups: dict[tuple[str, ...], list[Any]] = {}
        own = {"algorithm": ("algorithm", "model"), "model": ("model",)}.get(key.split(".")[0], ())
        for run in runs:
            if key in run.keys:
                groups.setdefault(tuple(run.choice(group) for group in {*within, *own}), []).append(run.keys[key])
        if any(differs(values) for values in groups.values()):
            found.append(key)
    return found


def differs(values: Iterable[Any]) -> bool:
    return len({canonical(value) for value in values}) > 1


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
