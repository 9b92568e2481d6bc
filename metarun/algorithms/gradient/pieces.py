"""The four exchangeable pieces of gradient-based meta-learning, as interfaces to subclass.

What adapts (:class:`AdaptedParameters`), by which update (:class:`Rule`), on which loss (:class:`InnerLoss`), and how
the adapted learners' query losses become an outer gradient (:class:`OuterGradient`). Every ``nn.Parameter`` of a piece
is a meta-parameter. Methods that are written for one task are batched over tasks by the inner loop.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.gradient.parameters import Parameters
from metarun.tasks.episode import Labelled, Spec, TaskBatch

State = Any
"""A rule's state on a task: tensors in nested dictionaries; empty if it keeps nothing from step to step."""
Dims = Any
"""The dimension of tasks in an argument: 0, ``None`` (shared by all tasks), or nested dictionaries of these."""


class AdaptedParameters(nn.Module):
    """Chooses, or adds, the parameters that adapt, and where they start.

    A subclass implements :meth:`attach`; :meth:`initial` only if the start depends on the task, and
    :meth:`overrides_at` only if the network itself differs from step to step.
    """

    any_way: bool = False
    """True if the head is made anew for each task, and so for any number of classes."""

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        """Choose what adapts. Called once.

        Args:
            net: The model, then its linear head. Layers may be added to it.
            spec: The task family.

        Returns:
            Names in ``net`` of the tensors that adapt.

        Raises:
            UserError: The model has nothing of the kind.
        """
        raise NotImplementedError

    def prepare(self, learner: Any) -> None:
        """Called once after :meth:`attach`, with the learner (an ``InnerLoopLearner``), which then knows the names."""

    def overrides_at(self, step: int) -> Parameters:
        """Tensors that replace the network's own in inner step 0, 1, ... and for queries after it; for all tasks."""
        return {}

    def initial(self, learner: Any, support: Labelled) -> tuple[Parameters, Dims]:
        """Where adaptation starts.

        Args:
            learner: The learner, an ``InnerLoopLearner``.
            support: Support sets of T tasks.

        Returns:
            The starting values by name, and their dimension of tasks. By default the meta-learned values, shared.
        """
        return learner.meta_learned(), None


class Rule(nn.Module):
    """An update rule: an (init, update) pair in the manner of optax, written for one task.

    Whatever a rule learns is an ``nn.Parameter`` made in :meth:`prepare`.
    """

    carries: bool = False
    """True if the state goes on from task to task: tasks are then met one after another, not all at once."""

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        """Called once, with what adapts, ``algorithm.inner_lr`` and ``algorithm.inner_steps``."""
        self.lr = lr

    def init(self, parameters: Parameters) -> State:
        """The state before the first step on a task."""
        return {}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        """One inner step.

        Args:
            gradients: Gradient of the inner loss by each parameter that adapts, of its shape.
            state: The state before this step.
            step: The number of the step, from 0.

        Returns:
            The change to add to each parameter, and the new state.
        """
        raise NotImplementedError

    def keep(self, state: State) -> None:
        """Take over the state after a task, for the next one to begin with; only for a rule that :attr:`carries`."""
        raise NotImplementedError


class InnerLoss(nn.Module):
    """The loss that adaptation descends: a scalar of one task's support set."""

    def prepare(self, spec: Spec) -> None:
        """Called once, with the task family."""
        self.kind = spec.kind

    def forward(self, prediction: Tensor, x: Tensor, y: Tensor, parameters: Parameters, initial: Parameters) -> Tensor:
        """The loss [] of one task.

        Args:
            prediction: [N, outputs], of the support set.
            x: Support inputs [N, ...].
            y: Classes [N] or targets [N, D].
            parameters: What adapts, as it stands.
            initial: The same before the first step.
        """
        raise NotImplementedError


class OuterGradient(nn.Module):
    """A loss whose gradient by the meta-parameters is the outer gradient; its value need not mean anything."""

    needs_full_meta_batch: bool = False
    """True if it needs all tasks of a meta-batch at once; else it may be given parts, whose gradients are averaged."""
    is_capturable: bool = True
    """True if a recording of its tensor operations repeats it: it keeps nothing in Python from step to step."""

    def begin_iteration(self, iteration: int) -> None:
        """Called before each outer step; a value that changes with every step belongs in a buffer."""

    def capture_key(self, iteration: int) -> tuple[Any, ...]:
        """Return the values other than tensors that the step at ``iteration`` depends on."""
        return ()

    def prepare(self, learner: Any) -> None:
        """Called once, with the otherwise complete learner.

        Raises:
            UserError: The learner's other pieces do not go with this one.
        """

    def forward(self, learner: Any, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        """The loss, and what to log.

        Args:
            learner: The learner, an ``InnerLoopLearner``.
            batch: T tasks.

        Returns:
            The loss [], a mean over tasks, and the means of the adapted learners' metrics on query sets, detached.
        """
        raise NotImplementedError
