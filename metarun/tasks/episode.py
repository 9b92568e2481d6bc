"""The types that tasks, models and algorithms exchange: a family's description, examples, and batches of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Literal

from torch import Tensor

Kind = Literal["classification", "regression", "sequence", "generation", "control", "optimization"]
SampleMetrics = Callable[[Callable[[Tensor], Tensor], "TaskBatch"], dict[str, Tensor]]
"""Evaluates a generative learner: (adapted learner, its tasks) -> each metric as [T]."""


@dataclass(frozen=True)
class Spec:
    """Description of a task family, from which a model and an algorithm are built.

    Attributes:
        kind: The kind of prediction: class labels, values, the next symbol, new examples, actions (``control``), or the
            steps of an optimizer (``optimization``).
        modality: The type of an input, such as ``image``, ``text`` or ``vector``. A model lists those that it reads.
        input_shape: Shape of one example without batch dimensions: ``(channels, height, width)`` for images,
            ``(features,)`` for vectors and observations, ``()`` where the model chooses it (text).
        output_size: Number of classes, target dimensions, symbols (sequences), discrete actions or dimensions of
            continuous actions.
        discrete_actions: True if actions are integers 0..output_size-1, false if they are vectors [output_size].
        rewards: Distribution of rewards, for families whose observations are one-hot states: 0 or 1 with means from
            U[0, 1] (``bernoulli``), N(m, 1) with m from N(1, 1) (``gaussian``), N(m, .3^2) with m from U[0, 1]
            (``uniform``).
        has_expert: True if environments tell optimal actions
            (:meth:`metarun.tasks.rl.base.Environment.optimal_actions`).
        train_classes: Number of classes of the meta-train split, for learners that classify among all of them; 0 where
            tasks have no classes in common.
        peak: Largest value of a target, if known. Errors are then reported in decibel too.
        evaluate_samples: Function that evaluates generated examples, in families of kind ``generation``.
    """

    kind: Kind
    modality: str
    input_shape: tuple[int, ...]
    output_size: int
    discrete_actions: bool = False
    rewards: Literal["bernoulli", "gaussian", "uniform"] | None = None
    train_classes: int = 0
    peak: float | None = None
    evaluate_samples: SampleMetrics | None = None
    has_expert: bool = False


@dataclass(frozen=True)
class Labelled:
    """Examples of T tasks: a support set or a query set of each.

    Attributes:
        x: Inputs [T, N, ...]. For sequences [T, N, L]; for generation the class indices [T, N].
        y: Class indices [T, N] or targets [T, N, D]. For sequences the target at each of L places [T, N, L], -1 where
            there is none; for generation examples [T, N, ...] of the classes in ``x``.
        way: Number of classes, 0 in regression. It is a Python integer, so that reading it needs no device sync.
        truth: Probabilities [T, N, ..., outputs] that ``y`` was drawn from, if the family knows them. They are for
            evaluation only; no learner may read them.
    """

    x: Tensor
    y: Tensor
    way: int = 0
    truth: Tensor | None = None

    def tasks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x [N, ...], y [N, ...]) of one task after another."""
        return zip(self.x, self.y, strict=True)

    def singly(self) -> Iterator[Labelled]:
        """Yield the examples of one task after another, each with T = 1."""
        for task in range(len(self.y)):
            yield self.map(itemgetter(slice(task, task + 1)))

    def map(self, f: Callable[[Tensor], Tensor]) -> Labelled:
        """Apply a function to each tensor.

        Args:
            f: Function of a tensor [T, N, ...].

        Returns:
            A copy with the results.
        """
        return Labelled(f(self.x), f(self.y), self.way, None if self.truth is None else f(self.truth))


@dataclass(frozen=True)
class TaskBatch:
    """T supervised tasks: the support sets that a learner adapts to, and the query sets that it is evaluated on."""

    support: Labelled
    query: Labelled
    unknown: Tensor | None = field(default=None, kw_only=True)
    """Queries [T, Nu, ...] of classes that are not in the support set. A learner should recognise that it does not know
    them. They are for evaluation only and have no labels."""

    def map(self, f: Callable[[Tensor], Tensor]) -> TaskBatch:
        """Apply a function to each tensor.

        Args:
            f: Function of a tensor [T, N, ...].

        Returns:
            A copy with the results.
        """
        unknown = None if self.unknown is None else f(self.unknown)
        return TaskBatch(self.support.map(f), self.query.map(f), unknown=unknown)


@dataclass(frozen=True)
class EpisodeShape:
    """Size of an episode.

    A learner that classifies among all meta-train classes uses episodes with ``named=True`` and no queries as its
    mini-batches. Classes are drawn uniformly, whereas a loader over all examples would draw them by their size.

    Attributes:
        way: Number of classes. Families without classes ignore it.
        shot: Support examples per class, or per task where there are no classes.
        query: Query examples per class, or per task.
        named: Labels are the numbers 0..C-1 of the split's classes, the same in every episode, instead of 0..way-1.
            :attr:`Labelled.way` is then C.
        unknown: Classes beside the ``way`` ones whose examples are queries too (:attr:`TaskBatch.unknown`), as many of
            each as of a known class.
        domain: Name of the domain of the tasks, in families of several; ``None``: a domain drawn for each task.
        varied: Way and shots are drawn for each episode; the other fields except ``unknown`` have no effect.
    """

    way: int
    shot: int
    query: int
    named: bool = False
    unknown: int = 0
    varied: bool = False
    domain: str | None = None

    def changed(self, way: int | None = None, shot: int | None = None, query: int | None = None) -> EpisodeShape:
        """Return a copy with other values, which are not varied if any is given.

        Args:
            way: Number of classes; ``None`` keeps it.
            shot: Support examples per class; ``None`` keeps them.
            query: Query examples per class; ``None`` keeps them.
        """
        given: dict[str, Any] = {"way": way, "shot": shot, "query": query}
        given = {name: value for name, value in given.items() if value is not None}
        return replace(self, **given, varied=self.varied and not given)
