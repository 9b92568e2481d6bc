"""The four exchangeable pieces of gradient-based meta-learning, as base classes, each with MAML's choice of it.

:class:`AdaptedParameters` chooses the parameters that adapt, :class:`Rule` is the update rule, :class:`InnerLoss` the
inner loss, and :class:`OuterGradient` the outer gradient. MAML's are :class:`SGD`, :class:`TaskLoss` and
:class:`Unrolled`, on all parameters. Every ``nn.Parameter`` of a piece is a meta-parameter.
Methods that are written for one task are batched over tasks by the inner loop.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.supervised import TASK_LOSS
from metarun.errors import require
from metarun.tasks.episode import Labelled, Spec, TaskBatch

State = Any
"""State of a rule on one task: tensors in nested dictionaries; empty if it needs none."""
Dims = Any
"""The dimension of tasks in an argument: 0, ``None`` (shared by all tasks), or nested dictionaries of these."""


class AdaptedParameters(nn.Module):
    """The base class of choices of the parameters that adapt, and of their initial values.

    A subclass implements :meth:`attach`; :meth:`initial` only if the start depends on the task, and
    :meth:`overrides_at` only if the network itself differs from step to step.
    """

    any_way: bool = False
    """True if the head is made for each task, and so for any number of classes."""

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        """Choose the parameters that adapt. Called once.

        Args:
            net: The model, then its linear head. Layers may be added to it.
            spec: The task family.

        Returns:
            Names in ``net`` of the tensors that adapt.

        Raises:
            UserError: The model has no such parameters.
        """
        raise NotImplementedError

    def prepare(self, learner: Any) -> None:
        """Called once after :meth:`attach`.

        Args:
            learner: The learner, an ``InnerLoopLearner``, which knows the names.
        """

    def overrides_at(self, step: int) -> Parameters:
        """Return tensors that replace the network's own in an inner step, by name. They are the same for all tasks.

        Args:
            step: Number of the inner step, from 0. Queries use the values of the last step.
        """
        return {}

    def initial(self, learner: Any, support: Labelled) -> tuple[Parameters, Dims]:
        """Return the initial values of the parameters that adapt.

        Args:
            learner: The learner, an ``InnerLoopLearner``.
            support: Support sets of T tasks.

        Returns:
            Initial values by name, and their dimension of tasks. By default the meta-learned values, shared by tasks.
        """
        return learner.meta_learned(), None


class Rule(nn.Module):
    """The base class of update rules: an (init, update) pair as in optax, written for one task.

    A subclass implements :meth:`update`, and :meth:`init` if it has a state. Learned parameters are ``nn.Parameter``,
    made in :meth:`prepare`.
    """

    carries: bool = False
    """True if the state is carried from task to task. Tasks are then adapted to one after another."""
    fits_any_parameters: bool = True
    """True if its learned values fit parameters of any number and shape, so that it can be exported as an optimizer."""

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        """Called once before training.

        Args:
            parameters: The parameters that adapt, by name.
            lr: ``algorithm.inner_lr``.
            steps: ``algorithm.inner_steps``.
        """
        self.lr = lr

    def init(self, parameters: Parameters) -> State:
        """Return the state before the first step on a task; by default it is empty.

        A rule that :attr:`fits_any_parameters` keeps three kinds of tensors, in nested dictionaries: those under the
        name of a parameter, those with a row for each entry of all parameters in their order, and scalars [].

        Args:
            parameters: Initial values of the parameters that adapt, by name.
        """
        return {}

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        """Compute an inner step.

        Args:
            gradients: Gradient of the inner loss for each parameter, by name, in its shape.
            state: State before this step.
            step: Number of the step, from 0.

        Returns:
            The change to add to each parameter, and the new state.
        """
        raise NotImplementedError

    def keep(self, state: State) -> None:
        """Store the state for the next task. Called after each task if :attr:`carries`.

        Args:
            state: State after the last step on a task.
        """
        raise NotImplementedError


class SGD(Rule):
    """Gradient descent: u = -lr g."""

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        changes = {}
        for name, g in gradients.items():
            changes[name] = -self.lr * g
        return changes, state


class InnerLoss(nn.Module):
    """The base class of inner losses: a scalar loss of one task's support set, which adaptation minimises."""

    def prepare(self, spec: Spec) -> None:
        """Called once before training.

        Args:
            spec: Description of the task family.
        """
        self.kind = spec.kind

    def forward(self, prediction: Tensor, x: Tensor, y: Tensor, parameters: Parameters, initial: Parameters) -> Tensor:
        """Return the loss of one task.

        Args:
            prediction: Predictions for the support set, [N, outputs].
            x: Support inputs [N, ...].
            y: Class indices [N] or targets [N, D].
            parameters: Current values of the parameters that adapt, by name.
            initial: Their values before the first step.

        Returns:
            The loss [].
        """
        raise NotImplementedError


class TaskLoss(InnerLoss):
    """The loss of the task: mean cross-entropy or mean squared error."""

    def forward(self, prediction: Tensor, x: Tensor, y: Tensor, parameters: Parameters, initial: Parameters) -> Tensor:
        return TASK_LOSS[self.kind](prediction, y)


class OuterGradient(nn.Module):
    """The base class of outer gradients: a loss whose gradient with respect to the meta-parameters is taken.

    The value of the loss need not have a meaning.
    """

    needs_full_meta_batch: bool = False
    """True if it needs all tasks of a meta-batch at once; false: gradients of parts may be averaged."""
    is_capturable: bool = True
    """True if it keeps no state in Python, so that a recording of its tensor operations can be repeated."""

    def capture_key(self, iteration: int) -> tuple[Any, ...]:
        """Return the values other than tensors that an outer step depends on.

        Args:
            iteration: Number of the outer step, from 0.
        """
        return ()

    def prepare(self, learner: Any) -> None:
        """Called once, when the learner is otherwise complete.

        Values that change with every outer step belong in buffers, and the function that sets them in the learner's
        ``on_iteration``.

        Args:
            learner: The learner, an ``InnerLoopLearner``.

        Raises:
            UserError: The learner's other pieces cannot be combined with this one.
        """

    def forward(self, learner: Any, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        """Return the loss, and metrics to log.

        Args:
            learner: The learner, an ``InnerLoopLearner``.
            batch: T tasks.

        Returns:
            The loss [], a mean over tasks, and the means of the adapted learners' metrics on query sets, detached.
        """
        raise NotImplementedError


class Unrolled(OuterGradient):
    """The gradient of the query loss through all inner steps (MAML).

    With ``first_order`` inner gradients are constants.

    For one step of SGD on all parameters it is d l(phi; Q) / d theta = (I - lr H) g, with the Hessian H of the support
    loss at theta and the gradient g of the query loss at phi (Finn et al. 2017, section 2.2). With ``first_order`` it
    is g (FOMAML, section 5.2).
    """

    def __init__(self, *, first_order: bool) -> None:
        super().__init__()
        self.first_order = first_order

    def prepare(self, learner: Any) -> None:
        refuse_constant_gradients(self.first_order, learner)

    def forward(self, learner: Any, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        return learner.query_loss(*learner.adapted(batch.support, self.first_order), batch)

    def extra_repr(self) -> str:
        return f"first_order={self.first_order}"


def refuse_constant_gradients(first_order: bool, learner: Any) -> None:
    """Raise :class:`UserError` for a learned inner loss with constant inner gradients, which would not be trained."""
    learned = any(p.requires_grad for p in learner.loss.parameters())
    require(not (first_order and learned), "algorithm.outer.first_order=true: a learned loss gets no gradient that way")
