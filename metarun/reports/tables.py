"""Tables of a comparison, and their rendering for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import floor, isfinite, log10
from typing import TYPE_CHECKING

from metarun.escape import for_csv, for_markdown, printable
from metarun.evaluation.statistics import Mean
from metarun.reports.comparison import Comparison, Pair, Row, Setting, format_value
from metarun.reports.runs import flatten
from metarun.reports.scores import aggregate

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MARKS = {"best": " ★", "within": " ≈"}
STANDING = "★ best; ≈ mean within the interval of the best"
ONE_SEED = "¹"
"""Marks an interval over the episodes of a single seed."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    standing: str = ""
    """``best``, ``within`` (the interval of the best) or empty."""

    @property
    def marked(self) -> str:
        """The text with a mark for its standing."""
        return self.text + MARKS.get(self.standing, "")


@dataclass(frozen=True)
class Table:
    """A table with a title and notes below it."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default=())
    text_columns: int = 1
    """Number of columns from the left that hold text. The others hold numbers."""


def number(value: float) -> str:
    """Format a number with four significant digits."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def interval(estimate: Mean) -> str:
    """Format a mean ± half the width of its interval, with two significant digits of the latter."""
    if not isfinite(estimate.half_width) or not isfinite(estimate.mean):
        return number(estimate.mean)
    if estimate.half_width == 0:
        return f"{number(estimate.mean)} ± 0"
    decimals = min(8, max(0, 1 - floor(log10(estimate.half_width))))
    return f"{estimate.mean:.{decimals}f} ± {estimate.half_width:.{decimals}f}"


def names(row: Row, setting: Setting) -> list[Cell]:
    """Return the cells that identify a row."""
    model = [Cell(row.model)] if row.model else []
    return [Cell(row.algorithm), *model, *(Cell(row.keys.get(key, "")) for key in setting.columns)]


def name_headings(setting: Setting) -> list[str]:
    """Return the headings of the cells that identify a row."""
    return ["algorithm", *(["model"] if setting.rows[0].model else []), *setting.columns]


def result(row: Row, metric: str, standing: str) -> Cell:
    """Return the cell of a row's test metric. It is empty if a run did not measure the metric."""
    found = row.estimate(metric)
    return Cell("" if found is None else interval(found) + (ONE_SEED if len(row.runs) == 1 else ""), standing)


def arrow(setting: Setting) -> str:
    """Return an arrow in the direction in which the metric improves."""
    return "↑" if setting.higher_is_better else "↓"


def results(setting: Setting) -> Table:
    """Return a table of means over seeds with 95 % intervals, one column per metric."""
    standing = {metric: setting.standing(metric) for metric in setting.metrics}
    rows = [
        [*names(row, setting), Cell(str(len(row.runs)))]
        + [result(row, metric, standing[metric].get(row, "")) for metric in setting.metrics]
        for row in setting.rows
    ]
    headings = [*name_headings(setting), "seeds", *(f"{metric} {arrow(setting)}" for metric in setting.metrics)]
    return Table(setting.title, headings, rows, tuple(result_notes(setting)), len(name_headings(setting)))


def result_notes(setting: Setting) -> Iterable[str]:
    """Yield the notes below a table of results."""
    seeds = {len(row.runs) for row in setting.rows}
    if seeds - {1}:
        yield "mean over seeds ± half the width of its 95 % interval (Student's t)"
    if 1 in seeds:
        yield f"{ONE_SEED} one seed: ± is over its test episodes; other seeds may differ by more"
    if any(setting.standing(metric) for metric in setting.metrics):
        yield STANDING
    references = {name: v for run in setting.runs for name, v in (run.summary.get("references") or {}).items()}
    if references:
        first = ", ".join(f"{name} {number(value)}" for name, value in references.items())
        yield f"references of seed {setting.runs[-1].seed}: {first}"
    yield "evaluated on: " + ", ".join(f"{key}={format_value(value)}" for key, value in flatten(setting.task_protocol))
    for row in setting.rows:
        if tuned := {key: value for run in row.runs for key, value in (run.meta.get("tuned") or {}).items()}:
            values = ", ".join(f"{key}={format_value(value)}" for key, value in tuned.items())
            yield f"{row.label} has values tuned for this task: {values}"
    for difference in setting.learner_differences():
        yield f"the rows' protocols differ in {difference}"
    if len(setting.versions()) > 1:
        yield "the runs were made by different versions of the code: " + ", ".join(setting.versions())


