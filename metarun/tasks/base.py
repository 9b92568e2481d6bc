"""What every task family is: a distribution over tasks that hands out batches of them, by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import require
from metarun.tasks.record import DataRecord
from metarun.types import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

    from metarun.algorithms.base import Algorithm

Kind = Literal["classification", "regression", "sequence", "generation", "control"]
Judge = Callable[[Callable[[Tensor], Tensor], "TaskBatch"], dict[str, Tensor]]
"""From an adapted learner that generates, and the tasks it has adapted to, to metrics a task, [T]."""


@dataclass(frozen=True)
class Spec:
    """What a model and an algorithm must know of a task family.

    ``input_shape`` is one example's shape, without batch dimensions: ``(channels, height, width)`` for images,
    ``(features,)`` for vectors and observations, ``()`` where the model chooses it (text).
    ``output_size`` is the number of classes, of target dimensions, of symbols (sequences), or of actions (discrete) /
    action dimensions (continuous).
    """

    kind: Kind
    modality: str
    input_shape: tuple[int, ...]
    output_size: int
    discrete_actions: bool = False
    rewards: Literal["bernoulli", "gaussian"] | None = None
    """How they are distributed around means U[0, 1] or N(1, 1), where observations are one-hot states."""
    train_classes: int = 0
    """Of the meta-train split, for learners that tell them all apart; 0 where tasks have no classes in common."""
    peak: float | None = None
    """The largest value that targets can have, where it is known; then errors are reported in decibel too."""
    judge: Judge | None = None
    """Of what is generated, in families of that kind."""


@dataclass(frozen=True)
class Labelled:
    """Examples of T tasks: ``x`` [T, N, ...], ``y`` [T, N] class indices or [T, N, D] targets.

    Examples that are sequences have a target at each of L places: ``x`` and ``y`` [T, N, L], ``y`` -1 where there is
    none. ``way`` is the number of classes (0 in regression); it is known on the host, so that no step reads it back.
    In generation it is the other way round: ``x`` [T, N] are class indices, ``y`` [T, N, ...] examples of them.
    """

    x: Tensor
    y: Tensor
    way: int = 0
    truth: Tensor | None = None
    """The probabilities that ``y`` was drawn with, [T, N, ..., outputs], where a family knows them: to judge by, and
    for no learner to read."""

    def tasks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) of one task after another."""
        return zip(self.x, self.y, strict=True)

    def map(self, f: Callable[[Tensor], Tensor]) -> Labelled:
        """``f`` applied to its tensors."""
        return Labelled(f(self.x), f(self.y), self.way, None if self.truth is None else f(self.truth))


@dataclass(frozen=True)
class TaskBatch:
    """T supervised tasks: what the learner adapts to, and what it is judged on."""

    support: Labelled
    query: Labelled

    def map(self, f: Callable[[Tensor], Tensor]) -> TaskBatch:
        """``f`` applied to each of the tensors."""
        return TaskBatch(self.support.map(f), self.query.map(f))


@dataclass(frozen=True)
class EpisodeShape:
    """How large an episode is. ``way`` is ignored by families without classes.

    ``named``: labels are the numbers of the split's classes, 0..C-1, the same in every episode, instead of 0..way-1;
    :attr:`Labelled.way` is C then. That is all a learner needs that classifies among all classes of meta-training: its
    batches are episodes with names, of any number of classes and no queries, drawn, counted, checked, augmented and
    recorded like any other. (A loader of its own, with batches drawn from all examples at once, would be a second
    contract with data, to the same end: classes are drawn uniformly, where that draws them by their size.)
    """

    way: int
    shot: int
    query: int
    named: bool = False

    def changed(self, way: int | None = None, shot: int | None = None, query: int | None = None) -> EpisodeShape:
        """A copy with the given fields, each kept where ``None``."""
        given: dict[str, Any] = {"way": way, "shot": shot, "query": query}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


class Task(ABC):
    """A task family: a distribution over tasks, split into meta-train, meta-validation and meta-test.

    **The contract**: :meth:`batch` is a pure function of ``(self.seed, split, indices, shape)``.
    """

    kind: ClassVar[str]
    modality: ClassVar[str]
    metric: ClassVar[str]
    """The name under which algorithms report what this family is judged by."""
    higher_is_better: ClassVar[bool] = True

    held_out_val: bool = True
    """Whether the validation split shares nothing with the meta-train split, so that a learner can be chosen on it."""
    seed: int
    spec: Spec
    shape: EpisodeShape | None = None
    """The episode that is evaluated; ``None`` where episodes have no such shape (control)."""
    device: torch.device = torch.device("cpu")

    @abstractmethod
    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Any:
        """Tasks number ``indices`` of ``split``: a :class:`TaskBatch`, or a batched environment for control."""

    def prepare(self, model: torch.nn.Module) -> None:
        """Let ``model`` encode the inputs, for families whose inputs a model encodes, such as texts.

        Called after the model is built, and again when a checkpoint has changed how it encodes.
        """

    def to(self, device: torch.device) -> Self:
        """Keep the data on ``device`` from now on."""
        self.device = device
        return self

    def variants(self) -> dict[str, EpisodeShape | None]:
        """The shapes that are tested: ``{"": the task's own}`` and, with a name suffix, any further ones."""
        return {"": self.shape}

    def check(self, split: Split, shape: EpisodeShape) -> None:
        """Raise :class:`~metarun.errors.UserError` if ``split`` cannot serve episodes of ``shape``."""

    def remarks(self) -> list[str]:
        """What a user should know of the data before trusting a result: what was read, left out, or is there twice."""
        return []

    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare a number of this family: split, way, shot, preprocessing."""
        return {}

    def record(self) -> DataRecord:
        """Which classes its splits have and what they hold: kept with a run, compared when it is resumed or evaluated.

        Families whose splits depend on files, or on keys such as ``split_seed``, say so here.
        """
        return DataRecord()

    def class_names(self) -> Sequence[str]:
        """All classes of the data, those of no split included."""
        return sorted(self.record().names)

    def keep_classes(self, classes: Mapping[Split, Sequence[str]]) -> None:
        """Take these classes for each split, by their names, in this order. All of them are in the data."""
        require(self.record().classes == classes, f"{type(self).__name__} cannot take the splits of an earlier run")

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Known reference values of the metric on these tasks (oracle, random, optimum), where there are any."""
        return {}

    def picture(self, algorithm: Algorithm) -> Figure | None:
        """One picture of what was learned, drawn on test tasks; ``None`` where the family has none."""
        return None

    def film(self, algorithm: Algorithm) -> list[NDArray[np.uint8]] | None:
        """Frames [height, width, 3] of what was learned, on a test task; ``None`` where the family shows none."""
        return None
