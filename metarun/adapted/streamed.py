"""Predictions for inputs of any number, written to a CSV file while they are read."""

from __future__ import annotations

import csv
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.predictions import Predictions
from metarun.adapted.source import Source
from metarun.adapted.sources import query
from metarun.errors import UserError, require
from metarun.escape import for_csv
from metarun.progress import Progress
from metarun.tasks import parquet
from metarun.tasks.files import cpus
from metarun.tasks.tables import decoded
from metarun.tasks.vision.images import ENDINGS, StoredImage, is_clutter, is_image
from metarun.tasks.vision.stored_images import images

log = logging.getLogger("metarun")

CHUNK = 128
"""Number of inputs that are read, predicted and written at once."""
NAMED = 5
"""Number of unreadable images whose reason is kept."""
NAMES = {"image": "file", "text": "text"}
"""Name of the column of the inputs, by modality; ``input`` for others."""


class PredictionsFile:
    """A CSV file of predictions, a row for each input, that is written row by row. It is a context manager.

    Args:
        path: The file.
        learner: The adapted learner.
        known: If true, there is a column of the targets.

    Raises:
        UserError: The file cannot be written.
    """

    def __init__(self, path: Path, learner: AdaptedLearner, known: bool = False) -> None:
        self._classes, self._abstain = learner.classes, learner.abstain
        outputs = [f"p_{name}" for name in learner.classes]
        if not learner.classes:
            outputs = [f"predicted_{i}" for i in range(learner.support.y.shape[-1])]
        self._width = len(outputs)
        try:
            self._file = path.open("w", newline="", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None
        self._writer = csv.writer(self._file)
        first = NAMES.get(learner.inputs.spec.modality, "input")
        predicted = ["predicted"] if learner.classes else []
        self._write([first, *(["known"] if known else []), *predicted, *outputs])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, names: Sequence[str], predictions: Predictions, targets: Sequence[str] = ()) -> None:
        """Write inputs with their predictions.

        The predicted class is empty if its probability is below the learner's threshold.

        Args:
            names: Name of each input.
            predictions: Their predictions.
            targets: Target of each input; empty if the file has no column for it.
        """
        if self._classes:
            labels = predictions.labels
            if self._abstain is not None:
                confident = predictions.confident(self._abstain)
                labels = [label if sure else "" for label, sure in zip(labels, confident, strict=True)]
            rows = zip(labels, predictions.probabilities.tolist(), strict=True)
            found = [[label, *(f"{p:.6g}" for p in row)] for label, row in rows]
        else:
            found = [[f"{value:.8g}" for value in row] for row in predictions.values.tolist()]
        known = [[target] for target in targets] or [[] for _ in found]
        for name, target, prediction in zip(names, known, found, strict=True):
            self._write([name, *target, *prediction])
        self._file.flush()

    def add_empty(self, name: str) -> None:
        """Write an input that could not be read, without a prediction."""
        self._write([name, *([""] if self._classes else []), *[""] * self._width])

    def _write(self, row: Sequence[Any]) -> None:
        self._writer.writerow(map(for_csv, row))


@dataclass
class Outcome:
    """Numbers of predictions.

    Attributes:
        predicted: Number of predicted inputs.
        abstained: Number of those that got no class, because its probability is too low.
        unread: Number of images that could not be read.
        reasons: Messages on the first of these.
    """

    predicted: int = 0
    abstained: int = 0
    unread: int = 0
    reasons: list[str] = field(default_factory=list)


def predict_to_file(learner: AdaptedLearner, path: Path, file: Path) -> Outcome:
    """Predict the inputs at a path with a progress line, and write a row for each.

    Args:
        learner: The adapted learner.
        path: An image, a parquet file or a folder of images, at any depth, which are not all held in memory; or a
            table, or a file with a text on each line.
        file: CSV file for the predictions.

    Raises:
        UserError: There is nothing to predict, or a file cannot be read or written.
    """
    if learner.inputs.spec.modality != "image":
        return _predict_table(learner, path, file)
    total, files = find_images(path)
    require(total > 0, f"--query {path}: no images ({', '.join(ending[1:] for ending in ENDINGS)})")
    outcome = Outcome()
    with PredictionsFile(file, learner) as table, Progress("predicting", total, "images", summary=True) as progress:
        for names, predictions, unread in predict_images(learner, files):
            if predictions is not None:
                table.add([str(name) for name in names], predictions)
                _count(outcome, learner, predictions)
            for name, reason in unread:
                table.add_empty(str(name))
                outcome.unread += 1
                outcome.reasons = [*outcome.reasons, reason][:NAMED]
            progress.update(len(names) + len(unread))
    return outcome


