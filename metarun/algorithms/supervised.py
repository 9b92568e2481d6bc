"""The base class of learners from support sets, and what they share: losses, metrics, a linear head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.base import Algorithm, Metrics
from metarun.algorithms.outer_optimizer import Adam, Schedule
from metarun.algorithms.unknown import detection_metrics
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.types import Decay

Adapted = Callable[[Tensor], Tensor]
"""An adapted learner: query inputs [T, Nq, ...] -> predictions [T, Nq, outputs] of T tasks."""

OnPredictions = Callable[[Tensor, Tensor], None]
"""A function of logits [T, N, way] and labels [T, N] of T tasks."""


TASK_LOSS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classification": F.cross_entropy,
    "regression": F.mse_loss,
}
"""The loss [] of one task by kind, a function of predictions [N, outputs] and class indices [N] or targets [N, D]."""


class SupervisedAlgorithm(Algorithm):
    """The base class of learners from support sets that are trained by the gradient of a loss on query sets.

    A subclass implements :meth:`adaptations` and :meth:`outer_loss`, and calls :meth:`learn_with` at the end of its
    constructor::

        class MyLearner(SupervisedAlgorithm):
            def __init__(self, model, spec, *, outer_lr: Rate):
                super().__init__()
                self.model, self.spec = model, spec
                self.learn_with(outer_lr)

            def adaptations(self, support, steps=None):
                yield lambda x: ...  # predictions [T, Nq, outputs] for x [T, Nq, ...]

            def outer_loss(self, batch):
                prediction = self.adapt(batch.support)(batch.query.x)
                ...
                return loss, {"loss": loss.detach()}
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "regression")
    optimizer: torch.optim.Optimizer | None
    """The outer optimizer; ``None`` for a baseline without meta-parameters."""
    schedule: Schedule
    """The outer learning rate at each iteration."""
    train_way: int | None = None
    train_shot: int | None = None
    train_query: int | None = None
    """Size of the episodes for meta-training; ``None``: as at test."""
    any_way: bool = True
    """True if it can be tested on other numbers of classes; False with a head of fixed size."""
    iteration: int = 0
    """The current outer step, from 0."""
    on_iteration: Callable[[int], None] | None = None
    """Function called before each outer step with its number."""
    on_predictions: OnPredictions | None = None
    """Function that :meth:`evaluate` calls in classification with the logits [T, Nq, way] after the last adaptation
    step and the labels [T, Nq]."""
    temperature: float | None = None
    """Number, fitted on validation tasks, by which logits are divided for the probabilities of predictions. Losses and
    metrics do not use it."""
    batch_tasks: bool = True
    """True if inner loops may run on all tasks at once where that is exact; false: one task after another."""

    @abstractmethod
    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterable[Adapted]:
        """Adapt to T tasks.

        Args:
            support: Support sets: x [T, Ns, ...], y [T, Ns] or [T, Ns, D].
            steps: Number of adaptation steps; ``None``: the algorithm's number of test steps.

        Returns:
            The adapted learner after 0, 1, ..., ``steps`` steps, or a single one if it adapts without steps. The last
            is the result.
        """

    @abstractmethod
    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        """Return the loss whose gradient with respect to the meta-parameters is the outer gradient.

        Args:
            batch: T tasks: a meta-batch, or a part of one. Unless :attr:`needs_full_meta_batch` is true, the loss must
                be a mean over tasks, since gradients of parts are averaged.

        Returns:
            The loss [], and scalars to log, detached.
        """

    def learn_with(
        self,
        outer_lr: float,
        halve_every: int | None = None,
        decay_over: int | None = None,
        decay: Decay = "linear",
        optimizer: Literal["adam", "sgd"] = "adam",
    ) -> None:
        """Set the outer optimizer over all parameters that require gradients.

        Args:
            outer_lr: Initial learning rate.
            halve_every: Iterations after each of which the learning rate is halved; ``None``: never.
            decay_over: Iterations over which it decays to 0; ``None``: no decay.
            decay: Form of the decay.
            optimizer: Adam, or plain gradient descent.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        self.schedule = Schedule(outer_lr, halve_every, decay_over, decay)
        kind = Adam if optimizer == "adam" else torch.optim.SGD
        self.optimizer = kind(parameters, lr=outer_lr) if parameters else None

    def train_shape(self, shape: EpisodeShape | None) -> EpisodeShape | None:
        return shape and replace(shape, unknown=0).changed(self.train_way, self.train_shot, self.train_query)

    def accepts(self, shape: EpisodeShape | None) -> bool:
        if shape is None or self.any_way or self.spec.kind != "classification":
            return True
        return not shape.varied and shape.way == self.spec.output_size

    # The outer step, on all tasks at once. A run takes the same three parts, with the gradient computed by the
    # fastest exact plan (metarun.engine.step).

    def meta_step(self, batch: TaskBatch, iteration: int) -> Metrics:
        self.begin_iteration(iteration)
        self.zero_grad()
        with self.computing():
            loss, metrics = self.outer_loss(batch)
        if self.optimizer is not None:
            loss.backward()
            self.apply_gradients()
        return metrics

    def begin_iteration(self, iteration: int) -> None:
        """Prepare an outer step.

        Args:
            iteration: Number of the outer step, from 0.
        """
        if not self.training:  # going through all modules takes as long as a small step
            self.train()
        self.iteration = iteration
        if self.on_iteration is not None:
            self.on_iteration(iteration)

    def apply_gradients(self) -> None:
        """Take an optimizer step with the gradients stored on the parameters."""
        if self.optimizer is not None:
            self.schedule.apply(self.optimizer, self.iteration)
            self.optimizer.step()

    # Statistics that meta-training takes from the features of its tasks, such as their mean.

    @property
    def keeps_statistics(self) -> bool:
        """True if :meth:`observe` has an effect."""
        return False

    @property
    def has_observed(self) -> bool:
        """True unless it keeps statistics and none of them has been taken yet. Predictions would then be wrong."""
        return True

    def observe(self, batches: Iterable[TaskBatch]) -> None:
        """Take the statistics anew from meta-training tasks, without training.

        Args:
            batches: Meta-batches; none forgets the statistics.
        """

    # What a recording of the outer step, repeated on other meta-batches, must know.

    @property
    def is_capturable(self) -> bool:
        """True if a recording of the step's tensor operations repeats it: no other state changes from step to step."""
        return True

    def capture_key(self, iteration: int) -> tuple[Any, ...]:
        """Return the values other than tensors that an outer step depends on.

        A recording of the step can be used while they stay the same.

        Args:
            iteration: Number of the outer step, from 0.
        """
        return ()

    def adapt(self, support: Labelled) -> Adapted:
        """Adapt to T tasks.

        Args:
            support: Support sets: x [T, Ns, ...], y [T, Ns] or [T, Ns, D].

        Returns:
            The adapted learner, a function of query inputs [T, Nq, ...] to predictions [T, Nq, outputs].
        """
        *_, adapted = self.adaptations(support)
        return adapted

    def prototype_distance(self, support: Labelled) -> Adapted | None:
        """Return a function of query inputs [T, Nq, ...] to their distance to the nearest prototype [T, Nq].

        Args:
            support: Support sets: x [T, Ns, ...], y [T, Ns].

        Returns:
            The function; ``None`` for a learner without prototypes.
        """
        return None

    def evaluate(self, batch: TaskBatch) -> Metrics:
        self.eval()
        classifies, results = self.spec.kind == "classification", []
        with torch.no_grad(), self.computing():
            distances = self._distances(batch)
            for learner in self.adaptations(batch.support):
                recorded = _Recorded(learner, batch.unknown)
                metrics = self.query_metrics(recorded if classifies else learner, batch.query)
                if recorded.of_unknown is not None:
                    metrics = {**metrics, **detection_metrics(recorded.of_known, recorded.of_unknown, distances)}
                results.append(metrics)
            if self.on_predictions is not None and classifies:
                self.on_predictions(recorded.of_known, batch.query.y)
        return {name: torch.stack([each[name] for each in results], dim=1) for name in results[0]}

    def _distances(self, batch: TaskBatch) -> tuple[Tensor, Tensor] | None:
        """Return the distances of known [T, Nq] and unknown queries [T, Nu] to the nearest prototype."""
        distance = None if batch.unknown is None else self.prototype_distance(batch.support)
        if distance is None or batch.unknown is None:
            return None
        return split_queries(distance(torch.cat([batch.query.x, batch.unknown], 1)), batch.query.x)

    def query_metrics(self, learner: Adapted, query: Labelled) -> Metrics:
        """Evaluate an adapted learner on query sets. A learner that predicts distributions overrides this.

        Args:
            learner: The adapted learner.
            query: Query sets: x [T, Nq, ...], y [T, Nq] or [T, Nq, D].

        Returns:
            Each metric as [T].
        """
        return prediction_metrics(self.spec, learner(query.x), query.y)


