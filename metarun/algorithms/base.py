"""What every meta-algorithm is: an outer step that learns, and a way to adapt to a task and be judged on it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun import distributed
from metarun.algorithms.schedule import Schedule
from metarun.algorithms.step import Plan, Stepper, known
from metarun.kernels.reduced import BFloat16Layers
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.types import Decay

Metrics = dict[str, Tensor]
Adapted = Callable[[Tensor], Tensor]
"""An adapted learner: query inputs [T, Nq, ...] -> predictions [T, Nq, outputs], batched over tasks."""


class Algorithm(nn.Module, ABC):
    """A learner over tasks. Its parameters (the model's and its own) are the meta-parameters."""

    kinds: ClassVar[tuple[str, ...]]
    """Kinds of task family it fits: classification, regression, sequence, generation, control."""
    roles: ClassVar[tuple[str, ...]] = ("features",)
    """Kinds of model it can drive: features, denoiser, policy, recurrent_policy, belief_policy,
    context_policy."""
    modalities: ClassVar[tuple[str, ...]] = ()
    """Kinds of input it fits, where it reads inputs by itself and not through the model alone."""

    whole: bool = False
    """Whether the outer step needs the meta-batch whole, and cannot be made of means over its parts."""
    precision: str = "float32"
    """``bfloat16`` and ``tf32`` where the runner has chosen them: what products are computed in."""

    model: nn.Module
    spec: Spec

    @property
    def learns(self) -> bool:
        """Whether it has meta-parameters; a baseline that has none is not meta-trained, only evaluated."""
        return any(p.requires_grad for p in self.parameters())

    @abstractmethod
    def meta_step(self, batch: Any, iteration: int) -> Metrics:
        """One outer update on one meta-batch; ``iteration`` counts from 0. Returns scalars, still on the device."""

    @abstractmethod
    def evaluate(self, batch: Any) -> Metrics:
        """Adapt to each task and judge it: each metric as [T, k + 1], after 0..k adaptation steps.

        The last column is the result. No meta-parameter changes, and no gradient is kept.
        """

    def train_shape(self, shape: EpisodeShape | None) -> EpisodeShape | None:
        """The episodes it meta-trains on, given the ones it will be tested on."""
        return shape

    def accepts(self, shape: EpisodeShape | None) -> bool:
        """Whether it can be tested on such episodes; a learner with a head cannot change the number of classes."""
        return True

    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare a number: normalisation policy, steps at test."""
        return {}

    def computing(self) -> AbstractContextManager[Any]:
        """Within the block, layers compute in :attr:`precision`."""
        return BFloat16Layers() if self.precision == "bfloat16" else nullcontext()

    def checkpoint(self) -> dict[str, Any]:
        """Everything that changes while learning, as tensors and plain values."""
        return {
            "parameters": self.state_dict(),
            **{name: each.state_dict() for name, each in self.optimizers().items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`checkpoint`."""
        self.load_state_dict(state["parameters"])
        for name, each in self.optimizers().items():
            each.load_state_dict(counted_on_host(state[name]))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Those that it holds, by the names of its attributes."""
        return {name: each for name, each in vars(self).items() if isinstance(each, torch.optim.Optimizer)}


class SupervisedAlgorithm(Algorithm):
    """Learns from support sets by a differentiable loss on query sets; an optimizer turns its gradient into the step.

    A subclass gives :meth:`adaptations` and :meth:`outer_loss`, and calls :meth:`learn_with` at the end of its
    constructor.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "regression")
    optimizer: torch.optim.Optimizer | None
    plan: Plan = Plan()
    """How a step is computed; the runner may choose a faster one."""
    train_way: int | None = None
    train_shot: int | None = None
    train_query: int | None = None
    """Of the episodes that it meta-trains on; ``None``: as in those that it will be tested on."""
    any_way: bool = True
    """Whether it can be tested on other numbers of classes; not with a head of fixed size."""
    iteration: int = 0
    """The current one, from 0."""
    _stepper: Stepper | None = None

    @abstractmethod
    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterable[Adapted]:
        """The adapted learner after 0, 1, ..., ``steps`` steps (the algorithm's test steps where ``None``).

        A learner that adapts at once yields one. The last is the result.
        """

    @abstractmethod
    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        """The loss whose gradient by the meta-parameters is followed, and what to log (detached scalars)."""

    def learn_with(
        self,
        outer_lr: float,
        halve_every: int | None = None,
        decay_over: int | None = None,
        decay: Decay = "linear",
        optimizer: Literal["adam", "sgd"] = "adam",
    ) -> None:
        """Step by ``outer_lr``, as its :class:`Schedule` has it."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        self.schedule = Schedule(outer_lr, halve_every, decay_over, decay)
        kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
        self.optimizer = kind(parameters, lr=outer_lr) if parameters else None

    def arrive(self, iteration: int) -> None:
        """Called before the step at ``iteration``."""
        self.iteration = iteration

    def train_shape(self, shape: EpisodeShape | None) -> EpisodeShape | None:
        return shape and shape.changed(self.train_way, self.train_shot, self.train_query)

    def accepts(self, shape: EpisodeShape | None) -> bool:
        if shape is None or self.any_way or self.spec.kind != "classification":
            return True
        return shape.way == self.spec.output_size

    def changes(self, iteration: int) -> tuple[Any, ...]:
        """What the step at ``iteration`` depends on beside tensors: a captured step is valid while it is the same."""
        return ()

    def capturable(self) -> bool:
        """Whether a step may be captured: it changes no state but the parameters, and all its parts are known."""
        return known(self)

    def adapt(self, support: Labelled) -> Adapted:
        """The learner adapted to each of T tasks."""
        *_, adapted = self.adaptations(support)
        return adapted

    def meta_step(self, batch: TaskBatch, iteration: int) -> Metrics:
        self.train()
        self.arrive(iteration)
        if self.optimizer is None:
            return self.outer_loss(batch)[1]
        metrics = self.outer_gradient(batch)
        if distributed.world_size() > 1:
            distributed.average_gradients(self.parameters(), running_statistics(self))
        self.schedule.apply(self.optimizer, iteration)
        self.optimizer.step()
        return metrics

    def outer_gradient(self, batch: TaskBatch) -> Metrics:
        """Leave the gradient of the mean outer loss on the parameters, computed by :attr:`plan`; the metrics."""
        if self._stepper is None:
            self._stepper = Stepper(self)
        return self._stepper.gradient(batch)

    def evaluate(self, batch: TaskBatch) -> Metrics:
        self.eval()
        with torch.no_grad(), self.computing():
            judged = [self.judged(learner, batch.query) for learner in self.adaptations(batch.support)]
        return {name: torch.stack([each[name] for each in judged], dim=1) for name in judged[0]}

    def judged(self, learner: Adapted, query: Labelled) -> Metrics:
        """Metrics a task, [T], of an adapted learner; one that predicts a distribution has more to be judged by."""
        return judge(self.spec, learner(query.x), query.y)

    def __deepcopy__(self, memo: dict[int, Any]) -> SupervisedAlgorithm:
        """A copy captures anew: recordings belong to one learner's parameters."""
        new = object.__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy({k: v for k, v in self.__dict__.items() if k != "_stepper"}, memo))
        return new


