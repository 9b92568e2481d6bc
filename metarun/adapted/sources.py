"""Support sets and queries read from the user's folders and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarun.adapted.columns import Columns
from metarun.errors import UserError, nearest, nearest_path, require
from metarun.tasks import parquet
from metarun.tasks.inputs import Inputs
from metarun.tasks.tables import TABLES, Row, Table, parse_number, read_table
from metarun.tasks.tabular.encoding import Encoding, is_gap
from metarun.tasks.tabular.labels import spread_over_classes
from metarun.tasks.vision.folder import by_folder
from metarun.tasks.vision.images import ENDINGS, is_clutter, is_image
from metarun.tasks.vision.sources import listing
from metarun.tasks.vision.stored_images import images

Labels = Literal["auto", "labelled", "unlabelled"]
"""States whether queries have known answers; ``auto`` detects and reports it."""
NAMED = 3
MOST_ROWS = 500
"""Largest number of support rows of a table."""


@dataclass
class Source:
    """Inputs, with their targets if known.

    Attributes:
        items: Paths of images, texts, or rows of numbers.
        targets: A class name or a row of numbers for each item; empty if unknown.
        notes: Remarks on the items read and skipped, and on the origin of the targets.
        columns: For a table of numbers with a header, the names of its inputs and of its targets.
        label: For images in a parquet file, the column of the classes; for texts, the one that is asked for.
    """

    items: list[Any]
    targets: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    columns: tuple[list[str], list[str]] | None = None
    encoding: Encoding | None = None
    """The reading of a table's columns."""
    label: str | None = None

    def read_columns(self) -> Columns | None:
        """Return the columns by which other files of the same form are read; ``None`` for images and texts."""
        return None if self.columns is None else Columns(*self.columns, self.encoding)

    def names(self) -> list[str]:
        """Return the name of each input for a table."""
        if self.encoding is not None:
            return [f"row {i}" for i in range(1, len(self.items) + 1)]
        return [str(item) if not isinstance(item, list) else " ".join(f"{v:g}" for v in item) for item in self.items]


def support(inputs: Inputs, path: Path, target: str | None = None) -> Source:
    """Read a support set: a folder with one folder of images for each class, or a table.

    Tables of texts and parquet files of images have a label column, ``target`` if that is given. Tables of numbers have
    the inputs first, then the targets. Learners of tables read columns of any type, and predict the column ``target``.

    Raises:
        UserError: Something is missing or ambiguous.
    """
    option, spec = "--support", inputs.spec
    refuse_missing(option, path)
    if spec.modality == "image":
        if path.suffix.lower() == parquet.ENDING:
            label, classes = parquet.labels(path, target, required=True)
            return Source(list(images(path)), list(classes), [f"{len(classes)} images; classes: {label}"], label=label)
        refuse_target(target, "a folder names its classes itself")
        require(path.is_dir(), f"{option} {path}: give a folder that holds one folder of images a class, or a .parquet "
                "file")  # fmt: skip
        found = by_folder(listing(path), str(path), splits=False)
        files = [path / file for each in found.classes.values() for file in each]
        targets = [name for name, each in found.classes.items() for _ in each]
        return Source(files, targets, found.notes)
    table = read(option, path)
    if spec.modality == "table":
        return _table_support(inputs, table, target)
    if spec.modality == "text":
        text = column_of(table, option, inputs.columns["text"], "text")
        label = column_of(table, option, target or inputs.columns["label"], target or "label")
        texts, labels = table.texts(text), table.texts(label, "a class")
        return Source(texts, labels, [table.summary([text, label])], label=target)
    refuse_target(target, "of numbers, the last columns are the targets")
    count, outputs = spec.input_shape[0], spec.output_size
    require(
        len(table.columns) == count + outputs,
        f"{option} {path}: has the columns {', '.join(table.columns)}; the learner needs "
        f"exactly {count} of inputs, then {outputs} of targets",
    )
    refuse_numbers_as_names(table)
    rows = table.numbers(table.columns)
    named = (table.columns[:count], table.columns[count:]) if table.header else None
    given = f"inputs {', '.join(table.columns[:count])}; targets {', '.join(table.columns[count:])}"
    notes = [table.summary(table.columns), given]
    return Source([row[:count] for row in rows], [row[count:] for row in rows], notes, named)


