"""Pictures of a comparison: learning and adaptation curves, results by the shape of episodes, performance profiles."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarun.escape import for_plot
from metarun.evaluation.statistics import Mean
from metarun.reports.comparison import Comparison, Row, Setting
from metarun.reports.scores import THRESHOLDS, aggregate

COLOURS = ("#2f6fb0", "#d9662b", "#3a8f5c", "#9a5fb5", "#b8392f", "#6b6b6b", "#c9a227", "#2aa0a4", "#7d4e2d", "#d45a9c")
STYLES = ("-", "--", ":", "-.")
Looks = dict[str, tuple[str, str]]
"""Colour and style of each learner, the same in all pictures."""
LEGEND = 12
"""Rows of a setting up to which a legend fits into the picture."""

WIDE = 2.5
"""Times the range of all curves: height of a band that is too wide to be drawn."""


def figures(comparison: Comparison) -> Iterator[tuple[str, str, Figure]]:
    """(file name without suffix, caption, figure), each only where there is something to show."""
    labels = dict.fromkeys(row.label for setting in comparison.settings for row in setting.rows)
    looks = {
        label: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]) for i, label in enumerate(labels)
    }
    for i, setting in enumerate(comparison.settings, 1):
        for name, caption, made in (
            ("learning", learning_caption(setting), learning(setting, looks)),
            ("adaptation", f"{setting.title}: test tasks along adaptation", adaptation(setting, looks)),
            *((f"by_{unit}", f"{setting.title}: by {unit}", figure) for unit, figure in by_shape(setting, looks)),
        ):
            if made is not None:
                yield f"{name}_{i}", caption, made
    profiles = performance(comparison, looks)
    if profiles is not None:
        yield "profiles", "performance profiles: share of runs that score above a threshold", profiles


def learning_caption(setting: Setting) -> str:
    text = f"{setting.title}: validation tasks while meta-training"
    if all(row.timed for row in setting.rows):
        return text
    return text + " (times of runs that did not note them: taken as proportional to iterations)"


def learning(setting: Setting, looks: Looks) -> Figure | None:
    curves = [(row, row.learning(setting.metric)) for row in setting.rows]
    drawn = [(row, curve) for row, curve in curves if curve is not None]
    if not drawn:
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    over_iterations, over_time = figure.subplots(1, 2, sharey=True)
    for row, (iterations, minutes, means) in drawn:
        line(over_iterations, looks, row, iterations, means)
        line(over_time, looks, row, minutes, means)
    over_iterations.set(xlabel="iteration", ylabel=f"validation {setting.metric}")
    over_time.set(xlabel="minutes")
    return finished(figure, over_iterations, over_time, rows=len(drawn))


def adaptation(setting: Setting, looks: Looks) -> Figure | None:
    drawn = [(row, curve) for row in setting.rows if (curve := row.adaptation()) is not None]
    if not drawn:
        return None
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    ax = figure.subplots()
    for row, (at, means) in drawn:
        line(ax, looks, row, at, means)
    for row in setting.rows:  # a learner that adapts at once
        found = row.estimate(setting.metric) if row.adaptation() is None else None
        if found is not None and isfinite(found.mean):
            ax.axhline(found.mean, color=looks[row.label][0], ls=":", lw=1.2, label=for_plot(f"{row.label} (at once)"))
    first = drawn[0][0].first.summary["adaptation"][0]
    ax.set(xlabel="episode of the trial" if "episode" in first else "adaptation steps", ylabel=setting.metric)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return finished(figure, ax, rows=len(setting.rows))


def by_shape(setting: Setting, looks: Looks) -> Iterator[tuple[str, Figure]]:
    """The metric over the number of classes, examples or pixels, where several were tested."""
    suffixed: dict[str, dict[int, str]] = {}
    for metric in setting.metrics:
        if found := re.fullmatch(re.escape(setting.metric) + r"_(\d+)(way|shot|px)", metric):
            suffixed.setdefault(found[2], {})[int(found[1])] = metric
    for unit, metrics in suffixed.items():
        own = setting.judged_on.get({"px": "shot"}.get(unit, unit))
        points = dict(sorted({**({own: setting.metric} if isinstance(own, int) else {}), **metrics}.items()))
        if len(points) < 2:
            continue
        figure = Figure(figsize=(6, 3.8), layout="constrained")
        ax = figure.subplots()
        for row in setting.rows:
            found_at = {at: e for at, metric in points.items() if (e := row.estimate(metric)) is not None}
            line(ax, looks, row, list(found_at), list(found_at.values()))
        what = {"way": "classes (way)", "shot": "examples (shot)", "px": "pixels given"}[unit]
        ax.set(xlabel=what, ylabel=setting.metric, xticks=list(points))
        yield unit, finished(figure, ax, rows=len(setting.rows))


def performance(comparison: Comparison, looks: Looks) -> Figure | None:
    scores = aggregate(comparison.settings)
    if isinstance(scores, str):
        return None
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    ax = figure.subplots()
    for label, score in scores.items():
        shade, style = looks[label]
        ax.plot(THRESHOLDS, score.profile, style, color=shade, label=for_plot(label), drawstyle="steps-post")
        ax.fill_between(THRESHOLDS, *score.band, color=shade, alpha=0.15, lw=0, step="post")
    ax.set(xlabel="score τ (0: worst run of its setting, 1: best)", ylabel="share of runs above τ", ylim=(0, 1.02))
    return finished(figure, ax, rows=len(scores))


def line(ax: Axes, looks: Looks, row: Row, at: Sequence[float], means: Sequence[Mean]) -> None:
    """A curve with the band of its 95 % interval."""
    shade, style = looks[row.label]
    ax.plot(at, [m.mean for m in means], style, color=shade, lw=1.6, marker="o", ms=3, label=for_plot(row.label))
    if all(isfinite(m.half) for m in means):
        ax.fill_between(at, [m.low for m in means], [m.high for m in means], color=shade, alpha=0.13, lw=0)


def around_the_curves(ax: Axes) -> None:
    """Leave out bands so wide that they would make the curves flat, and say so."""
    drawn = np.concatenate([np.asarray(each.get_ydata(), dtype=np.float64) for each in ax.get_lines()])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or np.ptp(drawn) == 0:
        return
    wide = [band for band in ax.collections if band.get_datalim(ax.transData).height > WIDE * np.ptp(drawn)]
    for band in wide:
        band.remove()
    low, high = ax.get_ylim()
    room = 0.5 * np.ptp(drawn)
    ax.set_ylim(max(low, drawn.min() - room), min(high, drawn.max() + room))
    if wide:
        ax.set_title("intervals far wider than the picture are not drawn", fontsize=8, color="0.4", loc="left")


def finished(figure: Figure, *panels: Axes, rows: int) -> Figure:
    """Grid and legend, alike in all."""
    for ax in panels:
        around_the_curves(ax)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    if rows <= LEGEND:
        panels[0].legend(fontsize=8, frameon=False)
    else:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    return figure
