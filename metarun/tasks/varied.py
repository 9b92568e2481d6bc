"""Episodes of varied way, shot and class sizes, sampled as in Meta-Dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import require
from metarun.tasks.class_data import ClassData
from metarun.tasks.episode import EpisodeShape, Labelled, TaskBatch
from metarun.tasks.rng import choose, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Split

Draw = Callable[[int], NDArray[np.int64]]
"""A function from a number of classes to the examples that each of as many drawn classes has; a larger number only
appends classes."""


@dataclass(frozen=True)
class Composition:
    """The sizes of one episode.

    Attributes:
        support: Support examples of each class, [way].
        query: Query examples of each class.
        unknown: Query examples of each unknown class.
    """

    support: NDArray[np.int64]
    query: int
    unknown: int = 0

    @property
    def way(self) -> int:
        return len(self.support)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Way, and numbers of support examples, queries of a class and unknown queries of a class. Tasks that agree in
        them can be one batch."""
        return self.way, int(self.support.sum()), self.query, self.unknown


@dataclass(frozen=True)
class VariedEpisodes:
    """The sampling of Meta-Dataset (Triantafillou et al. 2020, arXiv:1903.03096, section 3.2 and its appendix).

    The limits and the rounding are those of the authors' code (google-research/meta-dataset, data/sampling.py and its
    configuration). For an episode on a split of C classes:

    1. The way is uniform in ``min_way`` .. min(``max_way``, C), and that many classes are drawn uniformly. The authors
       draw Omniglot's classes within an alphabet and ImageNet's within a subtree of WordNet; here they are uniform in
       all data.
    2. Queries are balanced: q = min(``max_query``, half of the smallest class) of each class.
    3. The support set has min(``max_support``, sum over classes c of ceil(beta min(``max_contribution``, n_c - q)))
       examples, where n_c is the size of class c and beta is uniform in (0, 1].
    4. Class c gets min(floor(R_c (size of the support set - way)) + 1, n_c - q) of them, where R_c is n_c exp(alpha_c)
       divided by its sum over classes and alpha_c is uniform in -log 2 .. log 2.

    Attributes:
        min_way: Smallest way.
        max_way: Largest way.
        max_query: Largest number of queries of a class.
        max_support: Largest support set.
        max_contribution: Largest number of examples by which a class enlarges the support set.
        log_weight: Largest absolute alpha.
    """

    min_way: int = 5
    max_way: int = 50
    max_query: int = 10
    max_support: int = 500
    max_contribution: int = 100
    log_weight: float = log(2)

    def protocol(self) -> dict[str, str]:
        """Return the facts needed to compare a result with others."""
        return {
            "episodes": "varied as in Meta-Dataset",
            "way": f"{self.min_way} to {self.max_way}",
            "shot": f"at most {self.max_support} in all",
            "query": f"at most {self.max_query}",
        }

    @property
    def draws(self) -> int:
        """Number of uniforms that :meth:`compose` needs."""
        return 2 + self.max_way

    def compose(self, u: NDArray[np.float64], classes: int, draw: Draw, unknown: int = 0) -> Composition:
        """Sample the sizes of an episode.

        Args:
            u: Uniforms in [0, 1), [:attr:`draws`].
            classes: Number of classes of the split.
            draw: Sizes of drawn classes.
            unknown: Number of further classes that have queries only. They lower the largest way to ``classes`` -
                ``unknown``.

        Returns:
            The sizes.
        """
        most = min(self.max_way, classes - unknown)
        way = self.min_way + int(u[0] * (most - self.min_way + 1))
        all_sizes = draw(way + unknown)
        sizes, others = all_sizes[:way], all_sizes[way:]
        query = min(self.max_query, int(sizes.min()) // 2)
        left = sizes - query
        total = min(self.max_support, int(np.floor(u[1] * np.minimum(self.max_contribution, left) + 1).sum()))
        weights = sizes * np.exp(self.log_weight * (2 * u[2 : 2 + way] - 1))
        support = np.floor(weights / weights.sum() * (total - way)).astype(np.int64) + 1
        return Composition(np.minimum(support, left), query, min(query, *others.tolist()) if unknown else 0)


def choose_rows(
    u: NDArray[np.float64], sizes: NDArray[np.int64], offsets: NDArray[np.int64], composition: Composition
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose the examples of one episode.

    Args:
        u: Uniforms, one for each support and query example, class by class.
        sizes: Size of each class, [way].
        offsets: First row of each class, [way].
        composition: Sizes of the episode.

    Returns:
        Rows of the support set and of the query set, class by class. With equal numbers of support examples they are
        those of a balanced episode.
    """
    support = composition.support[:, None]
    place = np.arange(int(composition.support.max()) + composition.query)
    drawn = place < support + composition.query
    padded = np.zeros(drawn.shape)
    padded[drawn] = u
    rows = offsets[:, None] + choose(padded, sizes)
    return rows[place < support], rows[drawn & (place >= support)]


class Family(Protocol):
    """The part of :class:`~metarun.tasks.fewshot.FewShot` that varied episodes are drawn from."""

    seed: int
    data: ClassData
    device: torch.device
    sampling: VariedEpisodes

    @property
    def classes(self) -> Mapping[Split, NDArray[np.int64]]:
        """Class ids of each split."""

    @property
    def outside(self) -> Any:
        """Rows of unknown queries of each split, if they are of no class."""

    def draw(self, split: Split, indices: Sequence[int], way: int) -> NDArray[Any]:
        """Draw the classes of episodes, [T, way]."""

    def unknown_rows(self, split: Split, indices: Sequence[int], shape: EpisodeShape) -> NDArray[Any]:
        """Choose the unknown queries of episodes, [T, Nu]."""

    def examples(self, index: Tensor) -> Tensor:
        """Return model inputs [T, N, ...] of rows [T, N]."""


def composition(task: Family, split: Split, index: int, shape: EpisodeShape) -> Composition:
    """Return the sizes of one varied episode of a family."""

    def draw(count: int) -> NDArray[np.int64]:
        return task.data.sizes[task.draw(split, [index], count)[0]]

    u = uniforms(task.seed, split, [index], task.sampling.draws, stream=7)[0]
    return task.sampling.compose(u, len(task.classes[split]), draw, 0 if task.outside else shape.unknown)


def varied_batch(task: Family, split: Split, indices: Sequence[int], shape: EpisodeShape) -> TaskBatch:
    """Return varied episodes of a family, whose sizes must be equal.

    Raises:
        UserError: They are not.
    """
    found = [composition(task, split, index, shape) for index in indices]
    way, _, query, of_unknown = found[0].sizes
    require(
        all(each.sizes == found[0].sizes for each in found),
        "task.episodes=varied: tasks of different sizes are no batch; Task.batches returns one of each size",
    )
    rows = []
    for index, each in zip(indices, found, strict=True):
        ids = task.draw(split, [index], way)[0]
        u = uniforms(task.seed, split, [index], int(each.support.sum()) + way * query, stream=1)[0]
        rows.append(choose_rows(u, task.data.sizes[ids], task.data.offsets[ids], each))
    support, queries = (to_device(np.stack(part), task.device) for part in zip(*rows, strict=True))
    support_y = to_device(np.stack([np.arange(way).repeat(each.support) for each in found]), task.device)
    query_y = to_device(np.arange(way).repeat(query)[None].repeat(len(found), 0), task.device)
    unknown = None
    if shape.unknown:
        balanced = EpisodeShape(way, 1, query if task.outside else of_unknown, unknown=shape.unknown)
        unknown = task.examples(to_device(task.unknown_rows(split, indices, balanced), task.device))
    return TaskBatch(
        Labelled(task.examples(support), support_y, way),
        Labelled(task.examples(queries), query_y, way),
        unknown=unknown,
    )
