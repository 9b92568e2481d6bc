"""Plots of a comparison: learning curves, adaptation curves, results by episode shape and performance profiles."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import inf, isfinite
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metarun import style
from metarun.evaluation.statistics import Mean, over_seeds
from metarun.reports.comparison import Comparison, Row, Setting, format_value
from metarun.reports.runs import Run, flatten
from metarun.reports.scores import THRESHOLDS, aggregate

Looks = dict[str, dict[str, Any]]
"""Colour, marker and line of each learner, which are the same in all plots."""

MAX_BAND_HEIGHT = 2.5
"""Largest height of an interval band that is drawn, as a multiple of the range of all curves."""

MAX_CURVES = 20
"""Largest number of rows of a setting that are drawn; of more, the best. More curves could not be told apart."""


def figures(comparison: Comparison) -> Iterator[tuple[str, str, Figure]]:
    """Yield file name without suffix, caption and figure of each plot for which there is data."""
    labels = dict.fromkeys(row.label for setting in comparison.settings for row in setting.rows)
    looks = {label: style.look(i) for i, label in enumerate(labels)}
    for i, setting in enumerate(comparison.settings, 1):
        for name, caption, made in (
            ("learning", learning_caption(setting), learning(setting, looks)),
            (
                "adaptation",
                f"{setting.title}: test tasks along adaptation{_left_out(setting)}",
                adaptation(setting, looks),
            ),
            (
                "adaptation_regret",
                f"{setting.title}: regret through the trials of test tasks{_left_out(setting)}",
                regret(setting, looks),
            ),
            *(
                (f"by_{unit}", f"{setting.title}: by {unit}{_left_out(setting)}", figure)
                for unit, figure in by_shape(setting, looks)
            ),
        ):
            if made is not None:
                protocol = ", ".join(f"{key}={format_value(value)}" for key, value in flatten(setting.task_protocol))
                style.entitle(made, caption, protocol)
                yield f"{name}_{i}", caption, made
    profiles = performance(comparison, looks)
    if profiles is not None:
        caption = "performance profiles: share of runs that score above a threshold"
        style.entitle(profiles, caption, "settings: " + ", ".join(setting.title for setting in comparison.settings))
        yield "profiles", caption, profiles


def shown(setting: Setting) -> Sequence[Row]:
    """Return the rows of a setting that are drawn: all, or the :data:`MAX_CURVES` best ones."""
    if len(setting.rows) <= MAX_CURVES:
        return setting.rows
    sign = 1 if setting.higher_is_better else -1

    def merit(row: Row) -> float:
        found = row.estimate(setting.metric)
        return sign * found.mean if found is not None and isfinite(found.mean) else -inf

    best = sorted(setting.rows, key=merit, reverse=True)[:MAX_CURVES]
    return [row for row in setting.rows if row in best]


def _left_out(setting: Setting) -> str:
    rows = len(setting.rows)
    return f" (the best {MAX_CURVES} of {rows})" if rows > MAX_CURVES else ""


def learning_caption(setting: Setting) -> str:
    """Return the caption of the learning curves of a setting."""
    text = f"{setting.title}: validation tasks while meta-training{_left_out(setting)}"
    if all(row.has_validation_times for row in setting.rows):
        return text
    return text + " (times that a run did not store are interpolated in proportion to iterations)"


def learning(setting: Setting, looks: Looks) -> Figure | None:
    """Plot the validation metric over iterations and over time, or return ``None`` without validations."""
    curves = [(row, row.learning_curve(setting.metric)) for row in shown(setting)]
    drawn = [(row, curve) for row, curve in curves if curve is not None]
    if not drawn:
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    over_iterations, over_time = figure.subplots(1, 2, sharey=True)
    for row, (iterations, minutes, means) in drawn:
        line(over_iterations, looks, row, iterations, means)
        line(over_time, looks, row, minutes, means)
    over_iterations.set(xlabel="outer-loop iteration", ylabel=f"validation {style.metric_name(setting.metric)}")
    style.counted(over_iterations.xaxis)
    over_time.set(xlabel="training time (minutes)")
    return finish(figure, over_iterations, over_time)


def adaptation(setting: Setting, looks: Looks) -> Figure | None:
    """Plot the test metric along adaptation, or return ``None`` if no learner adapts in steps."""
    drawn = [(row, curve) for row in shown(setting) if (curve := row.adaptation_curve()) is not None]
    if not drawn:
        return None
    figure, ax = lines(drawn, looks)
    for row in shown(setting):  # a learner that does not adapt in steps
        found = row.estimate(setting.metric) if row.adaptation_curve() is None else None
        if found is not None and isfinite(found.mean):
            look = {**looks[row.label], "marker": ""}
            ax.axhline(found.mean, lw=1.2, label=style.label(f"{row.label} (no steps)"), **look)
    first = drawn[0][0].first.summary["adaptation"][0]
    ax.set(
        xlabel="episode of the trial" if "episode" in first else "adaptation steps",
        ylabel=style.metric_name(setting.metric),
    )
    style.counted(ax.xaxis)
    return finish(figure, ax)


def regret(setting: Setting, looks: Looks) -> Figure | None:
    """Plot the regret up to each episode of a trial, or return ``None`` where no agent that knows the task is known."""
    drawn = [(row, curve) for row in shown(setting) if (curve := regret_curve(row)) is not None]
    if not drawn:
        return None
    figure, ax = lines(drawn, looks)
    first, (at, _) = drawn[0]
    chance, best = first.first.summary["references"].get("random"), knowing(first.first)
    if chance is not None and best is not None:
        missed = [(best - chance) * (i + 1) / len(at) for i in range(len(at))]
        ax.plot(at, missed, color=style.TRUTH, ls=":", label="random actions")
    ax.set(xlabel="episode of the trial", ylabel=f"{style.metric_name(setting.metric)} missed so far (regret)")
    style.counted(ax.xaxis)
    return finish(figure, ax)


def regret_curve(row: Row) -> tuple[list[int], list[Mean]] | None:
    """Return the episodes of a trial and the regret up to the end of each: what an agent that knows the task would have
    been paid more, summed over the episodes. The interval is unknown for a single seed.

    Returns ``None`` for learners that do not learn through a trial, and for families without that agent.
    """
    curve, known = row.adaptation_curve(), [knowing(run) for run in row.runs]
    if curve is None or "episode" not in row.first.summary["adaptation"][0] or None in known:
        return None
    at, paid = curve[0], [[point["mean"] for point in run.summary["adaptation"]] for run in row.runs]
    missed = np.cumsum(np.array(known, dtype=np.float64)[:, None] / len(at) - np.array(paid), axis=1)
    return at, [over_seeds(column) for column in missed.T]


def knowing(run: Run) -> float | None:
    """Return the expected trial return of an agent that knows the task, on a run's test tasks, where it is known."""
    references = run.summary.get("references") or {}
    return references.get("oracle", references.get("optimum"))