def query(inputs: Inputs, path: Path, classes: Sequence[str], given: Source, labels: Labels = "auto") -> Source:
    """Read queries in the same forms as a support set; targets are optional.

    For images, ``path`` is a file, a parquet file or a folder; its folders give targets if all are named as classes.
    For texts it is a table, with or without labels. For numbers it is a table with the input columns of the support
    set, with or without its target columns.

    Args:
        inputs: Conversion of the inputs.
        path: The file or folder.
        classes: Names of the classes of the support set.
        given: The support set.
        labels: Whether the queries have targets.
    """
    refuse_missing("--query", path)
    if inputs.spec.modality == "image":
        if path.suffix.lower() == parquet.ENDING:
            return _stored_queries(path, classes, given, labels)
        return _image_queries(path, classes, labels)
    table = read("--query", path)
    if inputs.spec.modality == "table":
        return _table_queries(inputs, table, classes, given, labels)
    if inputs.spec.modality == "text":
        return _text_queries(inputs, table, classes, given, labels)
    return _number_queries(inputs, table, given, labels)


def _table_support(inputs: Inputs, table: Table, target: str | None) -> Source:
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
    return [str(row[target]).strip() for _, row in table.rows]


def _table_queries(inputs: Inputs, table: Table, classes: Sequence[str], given: Source, labels: Labels) -> Source:
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
    return _with_classes(source, found, where, classes, labels, f"column '{encoding.target}'")


def _image_queries(path: Path, classes: Sequence[str], labels: Labels) -> Source:
    if path.is_file():
        files, skipped = [path], []
        folders: list[str | None] = [path.resolve().parent.name] if labels == "labelled" else [None]
    else:
        found = [path / name for name in listing(path) if not name.endswith("/") and not is_clutter(name)]
        files = [file for file in found if is_image(file.name)]
        skipped = [file.name for file in found if not is_image(file.name)]
        require(bool(files), f"--query {path}: no images ({', '.join(e[1:] for e in ENDINGS)})")
        parts = [file.relative_to(path).parts for file in files]
        while len({each[0] for each in parts}) == 1 and all(len(each) > 2 for each in parts):
            parts = [each[1:] for each in parts]  # a single folder around those of the classes
        folders = [each[0] if len(each) > 1 else None for each in parts]
        if labels == "labelled" and not any(folders):  # the folder of one class
            folders = [path.resolve().name] * len(files)
    notes = [f"{len(files)} images"]
    if skipped:
        more = ", ..." if len(skipped) > NAMED else ""
        notes.append(f"{len(skipped)} other files not read: {', '.join(skipped[:NAMED])}{more}")
    where = [f"--query {file}" for file in files]
    return _with_classes(Source(files, notes=notes), folders, where, classes, labels, "folders")


def _stored_queries(path: Path, classes: Sequence[str], given: Source, labels: Labels) -> Source:
    label, found = parquet.labels(path, given.label, required=labels == "labelled")
    items = list(images(path))
    require(bool(items), f"--query {path}: holds no rows")
    source = Source(list(items), notes=[f"{len(items)} images"])
    return _with_classes(source, found, [str(item) for item in items], classes, labels, f"column '{label}'")


def _text_queries(inputs: Inputs, table: Table, classes: Sequence[str], given: Source, labels: Labels) -> Source:
    text = column_of(table, "--query", inputs.columns["text"], "text")
    own = given.label or inputs.columns["label"]
    label = next((name for name in (own, "label") if name in table.columns), None)
    if label is None and labels == "labelled":
        column_of(table, "--query", own, "label")
    used = label if labels != "unlabelled" and label and not table.is_empty(label) else None
    require(used is not None or labels != "labelled", f"--query {table.path}: the column '{label}' is empty")
    found: list[str | None] = [None] * len(table.rows)
    if used:
        remedy = "" if labels == "labelled" else ", or say --unlabelled"
        found = [*table.texts(used, f"a class; give every row one{remedy}")]
    source = Source(table.texts(text), notes=[table.summary([text, *([used] if used else [])])])
    return _with_classes(source, found, [where for where, _ in table.rows], classes, labels, f"column '{label}'")


