"""Benchmark results as tables, JSON and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from metarun import style
from metarun.bench.compare import Row
from metarun.bench.peers import BASE
from metarun.bench.workloads import Workload

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(workload: Workload, rows: Sequence[Row]) -> Table:
    """Return the table of one workload."""
    result = Table(
        box=box.SIMPLE_HEAD,
        title=f"{workload.name}   {workload.text}; {workload.tasks} task{'s'[: workload.tasks > 1]} per outer step",
        title_justify="left",
        collapse_padding=True,
    )
    for heading in ("", "ms", "speed", "lowest", "highest", "MB", "error", "in float64"):
        result.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        result.add_row(row.implementation.name, *_cells(row, rows[0]))
    return result


def _cells(row: Row, base: Row) -> Iterator[str]:
    if row.failed is not None:
        yield "failed"
        return
    ratios = row.ratios(base)
    yield f"{1e3 * median(row.samples):.4g}"
    yield from (f"{value:.3g}" for value in (median(ratios), min(ratios), max(ratios)))
    yield "" if row.added_mb is None else f"{row.added_mb:.0f}"
    yield from ("" if error is None else f"{error:.0e}" for error in (row.error, row.error_float64))


def legend(measured: Mapping[str, Sequence[Row]]) -> str:
    """Return an explanation of the rows and columns."""
    lines = {row.implementation.name: row.implementation.about for rows in measured.values() for row in rows} | {
        "speed": f"time of {BASE.name} divided by own time in the same round: median over rounds, lowest, highest",
        "MB": "peak memory of one step minus the memory held before it",
        "error": "relative error of the float32 gradient against a plain loop in float64",
        "in float64": "relative error of the float64 gradient on two tasks; small if the same function is computed",
    }
    return "\n".join(f"{name:<22}{text}" for name, text in lines.items())


def picture(measured: Mapping[str, Sequence[Row]]) -> Figure:
    """Plot the speed relative to learn2learn, one panel per workload, with the range over rounds."""
    from matplotlib.figure import Figure

    heights = [len(rows) + 1.6 for rows in measured.values()]
    figure = Figure(figsize=(8, 0.33 * sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(measured), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for ax, (name, rows) in zip(panels, measured.items(), strict=True):
        shown = [row for row in rows if row.failed is None]
        ratios = [row.ratios(rows[0]) for row in shown]
        middle = [median(r) for r in ratios]
        reach = [[m - min(r) for m, r in zip(middle, ratios, strict=True)],
                 [max(r) - m for m, r in zip(middle, ratios, strict=True)]]  # fmt: skip
        colours = [style.EARLY if row.implementation.name.startswith("metarun") else style.TRUTH for row in shown]
        labels = [row.implementation.name for row in shown]
        bars = ax.barh(labels, middle, xerr=reach, color=colours, error_kw={"lw": 1, "capsize": 2})
        ax.invert_yaxis()
        ax.axvline(1, color=style.GIVEN, lw=1, ls=":")
        ax.set_title(name)
        ax.bar_label(bars, [f"{value:.3g}" for value in middle], fontsize=style.SMALL, padding=3)
    panels[-1].set_xlabel(f"speed ({BASE.name} = 1), median and range over rounds")
    return figure


def as_json(workloads: Mapping[str, Workload], measured: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Return all workloads with all samples for the JSON file."""
    return [
        {
            "name": name,
            "text": workloads[name].text,
            "tasks": workloads[name].tasks,
            "words": list(workloads[name].words),
            "rows": [row.as_dict(rows[0]) for row in rows],
        }
        for name, rows in measured.items()
    ]
