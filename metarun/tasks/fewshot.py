"""Few-shot classification over any set of labelled examples: episodes are gathers from one tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.errors import require
from metarun.tasks.base import EpisodeShape, Labelled, Spec, Task, TaskBatch
from metarun.tasks.rng import choose, permutation, uniforms
from metarun.types import SPLITS, Split

MANY = 0.01
"""Share of identical examples from which on a user is told that scores are too good."""


@dataclass
class ClassData:
    """Examples sorted by class.

    ``x`` [N, ...]: class c owns rows ``offsets[c]:offsets[c + 1]``; ``offsets`` [C + 1]; ``names`` [C].
    """

    x: Tensor
    offsets: np.ndarray
    names: list[str]

    @property
    def sizes(self) -> np.ndarray:
        """[C] examples a class."""
        return np.diff(self.offsets)


class FewShot(Task):
    """N-way K-shot episodes: ``way`` classes, each with ``shot`` support and ``query`` query examples.

    Without query examples (0) an episode is an optimisation problem: learners are judged on the support set itself.
    A family loads its data and calls ``super().__init__``; everything else is here. Labels are
    0..way-1 in the order drawn, and rows are ordered by label, then by example.
    """

    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"

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
        input_shape: tuple[int, ...] | None = None,
        name: str = "",
    ) -> None:
        """``classes[split]``: indices into ``data``; ``test_ways``: further ways to test at the same shot."""
        self.data = data
        self.classes = {split: np.asarray(ids, dtype=np.int64) for split, ids in classes.items()}
        self.seed = seed
        self.shape: EpisodeShape = EpisodeShape(way, shot, query)
        self.test_ways = tuple(test_ways)
        self.name = name or type(self).__name__
        shape = tuple(data.x.shape[1:]) if input_shape is None else input_shape
        self.spec = Spec("classification", self.modality, shape, way, train_classes=len(self.classes["train"]))
        for split in self.classes:
            self.check(split, self.shape)
        for other in self.test_ways:
            self.check("test", self.shape.changed(way=other))

    def check(self, split: Split, shape: EpisodeShape) -> None:
        ids = self.classes[split]
        require(shape.way >= 2, f"task.way={shape.way}: an episode needs at least 2 classes")
        require(
            shape.way <= len(ids),
            f"way={shape.way} is more than the {len(ids)} classes of the '{split}' split of {self.name}; "
            f"the largest possible is {len(ids)}",
        )
        sizes = self.data.sizes[ids]
        smallest = int(sizes.min())
        require(
            shape.shot + shape.query <= smallest,
            f"shot={shape.shot} + query={shape.query} is more than the {smallest} examples of class "
            f"'{self.data.names[ids[sizes.argmin()]]}', the smallest of the '{split}' split of {self.name}",
        )

    def to(self, device: torch.device) -> FewShot:
        self.device = device
        self.data = replace(self.data, x=self.data.x.to(device))
        return self

    def rows(self, split: Split, indices: Sequence[int], shape: EpisodeShape) -> tuple[np.ndarray, np.ndarray]:
        """Which classes [T, way] and which rows of the data [T, way, shot + query] make up the episodes."""
        drawn, per_class = self.draw(split, indices, shape.way), shape.shot + shape.query
        u = uniforms(self.seed, split, indices, shape.way * per_class, stream=1).reshape(-1, per_class)
        example = choose(u, self.data.sizes[drawn].reshape(-1)).reshape(len(indices), shape.way, per_class)
        return drawn, self.data.offsets[drawn][..., None] + example

    def draw(self, split: Split, indices: Sequence[int], way: int) -> np.ndarray:
        """The classes of each episode, in label order: [T, way] distinct ids of the split."""
        ids = self.classes[split]
        return ids[choose(uniforms(self.seed, split, indices, way), len(ids))]

    def numbers(self, split: Split, drawn: np.ndarray) -> np.ndarray:
        """Which of the split's classes, 0..C-1, each of the ids ``drawn`` is."""
        order = self.classes[split].argsort()
        return order[np.searchsorted(self.classes[split], drawn, sorter=order)]

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        drawn, rows = self.rows(split, indices, shape)
        tasks = len(indices)
        support, query = np.split(rows, [shape.shot], axis=2)
        labels, way = torch.arange(shape.way, device=self.device)[None, :, None], shape.way
        if shape.named:
            labels = torch.from_numpy(self.numbers(split, drawn)).to(self.device)[..., None]
            way = len(self.classes[split])

        def gather(part: np.ndarray) -> Labelled:
            index = torch.from_numpy(part.reshape(tasks, -1)).to(self.device)
            y = labels.expand(tasks, -1, part.shape[2]).reshape(tasks, -1)
            return Labelled(self.examples(index), y, way)

        learned = gather(support)
        return TaskBatch(learned, gather(query) if shape.query else learned)

    def examples(self, index: Tensor) -> Tensor:
        """Model inputs for rows ``index`` [T, N] of the data: [T, N, ...]."""
        return self.data.x[index]

    def contents(self) -> Sequence[Hashable]:
        """For each example a value that only an identical one has."""
        return [hash(row.tobytes()) for row in self.data.x.cpu().numpy()]

    def remarks(self) -> list[str]:
        """How many examples have an identical one in their class, which can be support and query of one episode, or in
        another split, which is then not held out."""
        contents, offsets = self.contents(), self.data.offsets
        splits: dict[Hashable, set[Split]] = {}
        repeated = 0
        for split, classes in self.classes.items():
            for c in classes:
                counts = Counter(contents[offsets[c] : offsets[c + 1]])
                repeated += sum(count for count in counts.values() if count > 1)
                for content in counts:
                    splits.setdefault(content, set()).add(split)
        found = []
        if repeated:
            share = repeated / len(contents)
            flattering = "; scores are too good" if share >= MANY else ""
            found.append(
                f"{self.name}: {repeated} of {len(contents)} examples have an identical one in their class "
                f"({100 * share:.2g} %): an episode can ask for an example that is in its support set{flattering}"
            )
        shared = sum("test" in homes and len(homes) > 1 for homes in splits.values())
        if shared and self.held_out_val:
            found.append(f"{self.name}: examples of the test classes that are also in other splits: {shared}")
        return found

    def variants(self) -> dict[str, EpisodeShape | None]:
        shapes: dict[str, EpisodeShape | None] = {"": self.shape}
        for way in self.test_ways:
            if way != self.shape.way:
                shapes[f"_{way}way"] = self.shape.changed(way=way)
        return shapes

    def protocol(self) -> dict[str, Any]:
        return {
            "data": self.name,
            "way": self.shape.way,
            "shot": self.shape.shot,
            "query": self.shape.query,
            "classes": {split: len(ids) for split, ids in self.classes.items()},
        }


def split_classes(groups: Sequence[int] | np.ndarray, *, val: float, test: float, seed: int) -> dict[Split, np.ndarray]:
    """Class ids of three splits: about ``val`` and ``test`` of all classes, the rest to train.

    ``groups`` [C] names each class's group, and a group stays whole (``range(C)``: every class for itself).
    Groups come in a seeded order and go to test, then val, while they fit: neither gets more than its share.
    """
    require(val + test < 1, f"task.val={val} + task.test={test} leave no classes to meta-train on")
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    home = np.zeros(len(sizes), dtype=np.int64)
    room = {2: round(test * len(group)), 1: round(val * len(group))}
    for g in permutation(seed, len(sizes)):
        home[g] = next((split for split, left in room.items() if sizes[g] <= left), 0)
        if home[g]:
            room[home[g]] -= sizes[g]
    return {split: np.flatnonzero(home[group] == i) for i, split in enumerate(SPLITS)}
