"""The table of learners by settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from metarun.reports.comparison import Comparison, Row, Setting
from metarun.reports.tables import ONE_SEED, STANDING, Cell, Table, arrow, result


def overview(comparison: Comparison) -> Table | None:
    """Return a table of learners by settings with the metric of each setting.

    It has only learners that meet in at least two settings, and these settings; ``None`` if there are none.
    """
    labels, settings = meeting({s: {row.label: row for row in s.rows} for s in comparison.settings})
    if not settings:
        return None
    columns = []
    for setting, rows in settings.items():
        standing = setting.standing(setting.metric)
        cells = {label: result(row, setting.metric, standing.get(row, "")) for label, row in rows.items()}
        columns.append([cells.get(label, Cell("")) for label in labels])
    headings = ["learner", *(f"{setting.title}: {setting.metric} {arrow(setting)}" for setting in settings)]
    lines = [[Cell(label), *cells] for label, cells in zip(labels, zip(*columns, strict=True), strict=True)]
    return Table("all settings", headings, lines, tuple(notes(comparison, lines)))


def notes(comparison: Comparison, rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """Yield the notes below the overview: its marks, and how many learners are not in it."""
    if any(cell.standing for row in rows for cell in row):
        yield f"{STANDING}, of all learners of a setting, as in its own table"
    if any(cell.text.endswith(ONE_SEED) for row in rows for cell in row):
        yield f"{ONE_SEED} one seed: ± is over its test episodes"
    alone = len({row.label for setting in comparison.settings for row in setting.rows}) - len(rows)
    if alone:
        yield f"{alone} more learner{' does' if alone == 1 else 's do'} not meet another in two settings"


def meeting(found: Mapping[Setting, Mapping[str, Row]]) -> tuple[Sequence[str], Mapping[Setting, Mapping[str, Row]]]:
    """Return the largest set of learners, each in at least two settings with another of them, and these settings."""
    labels = list(dict.fromkeys(label for rows in found.values() for label in rows))
    settings = dict(found)
    while True:
        settings = {s: rows for s, rows in settings.items() if sum(label in rows for label in labels) > 1}
        kept = [label for label in labels if sum(label in rows for rows in settings.values()) > 1]
        if kept == labels:
            return labels, settings
        labels = kept
