"""Support rows and queries of learners of tables, whose columns have any type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from metarun.adapted.source import Labels, Source, with_classes
from metarun.errors import UserError, nearest, require
from metarun.tasks.inputs import Inputs
from metarun.tasks.tables import Row, Table, parse_number
from metarun.tasks.tabular.cells import is_gap
from metarun.tasks.tabular.encoding import Encoding
from metarun.tasks.tabular.labels import spread_over_classes

MOST_ROWS = 500
"""Largest number of support rows of a table."""


def table_support(inputs: Inputs, table: Table, target: str | None) -> Source:
    """Read the support rows of a learner of tables; ``target`` is the column to predict."""
    others = f"   columns: {', '.join(table.columns[:20])}{', ...' if len(table.columns) > 20 else ''}"
    require(target is not None, f"--target is missing: the column of {table.path} to predict{others}")
    assert target is not None
    require(target in table.columns, f"--target {target}: {table.path} has no such column"
            f"{nearest(target, table.columns)}{others}")  # fmt: skip
    notes = list(table.notes)
    kept = [(where, row) for where, row in table.rows if not is_gap(row.get(target))]
    if len(kept) < len(table.rows):
        notes.append(f"{len(table.rows) - len(kept)} rows without '{target}' are not used")
    require(bool(kept), f"--target {target}: has no values in {table.path}")
    if len(kept) > MOST_ROWS:
        kept, chosen = _fewer_rows(kept, target, inputs.spec.kind == "classification")
        notes.append(chosen)
    table = replace(table, rows=kept)
    encoding, types = Encoding.of(table, target)
    rows, gaps = encoding.rows(table)
    twice = len(rows) - len({str(row) for row in rows})
    if twice:
        gaps.append(f"{twice} row{'s are copies' if twice > 1 else ' is a copy'} of others")
    if len(encoding.columns) > (trained := inputs.spec.input_shape[0]):
        notes.append(f"{len(encoding.columns)} columns; the learner was trained on at most {trained}")
    targets = _table_targets(inputs, table, target)
    told = [f"{len(rows)} rows; {target} from {len(encoding.columns)} columns", *types, *gaps, *notes]
    return Source(rows, targets, told, ([c.name for c in encoding.columns], [target]), encoding)


def _fewer_rows(rows: Sequence[Row], target: str, classes: bool) -> tuple[list[Row], str]:
    """Return :data:`MOST_ROWS` rows in their order, each class in its share, and a note on how they were chosen."""
    start = f"{MOST_ROWS} of {len(rows):,} rows are used"
    if not classes:
        return [rows[i * len(rows) // MOST_ROWS] for i in range(MOST_ROWS)], f"{start}, evenly spread"
    _, y = np.unique([str(row[target]).strip() for _, row in rows], return_inverse=True)
    order = spread_over_classes(y, np.random.default_rng(0))
    return [rows[i] for i in sorted(order[:MOST_ROWS])], f"{start}, drawn by class with a fixed seed"


def _table_targets(inputs: Inputs, table: Table, target: str) -> list[Any]:
    """Return the classes of a column as strings, or its numbers in rows of one."""
    if inputs.spec.kind == "regression":
        return table.numbers([target])
    classes, most = [str(row[target]).strip() for _, row in table.rows], inputs.spec.output_size
    if len(set(classes)) > most and all(parse_number(name) is not None for name in classes):
        raise UserError(
            f"--target {target}: holds {len(set(classes))} different numbers, and this run's learner knows at most "
            f"{most} classes; numbers are predicted by a learner of regression (task=tabular/prior_regression)"
        )
    return classes


def table_queries(inputs: Inputs, table: Table, classes: Sequence[str], given: Source, labels: Labels) -> Source:
    """Read the rows to predict, with the columns of the support set ``given``."""
    assert given.encoding is not None
    encoding = given.encoding
    rows, gaps = encoding.rows(table)
    read = {encoding.target, *(column.name for column in encoding.columns)}
    other = [name for name in table.columns if name not in read]
    notes = [f"{len(rows)} rows", *([f"not used: {', '.join(other)}"] if other else []), *gaps, *table.notes]
    source = Source(rows, notes=notes, columns=given.columns)
    answers = [row.get(encoding.target) for _, row in table.rows]
    there = not all(is_gap(answer) for answer in answers)
    require(there or labels != "labelled", f"--query {table.path}: has no values of '{encoding.target}'")
    if inputs.spec.kind == "regression":
        if there and labels != "unlabelled":
            source.targets = table.numbers([encoding.target])
        return source
    found = [None if is_gap(answer) else str(answer).strip() for answer in answers]
    where = [place for place, _ in table.rows]
    return with_classes(source, found, where, classes, labels, f"column '{encoding.target}'")