def pairs(setting: Setting) -> Table | None:
    """Return a table of paired differences on the same test episodes, or ``None`` if there are no pairs."""
    found = setting.pairs()
    if not found:
        return None
    rows = [
        [Cell(pair.a.label), Cell(pair.b.label), *map(Cell, pair_cells(pair)), Cell(verdict(pair, setting))]
        for pair in found
    ]
    headings = ["A", "B", "seeds", "episodes", "A − B ± over episodes", "± over seeds", "better"]
    return Table(f"{setting.title}: {setting.metric}, episode by episode", headings, rows, PAIR_NOTES, 2)


PAIR_NOTES = (
    "mean of A − B on the same test tasks of each seed, with two 95 % intervals: over episodes, for these trained "
    "learners; over seeds (Student's t), for learners trained anew",
)


def pair_cells(pair: Pair) -> list[str]:
    """Return seeds, episodes and both intervals of a difference. They are empty if there is no difference."""
    if pair.difference is None:
        return ["", "", "", ""]
    episodes, seeds = pair.difference.episodes, pair.difference.seeds
    half = interval(seeds).partition("± ")[2] if seeds.n > 1 else ""
    return [str(seeds.n), str(episodes.n), interval(episodes), half]


def verdict(pair: Pair, setting: Setting) -> str:
    """Name the better row if the interval of the difference excludes zero."""
    if pair.difference is None:
        return pair.why
    episodes, seeds = pair.difference.episodes, pair.difference.seeds
    ahead = pair.a if (episodes.mean > 0) == setting.higher_is_better else pair.b
    if seeds.excludes_zero:
        return ahead.label
    if episodes.excludes_zero:
        return f"{ahead.label}, of these runs"
    return "not shown"


def efficiency(setting: Setting) -> Table | None:
    """Return a table of the first and last value of the adaptation curves and the areas under them."""
    rows = []
    for row in setting.rows:
        curve, height = row.adaptation_curve(), row.efficiency()
        if curve is None or height is None:
            continue
        at, means = curve
        rows.append([*names(row, setting), Cell(f"{at[0]} – {at[-1]}"), Cell(interval(means[0])),
                     Cell(interval(means[-1])), Cell(interval(height))])  # fmt: skip
    if not rows:
        return None
    by = "episodes" if "episode" in setting.rows[0].first.summary["adaptation"][0] else "steps"
    headings = [*name_headings(setting), by, "first", "last", "area under the curve"]
    notes = [
        f"area under the curve: mean over the {by}, which is the expected result if adaptation stops at a random one"
    ]
    spans = {row[len(name_headings(setting))].text for row in rows}
    if len(spans) > 1:
        notes.append(f"areas over different numbers of {by} are not comparable")
    title = f"{setting.title}: {setting.metric} along adaptation"
    return Table(title, headings, rows, notes, len(name_headings(setting)))


def aggregates(comparison: Comparison) -> Table | None:
    """Return a table of scores over all settings, or ``None`` if there are too few settings or learners."""
    found = aggregate(comparison.settings)
    if isinstance(found, str):
        return None
    rows = []
    best = max(score.middle for score in found.values())
    for label, score in found.items():
        low, high = score.middle_interval
        middle, mean = (
            f"{number(value)} [{number(left)}, {number(right)}]"
            for value, (left, right) in ((score.middle, score.middle_interval), (score.mean, score.mean_interval))
        )
        rows.append([Cell(label), Cell(middle, "best" if score.middle == best and low < high else ""), Cell(mean)])
    notes = (
        "a run's score is its result, scaled within its setting from the worst run (0) to the best (1); they depend on "
        "which runs are reported",
        "intervals: 95 %, bootstrap over seeds, stratified by setting (Agarwal et al. 2021, arXiv:2108.13264)",
    )
    return Table("scores over all settings", ["learner", "interquartile mean", "mean"], rows, notes)


def cost(comparison: Comparison) -> Table:
    """Return a table of training time, peak memory and number of parameters."""
    rows = []
    every = [(setting.title, row) for setting in comparison.settings for row in setting.rows]
    for title, row in every:
        summaries = [run.summary for run in row.runs]
        times = [s["wall_s"] for s in summaries if s.get("wall_s") is not None]
        memory = [s["peak_mb"] for s in summaries if s.get("peak_mb") is not None]
        sizes = dict.fromkeys(f"{s['parameters']:,}" for s in summaries if s.get("parameters") is not None)
        devices = dict.fromkeys(str(run.meta.get("device", "?")) for run in row.runs)
        rows.append([
            Cell(title),
            Cell(row.label),
            Cell(", ".join(devices)),
            Cell(", ".join(dict.fromkeys(str(s["iterations"]) for s in summaries))),
            Cell(clock(sum(times) / len(times)) if times else ""),
            Cell(f"{max(memory):.0f}" if memory else ""),
            Cell(", ".join(sizes)),
        ])  # fmt: skip
    headings = ["setting", "learner", "device", "iterations", "time", "peak MB", "parameters"]
    notes = (
        "time: one run without its test, mean over seeds; peak MB: torch's allocations on CUDA, else the process's; "
        "parameters: number of meta-parameters",
    )
    return Table("cost", headings, rows, notes, 3)


