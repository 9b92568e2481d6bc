"""Support sets and queries read from the user's folders and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metarun.adapted.source import Labels, Source, with_classes
from metarun.adapted.table_sources import table_queries, table_support
from metarun.errors import UserError, listed, nearest, nearest_path, require
from metarun.tasks import parquet
from metarun.tasks.inputs import Inputs
from metarun.tasks.tables import TABLES, Table, parse_number, read_table
from metarun.tasks.vision.folder import by_folder
from metarun.tasks.vision.images import ENDINGS, is_clutter, is_image
from metarun.tasks.vision.sources import listing
from metarun.tasks.vision.stored_images import images

NAMED = 3


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
        return table_support(inputs, table, target)
    if spec.modality == "text":
        text = column_of(table, option, inputs.columns["text"], "text")
        label = column_of(table, option, target or inputs.columns["label"], target or "label")
        texts, labels = table.texts(text), table.texts(label, "a class")
        return Source(texts, labels, [table.summary([text, label])], label=target)
    refuse_target(target, "of numbers, the last columns are the targets")
    count, outputs = spec.input_shape[0], spec.output_size
    require(
        len(table.columns) == count + outputs,
        f"{option} {path}: has the columns {listed(table.columns)}; the learner needs "
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
        return table_queries(inputs, table, classes, given, labels)
    if inputs.spec.modality == "text":
        return _text_queries(inputs, table, classes, given, labels)
    return _number_queries(inputs, table, given, labels)


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
    return with_classes(Source(files, notes=notes), folders, where, classes, labels, "folders")


def _stored_queries(path: Path, classes: Sequence[str], given: Source, labels: Labels) -> Source:
    label, found = parquet.labels(path, given.label, required=labels == "labelled")
    items = list(images(path))
    require(bool(items), f"--query {path}: holds no rows")
    source = Source(list(items), notes=[f"{len(items)} images"])
    return with_classes(source, found, [str(item) for item in items], classes, labels, f"column '{label}'")


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
    return with_classes(source, found, [where for where, _ in table.rows], classes, labels, f"column '{label}'")


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
                f"{listed(table.columns)}"
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
        raise UserError(f"{option} {table.path}: no column '{own}'{hint}   available: {listed(table.columns)}")
    return found


def refuse_numbers_as_names(table: Table) -> None:
    """Raise :class:`UserError` if the first line mixes numbers and words, and so is neither a header nor a row."""
    numeric = [name for name in table.columns if parse_number(name) is not None]
    require(
        not numeric,
        f"{table.path}, line 1: {listed(table.columns)} mixes numbers and words; use either names or numbers",
    )
