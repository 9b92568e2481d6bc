"""The table of learners by settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metarun.reports.comparison import Comparison, Row, Setting
from metarun.reports.tables import Cell, Table, arrow, result


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
    rows_of_cells = [[Cell(label), *cells] for label, cells in zip(labels, zip(*columns, strict=True), strict=True)]
    alone = len({row.label for setting in comparison.settings for row in setting.rows}) - len(labels)
    notes = [f"{alone} more learners do not meet another in two settings" if alone > 1 else
             "1 more learner does not meet another in two settings"] if alone else []  # fmt: skip
    return Table("all settings", headings, rows_of_cells, notes)


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