def clock(seconds: float) -> str:
    """Format a duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def left_out(comparison: Comparison) -> Table | None:
    """Return a table of the runs that were excluded, or ``None`` if there are none."""
    rows = [[Cell(run.state), Cell(str(run.path)), Cell(run.reason)] for run in comparison.left_out]
    return Table("runs left out", ["state", "run", "why"], rows, (), 3) if rows else None


def as_rich(table: Table) -> RichTable:
    """Render a table for the terminal."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, title=Text(printable(table.title)), title_justify="left", title_style="bold")
    for i, heading in enumerate(table.headings):
        made.add_column(
            Text(printable(heading)), justify="left" if i < table.text_columns else "right", overflow="fold"
        )
    for row in table.rows:
        made.add_row(*(Text(printable(cell.marked), style="bold" if cell.standing == "best" else "") for cell in row))
    return made


def as_markdown(table: Table) -> str:
    """Render a table as Markdown, with the best results in bold."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.headings))]
    shown = [[(for_markdown(c.marked), c.standing == "best") for c in row] for row in table.rows]
    bold = [[f"**{text}**" if best else text for text, best in row] for row in shown]
    return "\n".join(
        [
            f"### {for_markdown(table.title)}",
            "",
            *map(line, [map(for_markdown, table.headings), rule, *bold]),
            "",
            *(f"- {for_markdown(note)}" for note in table.notes),
        ]
    )


def results_csv(comparison: Comparison) -> str:
    """Render all results as CSV with one line per row and metric."""
    keys = list(dict.fromkeys(key for setting in comparison.settings for key in setting.columns))
    header = ["setting", "task", "algorithm", "model", *keys, "metric", "higher_is_better", "seeds", "mean", "ci95",
              "interval_over", "standing", "per_seed", "protocol", "runs"]  # fmt: skip
    lines = []
    for setting in comparison.settings:
        for metric in setting.all_metrics:
            standing = setting.standing(metric) if metric in setting.metrics else {}
            for row in setting.rows:
                found = row.estimate(metric)
                if found is None:
                    continue
                lines.append([
                    setting.title, setting.task, row.algorithm, row.first.choice("model"),
                    *(row.keys.get(key, "") for key in keys), metric,
                    str(setting.higher_is_better).lower() if metric in setting.metrics else "",
                    " ".join(str(run.seed) for run in row.runs), repr(found.mean), repr(found.half_width),
                    "seeds" if len(row.runs) > 1 else "episodes", standing.get(row, ""),
                    " ".join(repr(run.summary["test"][metric]["mean"]) for run in row.runs),
                    ", ".join(f"{k}={format_value(v)}" for k, v in flatten(row.first.summary["protocol"])),
                    " ".join(str(run.path) for run in row.runs),
                ])  # fmt: skip
    return as_csv([header, *lines])


def pairs_csv(comparison: Comparison) -> str:
    """Render all paired differences as CSV with one line per pair."""
    header = ["setting", "metric", "a", "b", "seeds", "episodes", "difference", "ci95_over_episodes",
              "ci95_over_seeds", "better"]  # fmt: skip
    lines = []
    for setting in comparison.settings:
        for pair in setting.pairs():
            d = pair.difference
            numbers = ["", "", "", "", ""]
            if d is not None:
                numbers = [
                    str(d.seeds.n),
                    str(d.episodes.n),
                    *map(repr, (d.episodes.mean, d.episodes.half_width, d.seeds.half_width)),
                ]
            lines.append([setting.title, setting.metric, pair.a.label, pair.b.label, *numbers, verdict(pair, setting)])
    return as_csv([header, *lines])


def as_csv(rows: Iterable[Sequence[str]]) -> str:
    """Render rows of text as CSV, with cells escaped for spreadsheets."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([for_csv(cell) for cell in row] for row in rows)
    return buffer.getvalue()
