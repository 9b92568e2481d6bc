"""The base class of all algorithms: an outer step, and evaluation by adaptation to held-out tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metarun.kernels.bfloat16 import BFloat16Layers
from metarun.tasks.episode import EpisodeShape, Spec

Metrics = dict[str, Tensor]
"""Metrics by name, tensors on the device of the computation: scalars [], or one value per task [T]."""


class Algorithm(nn.Module, ABC):
    """The base class of meta-learning algorithms.

    Its parameters, those of its ``model`` and its own, are the meta-parameters. A subclass implements :meth:`meta_step`
    and :meth:`evaluate`. Learners from support sets subclass
    :class:`~metarun.algorithms.supervised.SupervisedAlgorithm`, which implements both, and RL learners subclass
    :class:`~metarun.algorithms.rl.base.RLAlgorithm`.
    """

    kinds: ClassVar[tuple[str, ...]]
    """Kinds of task family that it supports: classification, regression, sequence, generation, control (RL)."""
    roles: ClassVar[tuple[str, ...]] = ("features",)
    """Roles of models that it supports, of those in :data:`metarun.models.roles.ROLES`."""
    modalities: ClassVar[tuple[str, ...]] = ()
    """Kinds of input that it supports if it reads inputs itself, not only through the model; empty: any."""

    needs_full_meta_batch: bool = False
    """True if the outer step needs all tasks of a meta-batch at once and is not a mean over parts of it."""
    needs_balanced: bool = False
    """True if a task for meta-training must have as many examples of each class as of any other."""
    precision: str = "float32"
    """Precision of matrix products and convolutions: ``float32``, ``bfloat16`` or ``tf32``."""

    model: nn.Module
    spec: Spec

    @property
    def learns(self) -> bool:
        """True if there are meta-parameters. A baseline without any is evaluated and not meta-trained."""
        return any(p.requires_grad for p in self.parameters())

    @abstractmethod
    def meta_step(self, batch: Any, iteration: int) -> Metrics:
        """Take one outer step: update the meta-parameters on one meta-batch.

        Args:
            batch: T tasks of the task family: a :class:`~metarun.tasks.episode.TaskBatch`, or a batched environment.
            iteration: The number of the outer step, from 0.

        Returns:
            Scalars [] to log, means over the tasks. They are detached and on the device of the computation.
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
        """Return the size of the episodes for meta-training.

        Args:
            shape: Size of the episodes at test; ``None`` in RL.
        """
        return shape

    def accepts(self, shape: EpisodeShape | None) -> bool:
        """Return whether it can be tested on episodes of a size. A fixed head cannot change the number of classes.

        Args:
            shape: Size of the episodes; ``None`` in RL.
        """
        return True

    def protocol(self) -> dict[str, Any]:
        """Return the facts needed to compare a result with others, as plain values: normalisation, test steps."""
        return {}

    def computing(self) -> AbstractContextManager[Any]:
        """Return a context manager under which layers compute in :attr:`precision`."""
        return BFloat16Layers() if self.precision == "bfloat16" else nullcontext()

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that changes during meta-training, as tensors and plain values."""
        return {
            "parameters": self.state_dict(),
            **{name: each.state_dict() for name, each in self.optimizers().items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state.

        Args:
            state: What :meth:`checkpoint` returned.

        Raises:
            RuntimeError, KeyError, ValueError: ``state`` is of another model or algorithm.
        """
        self.load_state_dict(state["parameters"])
        for name, each in self.optimizers().items():
            each.load_state_dict(counted_on_host(state[name]))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers among its attributes, by attribute name."""
        return {name: each for name, each in vars(self).items() if isinstance(each, torch.optim.Optimizer)}


def counted_on_host(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer with its step counts on the CPU, where torch keeps them.

    A checkpoint is loaded to the GPU. Counts there would be read back at every step.
    """
    held = {
        number: {**each, "step": each["step"].cpu()} if isinstance(each.get("step"), Tensor) else each
        for number, each in state["state"].items()
    }
    return {**state, "state": held}
