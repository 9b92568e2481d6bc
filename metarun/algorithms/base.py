"""The base class of every meta-algorithm: an outer step that learns, and adaptation to held-out tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.kernels.bfloat16 import BFloat16Layers
from metarun.tasks.episode import EpisodeShape, Spec

Metrics = dict[str, Tensor]
"""Named metrics as tensors on the device of the computation; the contract says whether scalars or one value a task."""


class Algorithm(nn.Module, ABC):
    """A learner over tasks.

    It holds its ``model``; its parameters (the model's and its own) are the meta-parameters. A subclass implements
    :meth:`meta_step` and :meth:`evaluate`. Learners from support sets subclass
    :class:`~metarun.algorithms.supervised.SupervisedAlgorithm` instead, which implements both.
    """

    kinds: ClassVar[tuple[str, ...]]
    """Kinds of task family that it fits: classification, regression, sequence, generation, control."""
    roles: ClassVar[tuple[str, ...]] = ("features",)
    """Roles of model that it can drive: features, denoiser, policy, recurrent_policy, belief_policy,
    context_policy."""
    modalities: ClassVar[tuple[str, ...]] = ()
    """Kinds of input that it fits, if it reads inputs itself and not only through the model; empty: any."""

    needs_full_meta_batch: bool = False
    """True if the outer step needs all tasks of a meta-batch at once, so that no mean over parts of it will do."""
    precision: str = "float32"
    """The format in which products are computed: ``float32``, ``bfloat16`` or ``tf32``."""

    model: nn.Module
    spec: Spec

    @property
    def learns(self) -> bool:
        """True if there are meta-parameters; a baseline without any is evaluated, not meta-trained."""
        return any(p.requires_grad for p in self.parameters())

    @abstractmethod
    def meta_step(self, batch: Any, iteration: int) -> Metrics:
        """Take one outer step: change the meta-parameters by what one meta-batch teaches.

        Args:
            batch: T tasks of the task family: a :class:`~metarun.tasks.episode.TaskBatch`, or a batched environment.
            iteration: The number of the outer step, from 0.

        Returns:
            What to log: scalars [], means over the tasks, detached and still on the device.
        """

    @abstractmethod
    def evaluate(self, batch: Any) -> Metrics:
        """Adapt to each task and measure the result. Neither meta-parameters nor gradients change.

        Args:
            batch: T held-out tasks, as for :meth:`meta_step`.

        Returns:
            Each metric as [T, k + 1]: after 0, ..., k adaptation steps. The last column is the result.
        """

    def train_shape(self, shape: EpisodeShape | None) -> EpisodeShape | None:
        """The episodes that it meta-trains on, given the ``shape`` that it will be tested on (control: ``None``)."""
        return shape

    def accepts(self, shape: EpisodeShape | None) -> bool:
        """True if it can be tested on such episodes; a head of fixed size cannot change the number of classes."""
        return True

    def protocol(self) -> dict[str, Any]:
        """Plain values that a reader needs to compare a result: normalisation policy, adaptation steps at test."""
        return {}

    def computing(self) -> AbstractContextManager[Any]:
        """A context in which layers compute in :attr:`precision`."""
        return BFloat16Layers() if self.precision == "bfloat16" else nullcontext()

    def checkpoint(self) -> dict[str, Any]:
        """Everything that changes during meta-training, as tensors and plain values."""
        return {
            "parameters": self.state_dict(),
            **{name: each.state_dict() for name, each in self.optimizers().items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load what :meth:`checkpoint` returned.

        Raises:
            RuntimeError, KeyError, ValueError: ``state`` is of another model or algorithm.
        """
        self.load_state_dict(state["parameters"])
        for name, each in self.optimizers().items():
            each.load_state_dict(counted_on_host(state[name]))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers that it holds, by attribute name."""
        return {name: each for name, each in vars(self).items() if isinstance(each, torch.optim.Optimizer)}


def counted_on_host(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's ``state`` with its step counts on the CPU, where torch keeps them.

    A checkpoint is loaded to the GPU; counts there would be read back at every step.
    """
    held = {
        number: {**each, "step": each["step"].cpu()} if isinstance(each.get("step"), Tensor) else each
        for number, each in state["state"].items()
    }
    return {**state, "state": held}
