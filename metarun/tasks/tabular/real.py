"""Real tables as tasks: a folder of the user's files, and the data sets that come with scikit-learn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.errors import UserError, nearest, require
from metarun.extras import imported
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.rng import permutation, uniforms
from metarun.tasks.tables import TABLES, read_table
from metarun.tasks.tabular.cells import is_gap
from metarun.tasks.tabular.encoding import Encoding
from metarun.tasks.tabular.labels import first_of_each
from metarun.tasks.to_device import to_device
from metarun.types import DataPath, Fraction, Positive, Split

LEAST_ROWS = 10
"""Smallest number of rows of a table."""


@dataclass(frozen=True)
class RealTable:
    """A table with classes.

    Attributes:
        name: Name of the table.
        x: Columns as numbers [N, C]; NaN marks a gap.
        y: Classes 0..w-1, [N].
        notes: How its columns were read.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.int64]
    notes: str = ""


class RealTables(Task):
    """The base class of families of real tables, each of which is split into support and query rows several times.

    Tasks ``splits * i`` to ``splits * (i + 1) - 1`` are random splits of table i, so that intervals count a table as
    one. A subclass implements :meth:`load`.

    Args:
        seed: Seed of the splits.
        way: Largest number of classes, that of the learner; tables with more are left out.
        columns: Largest number of columns; tables with more are left out.
        shot: Largest number of support rows. At most two thirds of the rows of a table are support rows.
        query: Largest number of query rows.
        splits: Splits of each table.
        train: Share of the tables for meta-training.
        val: Share of the tables for meta-validation; the others are for the test.
    """

    kind: ClassVar[str] = "classification"
    modality: ClassVar[str] = "table"
    metric: ClassVar[str] = "auc"

    def __init__(
        self,
        seed: int,
        *,
        way: Positive,
        columns: Positive,
        shot: Positive,
        query: Positive,
        splits: Positive,
        train: Fraction,
        val: Fraction,
    ) -> None:
        require(train + val < 1, f"task.train={train} task.val={val}: no table is left for the test")
        self.seed, self.splits = seed, splits
        self.shape: EpisodeShape = EpisodeShape(way, shot, query)
        self.spec = Spec("classification", self.modality, (columns,), way)
        self.tested_together = splits
        self.left_out: list[str] = []
        tables = []
        for table in self.load():
            reason = unfit(table, way, columns)
            if reason:
                self.left_out.append(f"{table.name} is left out: {reason}")
            else:
                tables.append(table)
        require(bool(tables), f"there is no table to learn from: {'; '.join(self.left_out) or 'the folder holds none'}")
        order = permutation(seed, len(tables))
        ends = round(train * len(tables)), round((train + val) * len(tables))
        parts = {"train": order[: ends[0]], "val": order[ends[0] : ends[1]], "test": order[ends[1] :]}
        self.tables: dict[str, list[RealTable]] = {s: [tables[i] for i in sorted(part)] for s, part in parts.items()}

    @abstractmethod
    def load(self) -> list[RealTable]:
        """Return all tables, in a fixed order."""

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape, tables = shape or self.shape, self.tables[split]
        require(bool(tables), f"task.{split}=0: there is no table for the split {split}; give it a share of the tables")
        numbers = sorted({i // self.splits for i in indices})
        require(
            len(numbers) == 1,
            f"task.splits={self.splits}: tasks {min(indices)} to {max(indices)} of one batch are of different tables; "
            "choose runner.meta_batch and runner.eval_batch that divide it",
        )
        table = tables[numbers[0] % len(tables)]
        order = uniforms(self.seed, split, indices, len(table.y), stream=1).argsort(1)
        order = np.take_along_axis(order, first_of_each(table.y[order]), 1)
        shot = min(shape.shot, 2 * len(table.y) // 3)
        order = order[:, : shot + shape.query]
        x = to_device(table.x[order], self.device, torch.get_default_dtype())
        y = to_device(table.y[order], self.device)
        parts = slice(shot), slice(shot, None)
        return TaskBatch(*(Labelled(x[:, part], y[:, part], shape.way) for part in parts))

    def remarks(self) -> list[str]:
        read = [f"{table.name}: {table.notes}" for part in self.tables.values() for table in part if table.notes]
        return [*read, *self.left_out]

    def protocol(self) -> dict[str, Any]:
        return {
            "tables": [table.name for table in self.tables["test"]],
            "shot": f"at most {self.shape.shot} and two thirds of the rows",
            "query": f"at most {self.shape.query}",
            "splits": self.splits,
        }


class CsvTables(RealTables):
    """A folder of CSV, TSV, JSON or parquet files, each of which is a table. Types of columns are inferred, and logged.

    Args:
        seed: Seed of the splits.
        root: The folder.
        target: Name of the column of classes; ``null``: the last one.
        way: Largest number of classes, that of the learner; tables with more are left out.
        columns: Largest number of columns; tables with more are left out.
        shot: Largest number of support rows. At most two thirds of the rows of a table are support rows.
        query: Largest number of query rows.
        splits: Splits of each table.
        train: Share of the tables for meta-training.
        val: Share of the tables for meta-validation; the others are for the test.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: DataPath,
        target: str | None,
        way: Positive,
        columns: Positive,
        shot: Positive,
        query: Positive,
        splits: Positive,
        train: Fraction,
        val: Fraction,
    ) -> None:
        self.root, self.target = Path(root).expanduser(), target
        super().__init__(seed, way=way, columns=columns, shot=shot, query=query, splits=splits, train=train, val=val)

    def load(self) -> list[RealTable]:
        require(self.root.is_dir(), f"task.root={self.root}: give a folder of tables ({', '.join(TABLES)})")
        files = sorted(file for file in self.root.iterdir() if file.suffix.lower() in TABLES)
        return [table for file in files if (table := self._read(file)) is not None]

    def _read(self, file: Path) -> RealTable | None:
        table = read_table(file)
        if not table.rows:
            self.left_out.append(f"{file.name} is left out: it has no rows")
            return None
        target = self.target or table.columns[-1]
        if target not in table.columns:
            raise UserError(f"task.target={target}: {file} has no such column{nearest(target, table.columns)}")
        rows = [(where, row) for where, row in table.rows if not is_gap(row.get(target))]
        if not rows:
            self.left_out.append(f"{file.name} is left out: '{target}' has no values")
            return None
        table = replace(table, rows=rows)
        try:
            encoding, notes = Encoding.of(table, target)
        except UserError as error:
            self.left_out.append(f"{file.name} is left out: {error}")
            return None
        x, gaps = encoding.rows(table)
        classes = sorted({str(row[target]).strip() for _, row in rows})
        y = np.array([classes.index(str(row[target]).strip()) for _, row in rows])
        return RealTable(file.stem, np.array(x), y, "; ".join([f"{target} from {notes[0]}", *notes[1:], *gaps[:1]]))


class SklearnTables(RealTables):
    """Data sets that come with scikit-learn: iris, wine, breast_cancer, digits.

    Args:
        seed: Seed of the splits.
        sets: Names of the data sets.
        way: Largest number of classes, that of the learner; tables with more are left out.
        columns: Largest number of columns; tables with more are left out.
        shot: Largest number of support rows. At most two thirds of the rows of a table are support rows.
        query: Largest number of query rows.
        splits: Splits of each table.
        train: Share of the tables for meta-training.
        val: Share of the tables for meta-validation; the others are for the test.
    """

    def __init__(
        self,
        seed: int,
        *,
        sets: Sequence[str],
        way: Positive,
        columns: Positive,
        shot: Positive,
        query: Positive,
        splits: Positive,
        train: Fraction,
        val: Fraction,
    ) -> None:
        self.sets = sets
        super().__init__(seed, way=way, columns=columns, shot=shot, query=query, splits=splits, train=train, val=val)

    def load(self) -> list[RealTable]:
        datasets = imported("sklearn.datasets", "task=tabular/sklearn", "tabular")
        known = ("iris", "wine", "breast_cancer", "digits")
        tables = []
        for name in self.sets:
            require(name in known, f"task.sets: '{name}' is none of {', '.join(known)}{nearest(name, known)}")
            found = getattr(datasets, f"load_{name}")()
            tables.append(RealTable(name, np.asarray(found.data, np.float64), np.asarray(found.target, np.int64)))
        return tables


def unfit(table: RealTable, way: int, columns: int) -> str | None:
    """Return why a table cannot be used, or ``None``."""
    classes = len(np.unique(table.y))
    if len(table.y) < max(LEAST_ROWS, 2 * classes):
        return f"{len(table.y)} rows"
    if not 2 <= classes <= way:
        return f"{classes} classes, and 2 to {way} can be learned (task.way)"
    if table.x.shape[1] > columns:
        return f"{table.x.shape[1]} columns, and at most {columns} are taken (task.columns)"
    return None
