"""Support sets and queries from the user's folders and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarun.errors import UserError, nearest, require
from metarun.tasks.base import Spec
from metarun.tasks.nlp.text import read
from metarun.tasks.vision.folder import ENDINGS, list_classes


@dataclass
class Source:
    """Inputs, with their targets where these are known."""

    items: list[Any]
    """Paths of images, texts, or rows of numbers."""
    targets: list[Any] = field(default_factory=list)
    """A class name each, or a row of numbers each; empty where the source has none."""

    def names(self) -> list[str]:
        """What each input is called in a table."""
        return [str(item) if not isinstance(item, list) else " ".join(f"{v:g}" for v in item) for item in self.items]


def support(spec: Spec, path: Path) -> Source:
    """What to adapt to: a folder of one folder of images a class; a table of ``text`` and ``label``; a table of
    inputs, then targets, in columns. Raises :class:`UserError` for what is missing in it."""
    require(path.exists(), f"--support {path}: no such file or folder")
    if spec.modality == "image":
        require(path.is_dir(), f"--support {path}: give a folder that holds one folder of images a class")
        found = list_classes(path)
        return Source([f for files in found.values() for f in files], [c for c, files in found.items() for _ in files])
    table = Table.of("--support", path)
    if spec.modality == "text":
        return Source(table.texts("text"), table.texts("label"))
    inputs, outputs = spec.input_shape[0], spec.output_size
    require(
        len(table.columns) >= inputs + outputs,
        f"--support {path}: {len(table.columns)} columns; the learner needs {inputs} of inputs, "
        f"then {outputs} of targets",
    )
    rows = table.numbers(table.columns[: inputs + outputs])
    return Source([row[:inputs] for row in rows], [row[inputs:] for row in rows])


def query(spec: Spec, path: Path, classes: Sequence[str]) -> Source:
    """What to predict, in the same forms; targets are optional.

    Images: one file, or a folder with whatever lies below it; in folders named as the ``classes``, these are the
    targets. Texts: a table with ``text`` and perhaps ``label``. Numbers: inputs and perhaps targets.
    """
    require(path.exists(), f"--query {path}: no such file or folder")
    if spec.modality == "image":
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if _is_image(f, path))
        require(bool(files), f"--query {path}: no images ({', '.join(e[1:] for e in ENDINGS)})")
        known = [f.parent.name for f in files]
        return Source(files, known if set(known) <= set(classes) else [])
    table = Table.of("--query", path)
    if spec.modality == "text":
        labels = table.texts("label") if "label" in table.columns else []
        return Source(table.texts("text"), labels)
    inputs, outputs = spec.input_shape[0], spec.output_size
    require(
        len(table.columns) >= inputs,
        f"--query {path}: {len(table.columns)} columns; the learner needs {inputs} of inputs",
    )
    whole = len(table.columns) >= inputs + outputs
    rows = table.numbers(table.columns[: inputs + outputs if whole else inputs])
    return Source([row[:inputs] for row in rows], [row[inputs:] for row in rows] if whole else [])


def _is_image(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.suffix.lower() in ENDINGS and not hidden and file.is_file()


@dataclass
class Table:
    """A .csv, .tsv or .jsonl file."""

    option: str
    path: Path
    columns: list[str]
    rows: list[tuple[int, dict[str, Any]]]
    """Line numbers and values."""

    @classmethod
    def of(cls, option: str, path: Path) -> Table:
        require(path.is_file(), f"{option} {path}: give a .csv, .tsv or .jsonl file")
        rows = list(read(path))
        require(bool(rows), f"{option} {path}: holds no rows below its header")
        return cls(option, path, list(rows[0][1]), rows)

    def texts(self, column: str) -> list[str]:
        """The values of ``column``, none empty."""
        if column not in self.columns:
            raise UserError(
                f"{self.option} {self.path}: no column '{column}'{nearest(column, self.columns)}   "
                f"there is {', '.join(self.columns)}"
            )
        values = []
        for number, row in self.rows:
            value = str(row.get(column, "")).strip()
            require(value != "", f"{self.path}, line {number}: '{column}' is empty")
            values.append(value)
        return values

    def numbers(self, columns: Sequence[str]) -> list[list[float]]:
        """The values of ``columns``, row by row."""
        values = []
        for number, row in self.rows:
            try:
                values.append([float(row[column]) for column in columns])
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{self.path}, line {number}: not a number in each of {', '.join(columns)}") from None
        return values