class _Recorded:
    """An adapted learner that keeps its last predictions, and predicts unknown queries together with the others."""

    def __init__(self, learner: Adapted, unknown: Tensor | None) -> None:
        self.learner, self.unknown = learner, unknown
        self.of_known: Tensor
        self.of_unknown: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.unknown is None:
            self.of_known = self.learner(x)
        else:
            self.of_known, self.of_unknown = split_queries(self.learner(torch.cat([x, self.unknown], 1)), x)
        return self.of_known


def split_queries(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Split values [T, Nq + Nu, ...] into those of the queries ``known`` [T, Nq, ...] and those of the others."""
    return values[:, : known.shape[1]], values[:, known.shape[1] :]


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the buffers that meta-training changes, those whose name begins with ``running_``."""
    return [b for name, b in module.named_buffers() if name.rpartition(".")[2].startswith("running_")]


def prediction_metrics(spec: Spec, prediction: Tensor, y: Tensor) -> Metrics:
    """Return the metrics [T] of predictions [T, N, outputs]: loss and accuracy, or mean squared error.

    If the peak of the targets is known, the peak signal-to-noise ratio 10 log10(peak^2 / mse) is added.
    """
    if spec.kind == "regression":
        mse = (prediction - y).square().flatten(1).mean(1)
        return {"mse": mse} if spec.peak is None else {"mse": mse, "psnr": 10 * (spec.peak**2 / mse).log10()}
    loss = F.cross_entropy(prediction.flatten(0, 1), y.flatten(), reduction="none").view_as(y).mean(1)
    return {"accuracy": (prediction.argmax(-1) == y).float().mean(1), "loss": loss}


def dry_run(model: nn.Module, spec: Spec, read: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Run ``model``, or ``read``, a function that uses it, on two examples. The model's mode is restored.

    The examples are zeros of ``spec.input_shape``, or ``model.example()`` if the model has this method, as models with
    other inputs than floats do.

    Returns:
        Its output [2, ...].
    """
    own = getattr(model, "example", None)
    example = own() if callable(own) else torch.zeros(2, *spec.input_shape)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        features = (read or model)(example)
    model.train(was_training)
    return features


def with_head(model: nn.Module, spec: Spec, outputs: int, init_std: float | None) -> nn.Sequential:
    """Return ``model`` followed by a linear head, without a bias if the model's ``head_bias`` is false.

    The number of features is found by running the model once.
    """
    head = nn.Linear(dry_run(model, spec).shape[-1], outputs, bias=getattr(model, "head_bias", True))
    if init_std is not None:
        nn.init.trunc_normal_(head.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    return nn.Sequential(model, head)