def _predict_table(learner: AdaptedLearner, path: Path, file: Path) -> Outcome:
    """Predict the rows of a table, or the lines of a text file."""
    source, outcome = read_rows(learner, path), Outcome()
    names = source.names()
    with PredictionsFile(file, learner) as table, Progress("predicting", len(names), "rows", summary=True) as progress:
        for first in range(0, len(names), CHUNK):
            predictions = learner.predict(source.items[first : first + CHUNK])
            table.add(names[first : first + CHUNK], predictions)
            _count(outcome, learner, predictions)
            progress.update(min(CHUNK, len(names) - first))
    return outcome


def read_rows(learner: AdaptedLearner, path: Path) -> Source:
    """Read the rows of a table, or the lines of a text file, by the columns of the support set."""
    if learner.inputs.spec.modality == "text" and path.suffix.lower() == ".txt" and path.is_file():
        lines = [line for line in decoded(path)[0].splitlines() if line.strip()]
        require(bool(lines), f"--query {path}: has no lines")
        return Source(lines)
    columns = learner.columns
    require(
        learner.inputs.spec.modality != "table" or columns is not None,
        "this learner was saved before learners kept the columns of their tables; `metarun adapt` again",
    )
    given = Source([])
    if columns is not None:
        given = Source([], columns=(columns.inputs, columns.targets), encoding=columns.encoding)
    source = query(learner.inputs, path, learner.classes, given, "unlabelled")
    log.info("query: %s", "; ".join(source.notes))
    return source


def _count(outcome: Outcome, learner: AdaptedLearner, predictions: Predictions) -> None:
    outcome.predicted += len(predictions.probabilities)
    if learner.abstain is not None:
        outcome.abstained += predictions.confident(learner.abstain).count(False)


def find_images(path: Path) -> tuple[int, Iterator[Path | StoredImage]]:
    """Return the number of images at a path, a file, a parquet file or a folder, and an iterator over them."""
    if path.is_dir():
        return sum(1 for _ in walk_images(path)), walk_images(path)
    if path.suffix.lower() == parquet.ENDING:
        return parquet.open_parquet(path).metadata.num_rows, images(path, limit=None)
    kinds = ", ".join(ending[1:] for ending in ENDINGS)
    require(
        not path.suffix or is_image(path.name),
        f"--query {path}: this learner reads images: a folder, a parquet file, or one of {kinds}",
    )
    return 1, iter([path])


def walk_images(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder, each folder's in the order of their names. Links to folders are not followed."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda each: each.name)
    for each in entries:
        if is_clutter(each.name):
            continue
        if each.is_dir(follow_symlinks=False):
            yield from walk_images(Path(each.path))
        elif is_image(each.name) and each.is_file():
            yield Path(each.path)


def predict_images(
    learner: AdaptedLearner, files: Iterable[Path | StoredImage]
) -> Iterator[tuple[list[Path | StoredImage], Predictions | None, list[tuple[Path | StoredImage, str]]]]:
    """Predict image files in chunks. Files are read in threads while earlier ones are predicted.

    Args:
        learner: The adapted learner.
        files: The files. Few of them are held in memory.

    Yields:
        The files of a chunk that could be read with their predictions (``None`` without files), and those that could
        not, each with the reason.
    """
    with ThreadPoolExecutor(cpus()) as pool:
        waiting: deque[list[tuple[Path | StoredImage, Future[Tensor | str]]]] = deque()
        remaining = iter(files)
        while True:
            while len(waiting) < 2 and (chunk := list(islice(remaining, CHUNK))):
                waiting.append([(file, pool.submit(_read, learner, file)) for file in chunk])
            if not waiting:
                return
            found = [(file, job.result()) for file, job in waiting.popleft()]
            good = [(file, each) for file, each in found if isinstance(each, Tensor)]
            unread = [(file, each) for file, each in found if isinstance(each, str)]
            pixels = [each for _, each in good]
            predictions = learner.predict_prepared(learner.embed(torch.cat(pixels))) if good else None
            yield [file for file, _ in good], predictions, unread


def _read(learner: AdaptedLearner, file: Path | StoredImage) -> Tensor | str:
    """Return an image as a tensor [1, C, H, W], or the message that it cannot be read."""
    try:
        return learner.inputs.raw(file, None)
    except UserError as error:
        return str(error)