def _with_classes(
    source: Source,
    found: Sequence[str | None],
    where: Sequence[str],
    classes: Sequence[str],
    labels: Labels,
    origin: str,
) -> Source:
    """Set the classes ``found`` as targets of ``source``, if that is requested and all of them are in ``classes``."""
    unknown = Counter(name for name in found if name not in classes)
    if labels == "unlabelled" or not any(found):
        require(labels != "labelled", f"{where[0]}: --labelled needs folders named as classes")
        source.notes.append("unlabelled: predicted, not scored")
    elif not unknown:
        source.targets = list(found)
        source.notes.append(f"labelled: the classes are taken from the {origin}")
    else:
        at = next(i for i, name in enumerate(found) if name not in classes)
        name = found[at]
        what = f"'{name}'" if name else f"no class of its own ({where[at]})"
        reason = f"{what} is none of the classes of the support set ({', '.join(classes[:10])}"
        reason = f"{reason}{', ...' if len(classes) > 10 else ''}){nearest(str(name), classes)}"
        require(labels != "labelled", f"{where[at]}: {reason}")
        source.notes.append(
            f"NOT SCORED, although {len(found) - unknown.total()} of {len(found)} have a class by their {origin}: "
            f"{reason}"
        )
    return source


def _number_queries(inputs: Inputs, table: Table, given: Source, labels: Labels) -> Source:
    count, outputs, path = inputs.spec.input_shape[0], inputs.spec.output_size, f"--query {table.path}"
    refuse_numbers_as_names(table)
    if table.header and given.columns:
        wanted, answers = given.columns
        missing = [name for name in wanted if name not in table.columns]
        if missing:
            hint = nearest(missing[0], table.columns)
            raise UserError(
                f"{path}: no column '{missing[0]}', which is an input of the support set{hint}   available: "
                f"{', '.join(table.columns)}"
            )
    else:
        require(
            not table.header and given.columns is None,
            f"{path}: {'has a header and the support set has none' if table.header else 'has no header'}; columns are "
            f"matched by name: name them in both files{', ' + ', '.join(given.columns[0]) if given.columns else ''}",
        )
        require(
            len(table.columns) in (count, count + outputs),
            f"{path}: {len(table.columns)} columns without names; {count} of inputs, or {outputs} more of targets",
        )
        wanted, answers = table.columns[:count], table.columns[count:]
    answers = [name for name in answers if name in table.columns and not table.is_empty(name)]
    known = len(answers) == outputs and labels != "unlabelled"
    require(
        known or labels != "labelled", f"{path}: has no values of all {outputs} targets, so that it is not labelled"
    )
    used = [*wanted, *(answers if known else [])]
    rows = table.numbers(used)
    note = f"labelled: the answers are {', '.join(answers)}" if known else "unlabelled: predicted, not scored"
    targets = [row[count:] for row in rows] if known else []
    return Source([row[:count] for row in rows], targets, [table.summary(used), note])


def refuse_missing(option: str, path: Path) -> None:
    """Raise :class:`UserError` if a path does not exist."""
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    require(exists, f"{option} {path!s:.200}: no such file or folder{nearest_path(path)}")


def refuse_target(target: str | None, why: str) -> None:
    """Raise :class:`UserError` if ``--target`` names a column where it has no effect."""
    require(target is None, f"--target {target}: names the label column of a table or of a parquet file; {why}")


def read(option: str, path: Path) -> Table:
    """Read the table at ``path``; raises :class:`UserError` if it has no rows."""
    require(path.is_file(), f"{option} {path}: give a file ({', '.join(TABLES)})")
    table = read_table(path)
    require(bool(table.rows), f"{option} {path}: holds no rows{' below its header' if table.columns else ''}")
    return table


def column_of(table: Table, option: str, own: str, usual: str) -> str:
    """Return the column with the name in the run's own file, or with its usual name."""
    found = next((name for name in (own, usual) if name in table.columns), None)
    if found is None:
        hint = "; name the columns in the first line" if not table.header else nearest(own, table.columns)
        raise UserError(f"{option} {table.path}: no column '{own}'{hint}   available: {', '.join(table.columns)}")
    return found


def refuse_numbers_as_names(table: Table) -> None:
    """Raise :class:`UserError` if the first line mixes numbers and words, and so is neither a header nor a row."""
    numeric = [name for name in table.columns if parse_number(name) is not None]
    require(
        not numeric,
        f"{table.path}, line 1: {', '.join(table.columns)} mixes numbers and words; use either names or numbers",
    )
