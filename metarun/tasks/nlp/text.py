"""Few-shot classification of the user's own texts: a CSV or JSONL file of text and label."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metarun.errors import UserError, nearest, require
from metarun.tasks.fewshot import split_classes
from metarun.tasks.nlp.base import TextFewShot, by_class
from metarun.types import SPLITS, Fraction, Positive, Split

Row = tuple[int, dict[str, Any]]
"""A line's number and its values by column."""


class Text(TextFewShot):
    """Texts and labels from ``file``: .csv or .tsv with a header, or .jsonl with an object a line.

    ``text`` and ``label`` name the columns (keys). ``split`` names a column that says train, val or test, the
    same for all texts of a class; without it (null), fractions ``val`` and ``test`` of the classes are drawn
    with ``split_seed``. Classes of fewer than ``min_texts`` texts are left out. Raises
    :class:`~metarun.errors.UserError` for a missing file or column, a bad line (with its number), too few
    classes and too few texts of one.
    """

    def __init__(
        self,
        seed: int,
        *,
        file: str | None,
        text: str,
        label: str,
        split: str | None,
        way: Positive,
        shot: Positive,
        query: Positive,
        test_ways: Sequence[Positive],
        min_texts: Positive,
        val: Fraction,
        test: Fraction,
        split_seed: int,
    ) -> None:
        require(file is not None, "task.file is not set: name a .csv, .tsv or .jsonl file with texts")
        path = Path(str(file)).expanduser()
        require(path.is_file(), f"task.file={file}: {'not a file' if path.exists() else 'no such file'}")
        columns = {"text": text, "label": label, **({"split": split} if split else {})}
        labelled: list[tuple[str, str]] = []
        home: dict[str, Split] = {}
        for number, row in read(path):
            values = {key: _value(path, number, row, key, column) for key, column in columns.items()}
            labelled.append((values["text"], values["label"]))
            if split:
                _assign(path, number, home, values["label"], values["split"], split)
        # Sorted, so that the order of the file's rows decides nothing.
        examples = {name: sorted(texts) for name, texts in by_class(labelled).items() if len(texts) >= min_texts}
        what = f"task.file={file}"
        if min_texts > 1:
            what += f", with task.min_texts={min_texts},"
        require(len(examples) > 0, f"{what} holds no texts to use")
        if split:
            classes = {s: [i for i, name in enumerate(examples) if home[name] == s] for s in SPLITS}
            self.partition: dict[str, Any] = {"split": "own"}
            remedy = f"change task.way or the column '{split}'"
        else:
            drawn = split_classes(range(len(examples)), val=val, test=test, seed=split_seed)
            classes = {s: ids.tolist() for s, ids in drawn.items()}
            self.partition = {"split": "random", "split_seed": split_seed}
            remedy = f"change task.way, task.val={val} or task.test={test}, or add classes"
        for s, ids in classes.items():
            require(
                len(ids) >= max(way, 2),
                f"{what} has {len(examples)} classes, {len(ids)} of them for '{s}', fewer than "
                f"task.way={way}; {remedy}",
            )
        super().__init__(
            examples, classes, seed=seed, way=way, shot=shot, query=query, test_ways=test_ways, name=path.name
        )

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self.partition}


def read(path: Path, ending: str | None = None) -> Iterator[Row]:
    """The rows of a .csv, .tsv or .jsonl file, or of one that is to be read like such; empty lines are skipped."""
    kinds = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl}
    reader = kinds.get(ending or path.suffix.lower())
    if reader is None:
        raise UserError(f"task.file={path}: ends in '{path.suffix}'; allowed: {', '.join(kinds)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"task.file={path}: cannot be read ({error.strerror})") from None


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                require(
                    None not in row,
                    f"{path}, line {reader.line_num}: more values than the header has columns "
                    "(a text with a comma needs quotes)",
                )
                yield reader.line_num, {key: value for key, value in row.items() if value is not None}
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.reader.line_num}: {error}") from None


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error})") from None
            require(isinstance(row, dict), f"{path}, line {number}: not a JSON object")
            yield number, row


def _value(path: Path, number: int, row: dict[str, Any], key: str, column: str) -> str:
    """The value of ``column`` (named by ``task.<key>``) as a string that is not empty."""
    if column not in row:
        there = ", ".join(map(str, row)) or "nothing"
        raise UserError(
            f"{path}, line {number}: no column '{column}' (task.{key}); there is {there}{nearest(column, row)}"
        )
    value = row[column]
    require(
        isinstance(value, str | int) and str(value).strip() != "",
        f"{path}, line {number}: '{column}' is {value!r}, not a {'text' if key == 'text' else 'name'}",
    )
    return str(value).strip()


def _assign(path: Path, number: int, home: dict[str, Split], label: str, value: str, column: str) -> None:
    """Note that the class ``label`` belongs to split ``value``."""
    for split in SPLITS:
        if value == split:
            require(
                home.setdefault(label, split) == split,
                f"{path}, line {number}: class '{label}' is in '{split}' here and in '{home[label]}' above; "
                "the splits must share no class",
            )
            return
    raise UserError(f"{path}, line {number}: '{column}' is '{value}'; allowed: {', '.join(SPLITS)}")
