"""Few-shot classification over any set of labelled examples: episodes are gathers from one tensor."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.errors import UserError, require
from metarun.tasks.base import Task
from metarun.tasks.class_data import ClassData
from metarun.tasks.duplicates import MAX_COMPARED_BYTES, duplicate_remarks
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.record import DataRecord
from metarun.tasks.rng import choose, uniforms
from metarun.tasks.to_device import to_device
from metarun.tasks.varied import VariedEpisodes, composition, varied_batch
from metarun.types import Episodes, Split


class DoesNotFit(UserError):
    """An episode needs more classes or examples than the data have.

    Args:
        message: The error message.
        why: The reason as a clause, such as ``'val' has 3 classes``.
        limit: Largest possible sum of ``parts``.
        parts: Fields of the episode shape that add up to more than ``limit``; the first is the first to lower.
    """

    def __init__(self, message: str, why: str, limit: int, *parts: str) -> None:
        super().__init__(message)
        self.why, self.limit, self.parts = why, limit, parts


def check_test_ways(task: Task, shape: EpisodeShape, ways: Sequence[int]) -> None:
    """Raise :class:`DoesNotFit`, naming ``task.test_ways``, unless test episodes of ``shape`` fit in each way."""
    for way in ways:
        try:
            task.check("test", shape.changed(way=way))
        except DoesNotFit as error:
            message = f"task.test_ways={list(ways)}: {error}"
            raise DoesNotFit(message, error.why, error.limit, "test_ways") from None


class FewShot(Task):
    """N-way K-shot episodes over labelled examples.

    An episode has ``way`` classes, each with ``shot`` support and ``query`` query examples. Labels are 0..way-1 in the
    order drawn, and rows are ordered by label, then by example. With ``query=0`` an episode is an optimisation problem:
    the query set is the support set.

    With ``episodes="varied"`` way and shots are drawn for each episode
    (:class:`~metarun.tasks.varied.VariedEpisodes`).

    An evaluated episode can have queries of ``unknown`` further classes. The rest of the episode is the same to the bit
    as without them.

    A subclass loads its data, calls ``super().__init__`` and usually overrides :meth:`protocol`.

    Attributes:
        remedy_for_few_classes: Clause that an error about too few classes ends with. It names the keys of the family to
            change.
        remedy_for_small_classes: The same for classes with too few examples.
        sampling: Limits of varied episodes.
    """

    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"
    remedy_for_few_classes: str = ""
    remedy_for_small_classes: str = ""
    sampling: VariedEpisodes = VariedEpisodes()

    def __init__(
        self,
        data: ClassData,
        classes: Mapping[Split, Sequence[int]],
        *,
        seed: int,
        way: int,
        shot: int,
        query: int,
        test_ways: Sequence[int] = (),
        unknown: int = 0,
        episodes: Episodes = "balanced",
        outside: Mapping[Split, np.ndarray] | None = None,
        input_shape: tuple[int, ...] | None = None,
        name: str = "",
    ) -> None:
        """Build the family.

        Args:
            data: All examples, sorted by class.
            classes: Indices into ``data.names`` of each split's classes.
            seed: Seed of the episodes.
            way: Classes of an episode.
            shot: Support examples of a class.
            query: Query examples of a class.
            test_ways: Further ways to test at the same shot.
            unknown: Classes of an evaluated episode that are not in its support set and have as many queries as others.
            episodes: ``balanced``: ``way`` classes of ``shot`` support examples. ``varied``: drawn as in Meta-Dataset;
                ``test_ways`` and meta-training with an ``algorithm.train_way`` of its own stay balanced.
            outside: Rows of ``data`` of each split, of classes in no split, from which all unknown queries are drawn.
                Default: unknown queries are of other classes of the split.
            input_shape: Shape of one model input; that of ``data.x`` if omitted.
            name: Name of the data in messages and results; the class's name if omitted.

        Raises:
            UserError: A split has too few classes, or a class too few examples.
        """
        self.data = data
        self.classes = {split: np.asarray(ids, dtype=np.int64) for split, ids in classes.items()}
        self.seed = seed
        self.shape: EpisodeShape = EpisodeShape(way, shot, query, unknown=unknown, varied=episodes == "varied")
        self.outside = outside
        self.test_ways = tuple(test_ways)
        self.name = name or type(self).__name__
        shape = tuple(data.x.shape[1:]) if input_shape is None else input_shape
        self.spec = Spec("classification", self.modality, shape, way, train_classes=len(self.classes["train"]))
        self._check_shapes()

    def _check_shapes(self) -> None:
        """Check the family's own episode shapes; errors name the family's keys."""
        try:
            for split in self.classes:
                self.check(split, self.shape if split != "train" else replace(self.shape, unknown=0))
        except DoesNotFit as error:
            raise DoesNotFit(f"task.{error}", error.why, error.limit, *error.parts) from None
        check_test_ways(self, self.shape, self.test_ways)

    def check(self, split: Split, shape: EpisodeShape) -> None:
        ids = self.classes[split]
        if shape.varied:
            least = self.sampling.min_way + (0 if self.outside else shape.unknown)
            require(
                len(ids) >= least,
                f"task.episodes=varied needs {least} classes; the '{split}' split of {self.name} has {len(ids)}",
            )
            sizes = self.data.sizes[ids]
            require(
                int(sizes.min()) >= 2,
                "task.episodes=varied needs 2 examples of each class; "
                f"class '{self.data.names[ids[sizes.argmin()]]}' has 1",
            )
            return
        require(shape.way >= 2, f"task.way={shape.way}: an episode needs at least 2 classes")
        most = len(ids) - (0 if self.outside else shape.unknown)
        if shape.unknown and shape.way > most:
            raise DoesNotFit(
                f"way={shape.way} + unknown={shape.unknown} is more than the {len(ids)} classes of the '{split}' split "
                f"of {self.name}{self.remedy_for_few_classes}",
                f"'{split}' has {len(ids)} classes, {shape.unknown} of them unknown",
                most,
                "way",
            )
        if shape.way > len(ids):
            raise DoesNotFit(
                f"way={shape.way} is more than the {len(ids)} classes of the '{split}' split of {self.name}; "
                f"the largest possible is {len(ids)}{self.remedy_for_few_classes}",
                f"'{split}' has {len(ids)} classes",
                len(ids),
                "way",
            )
        sizes = self.data.sizes[ids]
        smallest, name = int(sizes.min()), self.data.names[ids[sizes.argmin()]]
        if shape.shot + shape.query > smallest:
            raise DoesNotFit(
                f"shot={shape.shot} + query={shape.query} is more than the {smallest} examples of class '{name}', "
                f"the smallest of the '{split}' split of {self.name}{self.remedy_for_small_classes}",
                f"class '{name}' has {smallest} examples",
                smallest,
                *(("query", "shot") if shape.query else ("shot",)),
            )
        if self.outside and shape.unknown * (shape.query or shape.shot) > len(self.outside[split]):
            raise UserError(
                f"unknown={shape.unknown} times {shape.query or shape.shot} queries is more than the "
                f"{len(self.outside[split])} examples outside the classes of the '{split}' split of {self.name}"
            )

    def to(self, device: torch.device) -> FewShot:
        self.device = device
        self.data = self.data.to(device)
        return self

    def rows(self, split: Split, indices: Sequence[int], shape: EpisodeShape) -> tuple[np.ndarray, np.ndarray]:
        """Choose the examples of episodes.

        Args:
            split: ``train``, ``val`` or ``test``.
            indices: Numbers of the T tasks.
            shape: Size of the episodes.

        Returns:
            The classes [T, way], and the rows of the data [T, way, shot + query].
        """
        drawn, per_class = self.draw(split, indices, shape.way), shape.shot + shape.query
        u = uniforms(self.seed, split, indices, shape.way * per_class, stream=1).reshape(-1, per_class)
        example = choose(u, self.data.sizes[drawn].reshape(-1)).reshape(len(indices), shape.way, per_class)
        return drawn, self.data.offsets[drawn][..., None] + example

    def unknown_rows(self, split: Split, indices: Sequence[int], shape: EpisodeShape) -> np.ndarray:
        """Choose the unknown queries of episodes.

        Args:
            split: ``train``, ``val`` or ``test``.
            indices: Numbers of the T tasks.
            shape: Size of the episodes.

        Returns:
            Rows of the data, [T, unknown * queries of a class].
        """
        each, tasks = shape.query or shape.shot, len(indices)
        u = uniforms(self.seed, split, indices, shape.unknown * each, stream=6)
        if self.outside:
            return self.outside[split][choose(u, len(self.outside[split]))]
        drawn = self.draw(split, indices, shape.way + shape.unknown)[:, shape.way :]
        example = choose(u.reshape(-1, each), self.data.sizes[drawn].reshape(-1)).reshape(tasks, shape.unknown, each)
        return (self.data.offsets[drawn][..., None] + example).reshape(tasks, -1)

    def draw(self, split: Split, indices: Sequence[int], way: int) -> np.ndarray:
        """Draw the classes of episodes.

        Args:
            split: ``train``, ``val`` or ``test``.
            indices: Numbers of the T tasks.
            way: Number of classes of an episode.

        Returns:
            Distinct class ids of the split in the order of their labels, [T, way].
        """
        ids = self.classes[split]
        return ids[choose(uniforms(self.seed, split, indices, way), len(ids))]

    def numbers(self, split: Split, drawn: np.ndarray) -> np.ndarray:
        """Map class ids to their positions among the classes of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            drawn: Class ids, of any shape.

        Returns:
            Positions 0..C-1, of the shape of ``drawn``.
        """
        order = self.classes[split].argsort()
        return order[np.searchsorted(self.classes[split], drawn, sorter=order)]

    def batches(
        self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None
    ) -> Iterator[tuple[list[int] | slice, TaskBatch]]:
        shape = shape or self.shape
        if not shape.varied:
            yield from super().batches(split, indices, shape)
            return
        places: dict[tuple[int, ...], list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(composition(self, split, index, shape).sizes, []).append(place)
        for group in places.values():
            yield group, self.batch(split, [indices[place] for place in group], shape)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        if shape.varied:
            return varied_batch(self, split, indices, shape)
        drawn, rows = self.rows(split, indices, shape)
        tasks = len(indices)
        support, query = np.split(rows, [shape.shot], axis=2)
        labels, way = torch.arange(shape.way, device=self.device)[None, :, None], shape.way
        if shape.named:
            labels = to_device(self.numbers(split, drawn), self.device)[..., None]
            way = len(self.classes[split])

        def gather(part: np.ndarray) -> Labelled:
            index = to_device(part.reshape(tasks, -1), self.device)
            y = labels.expand(tasks, -1, part.shape[2]).reshape(tasks, -1)
            return Labelled(self.examples(index), y, way)

        learned, unknown = gather(support), None
        if shape.unknown:
            unknown = self.examples(to_device(self.unknown_rows(split, indices, shape), self.device))
        return TaskBatch(learned, gather(query) if shape.query else learned, unknown=unknown)

    def examples(self, index: Tensor) -> Tensor:
        """Return model inputs [T, N, ...].

        Args:
            index: Rows of the data, [T, N].
        """
        return self.data.x[index]

    def contents(self) -> Sequence[Hashable]:
        """Return one value for each example; identical examples have equal values."""
        return [hash(row.tobytes()) for row in self.data.x.cpu().numpy()]

    def remarks(self) -> list[str]:
        """Return notes on duplicates and their number.

        A duplicate within a class can be in the support and the query set of one episode. A duplicate in another split
        means that the test classes are not held out.
        """
        size = self.data.x.numel() * self.data.x.element_size()
        if size > MAX_COMPARED_BYTES:
            return [f"{self.name}: {size / 1e9:.1f} GB of data were not searched for duplicates"]
        return duplicate_remarks(self.name, self.contents(), self.data.offsets, self.classes, self.held_out_val)

    def variants(self) -> dict[str, EpisodeShape | None]:
        shapes: dict[str, EpisodeShape | None] = {"": self.shape}
        for way in self.test_ways:
            if way != self.shape.way:
                shapes[f"_{way}way"] = self.shape.changed(way=way)
        return shapes

    def record(self) -> DataRecord:
        names, digests = self.data.names, self.data.digests
        classes = {split: [names[c] for c in ids] for split, ids in self.classes.items()}
        return DataRecord(classes, dict(zip(names, digests, strict=True)) if digests else {}, list(self.data.places))

    def class_names(self) -> Sequence[str]:
        return self.data.names

    def keep_classes(self, classes: Mapping[Split, Sequence[str]]) -> None:
        number = {name: i for i, name in enumerate(self.data.names)}
        self.classes = {split: np.array([number[name] for name in names]) for split, names in classes.items()}
        self.spec = replace(self.spec, train_classes=len(self.classes["train"]))
        self._check_shapes()

    def protocol(self) -> dict[str, Any]:
        shape = {"way": self.shape.way, "shot": self.shape.shot, "query": self.shape.query}
        return {
            "data": self.name,
            **(self.sampling.protocol() if self.shape.varied else shape),
            **({"unknown": self.shape.unknown} if self.shape.unknown else {}),
            "classes": {split: len(ids) for split, ids in self.classes.items()},
        }