def counted_on_host(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's ``state`` with its counts of steps on the CPU, where torch keeps them.

    On a GPU, where a checkpoint is loaded to, each would be read back at every step.
    """
    held = {
        number: {**each, "step": each["step"].cpu()} if isinstance(each.get("step"), Tensor) else each
        for number, each in state["state"].items()
    }
    return {**state, "state": held}


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The buffers that meta-training moves, by their names: ``running_mean`` and their like."""
    return [b for name, b in module.named_buffers() if name.rpartition(".")[2].startswith("running_")]


def task_loss(kind: str, prediction: Tensor, y: Tensor) -> Tensor:
    """The loss of one task: mean cross-entropy of ``prediction`` [N, way], or mean squared error [N, D]."""
    return F.cross_entropy(prediction, y) if kind == "classification" else F.mse_loss(prediction, y)


def judge(spec: Spec, prediction: Tensor, y: Tensor) -> Metrics:
    """Metrics a task, [T]: loss and accuracy, or mean squared error, of ``prediction`` [T, N, outputs].

    Where targets have a peak, also the peak signal-to-noise ratio 10 log10(peak^2 / mse).
    """
    if spec.kind == "regression":
        mse = (prediction - y).square().flatten(1).mean(1)
        return {"mse": mse} if spec.peak is None else {"mse": mse, "psnr": 10 * (spec.peak**2 / mse).log10()}
    loss = F.cross_entropy(prediction.flatten(0, 1), y.flatten(), reduction="none").view_as(y).mean(1)
    return {"accuracy": (prediction.argmax(-1) == y).float().mean(1), "loss": loss}


def dry_run(model: nn.Module, spec: Spec, read: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """What ``model`` (or ``read``, a function of it) makes of two examples, with nothing in it changed.

    A model whose inputs are not floats of ``spec.input_shape`` (token ids) says what to run it on: ``example()``.
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
    """``model`` followed by a linear head, without offsets if its ``head_bias`` is false.

    The head's width is found by running the model once.
    """
    head = nn.Linear(dry_run(model, spec).shape[-1], outputs, bias=getattr(model, "head_bias", True))
    if init_std is not None:
        nn.init.trunc_normal_(head.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    return nn.Sequential(model, head)