def by_shape(setting: Setting, looks: Looks) -> Iterator[tuple[str, Figure]]:
    """Yield plots of the metric by number of classes, examples or pixels, where several were tested."""
    suffixed: dict[str, dict[int, str]] = {}
    for metric in setting.metrics:
        if found := re.fullmatch(re.escape(setting.metric) + r"_(\d+)(way|shot|px)", metric):
            suffixed.setdefault(found[2], {})[int(found[1])] = metric
    for unit, metrics in suffixed.items():
        own = setting.task_protocol.get({"px": "shot"}.get(unit, unit))
        points = dict(sorted({**({own: setting.metric} if isinstance(own, int) else {}), **metrics}.items()))
        if len(points) < 2:
            continue
        figure = Figure(figsize=(6, 3.8), layout="constrained")
        ax = figure.subplots()
        for row in shown(setting):
            found_at = {at: e for at, metric in points.items() if (e := row.estimate(metric)) is not None}
            line(ax, looks, row, list(found_at), list(found_at.values()))
        what = {"way": "classes (way)", "shot": "examples (shot)", "px": "pixels given"}[unit]
        ax.set(xlabel=what, ylabel=style.metric_name(setting.metric), xticks=list(points))
        yield unit, finish(figure, ax)


def performance(comparison: Comparison, looks: Looks) -> Figure | None:
    """Plot performance profiles, or return ``None`` if there are no scores over all settings."""
    scores = aggregate(comparison.settings)
    if isinstance(scores, str):
        return None
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    ax = figure.subplots()
    for label, score in scores.items():
        look = {**looks[label], "markevery": 10}
        ax.plot(THRESHOLDS, score.profile, label=style.label(label), drawstyle="steps-post", **look)
        ax.fill_between(THRESHOLDS, *score.band, color=look["color"], alpha=0.15, lw=0, step="post")
    ax.set(xlabel="score τ (0: worst run of its setting, 1: best)", ylabel="share of runs above τ", ylim=(0, 1.02))
    return finish(figure, ax)


def lines(curves: Sequence[tuple[Row, tuple[Sequence[float], Sequence[Mean]]]], looks: Looks) -> tuple[Figure, Axes]:
    """Return a figure of one plot that has the curve of each row."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    ax = figure.subplots()
    for row, (at, means) in curves:
        line(ax, looks, row, at, means)
    return figure, ax


def line(ax: Axes, looks: Looks, row: Row, at: Sequence[float], means: Sequence[Mean]) -> None:
    """Draw a curve with the band of its 95 % interval."""
    look = {**looks[row.label], "markevery": max(1, len(at) // 12)}  # markers of long curves would cover them
    ax.plot(at, [m.mean for m in means], label=style.label(row.label), **look)
    if all(isfinite(m.half_width) for m in means):
        ax.fill_between(at, [m.low for m in means], [m.high for m in means], color=look["color"], alpha=0.13, lw=0)


def limit_bands(ax: Axes) -> None:
    """Remove interval bands that are so wide that the curves would look flat, and note that in the title."""
    drawn = np.concatenate([np.asarray(each.get_ydata(), dtype=np.float64) for each in ax.get_lines()])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or np.ptp(drawn) == 0:
        return
    wide = [band for band in ax.collections if band.get_datalim(ax.transData).height > MAX_BAND_HEIGHT * np.ptp(drawn)]
    for band in wide:
        band.remove()
    low, high = ax.get_ylim()
    room = 0.5 * np.ptp(drawn)
    ax.set_ylim(max(low, drawn.min() - room), min(high, drawn.max() + room))
    if wide:
        ax.set_title("intervals much wider than the plot are not drawn", fontsize=style.SMALL, color=style.QUIET)


def finish(figure: Figure, *panels: Axes) -> Figure:
    """Add grid and legend and return the figure."""
    for ax in panels:
        limit_bands(ax)
        ax.grid(visible=True)
    style.legend(figure, *panels)
    return figure
