"""The inner loop, top to bottom: adaptation to many tasks by gradient steps, and the loss on their query sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from math import ceil
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import call_with
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import AdaptedParameters, Dims, InnerLoss, OuterGradient, Rule, State
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, prediction_metrics
from metarun.kernels.bfloat16 import bfloat16_disabled
from metarun.kernels.broadcast_add import broadcast_add
from metarun.kernels.mode import TaskBatched
from metarun.models.norm import statistics_from
from metarun.tasks.episode import Labelled, TaskBatch


class InnerLoopState(NamedTuple):
    """The inner loops of many tasks after ``step`` steps."""

    initial: Parameters
    initial_dims: Dims
    """The dimension of tasks of ``initial``."""
    parameters: Parameters
    dims: Dims
    """The dimension of tasks of ``parameters``."""
    state: State
    """The rule's; ``None`` before the first step."""
    step: int


class InnerLoopLearner(SupervisedAlgorithm):
    """A learner that adapts by gradient steps. Subclassed by :class:`GradientLearner`, which puts the pieces together.

    In the order in which MAML's outer loss calls them: :meth:`outer_loss` -> the outer gradient's ``forward`` ->
    :meth:`adapted` -> :meth:`trajectory` -> :meth:`inner_step` -> :meth:`inner_gradient` -> :meth:`predict`, then
    :meth:`query_loss` on the result.
    """

    net: nn.Sequential
    """The model, then its linear head."""
    adapts: AdaptedParameters
    rule: Rule
    loss: InnerLoss
    outer: OuterGradient
    adapted_names: list[str]
    """Names in :attr:`net` of what adapts."""
    norm: str
    inner_steps: int
    inner_batch: int | None
    test_steps: int
    test_batch: int | None
    batchable: bool
    """True if all layers of the network are exact when many tasks are evaluated at once."""

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        return self.outer(self, batch)

    def begin_iteration(self, iteration: int) -> None:
        super().begin_iteration(iteration)
        self.outer.begin_iteration(iteration)

    def capture_key(self, iteration: int) -> tuple[Any, ...]:
        return self.outer.capture_key(iteration)

    def adapted(self, support: Labelled, first_order: bool = False) -> tuple[Parameters, Dims]:
        """Run the inner loop of meta-training.

        Args:
            support: Support sets of T tasks.
            first_order: Inner gradients are constants to the outer gradient.

        Returns:
            The adapted parameters, and their dimension of tasks.
        """
        if self.rule.carries:
            return self._one_after_another(support, first_order)
        *_, (parameters, dims, _) = self.trajectory(support, self.inner_steps, self.inner_batch, first_order)
        return parameters, dims

    def trajectory(
        self,
        support: Labelled,
        steps: int,
        size: int | None,
        first_order: bool = False,
        start: InnerLoopState | None = None,
    ) -> Iterator[tuple[Parameters, Dims, State]]:
        """Take inner steps on all tasks.

        Args:
            support: Support sets of T tasks.
            steps: The number of steps.
            size: Examples a step; ``None``: the whole support set.
            first_order: Inner gradients are constants to the outer gradient.
            start: Where the inner loops stand; ``None``: at their beginning.

        Yields:
            After 0, ..., ``steps`` steps: the parameters, their dimension of tasks, and the rule's state.
        """
        initial, initial_dims, parameters, dims, state, done = start or self.begin(support)
        yield parameters, dims, state
        for step, (x, y) in enumerate(minibatches(support, steps, size), done):
            advance = self.over_tasks(
                partial(self.inner_step, step, first_order), (dims, None if state is None else 0, initial_dims, 0, 0)
            )
            parameters, state = advance(parameters, state, initial, x, y)
            dims = 0
            yield parameters, dims, state

    def begin(self, support: Labelled) -> InnerLoopState:
        """The inner loops before their first step."""
        initial, dims = self.adapts.initial(self, support)
        return InnerLoopState(initial, dims, initial, dims, None, 0)

    def meta_learned(self) -> Parameters:
        """The parameters that adapt, as the network holds them."""
        found = {}
        for name in self.adapted_names:
            found[name] = attrgetter(name)(self.net)
        return found

    # One task. ``step`` is the one whose gradient is taken, or that came before the queries; ``None``: the last one.

    def inner_step(
        self,
        step: int,
        first_order: bool,
        parameters: Parameters,
        state: State,
        initial: Parameters,
        x: Tensor,
        y: Tensor,
    ) -> tuple[Parameters, State]:
        """One step on one task: phi + u(gradient). ``state`` is the rule's, ``None`` before the first step."""
        gradients = self.inner_gradient(parameters, initial, x, y, step)
        if first_order:
            gradients = {name: g.detach() for name, g in gradients.items()}
        with bfloat16_disabled() if self.precision == "bfloat16" else nullcontext():  # the rule's own layers
            changes, state = self.rule.update(gradients, self.rule.init(parameters) if state is None else state, step)
        moved = {}
        for name, p in parameters.items():
            moved[name] = broadcast_add(p, changes[name])
        return moved, state

    def inner_gradient(
        self, parameters: Parameters, initial: Parameters, x: Tensor, y: Tensor, step: int | None = None
    ) -> Parameters:
        """The gradient of the inner loss on the support set (x, y), by ``parameters``."""

        def loss(p: Parameters) -> Tensor:
            prediction = self.predict(p, x, step)
            with bfloat16_disabled() if self.precision == "bfloat16" else nullcontext():  # a learned loss's own layers
                return self.loss(prediction, x, y, p, initial)

        return grad(loss)(parameters)

    def predict(self, parameters: Parameters, x: Tensor, step: int | None = None) -> Tensor:
        """Predictions [N, outputs]; ``parameters`` replace the network's own of the same names."""
        overrides = self.adapts.overrides_at(max(self.inner_steps - 1, 0) if step is None else step)
        return call_with({**overrides, **parameters}, self.net, x)

    def predict_query(self, parameters: Parameters, support: Tensor, query: Tensor, step: int | None = None) -> Tensor:
        """Query predictions [Nq, outputs], normalised by the statistics that the policy names."""
        if self.norm == "support":
            with statistics_from(self.net, len(support)):
                return self.predict(parameters, torch.cat([support, query]), step)[len(support) :]
        return self.predict(parameters, query, step)

    # Many tasks.

    def query_loss(
        self, parameters: Parameters, dims: Dims, batch: TaskBatch, step: int | None = None
    ) -> tuple[Tensor, Metrics]:
        """The mean loss [] of adapted learners on their query sets, and the means of all metrics, detached."""
        values = prediction_metrics(
            self.spec, self.query_predictions(parameters, dims, batch.support, batch.query.x, step), batch.query.y
        )
        means, metrics = {}, {}
        for name, value in values.items():
            means[name] = value.mean()
            metrics[name] = means[name].detach()
        return means["loss" if self.spec.kind == "classification" else "mse"], metrics

    def query_predictions(
        self, parameters: Parameters, dims: Dims, support: Labelled, query: Tensor, step: int | None = None
    ) -> Tensor:
        """Predictions [T, Nq, outputs] for the inputs ``query`` [T, Nq, ...]."""
        answer = partial(self.predict_query, step=step)
        return self.over_tasks(answer, (dims, 0, 0))(parameters, support.x, query)

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        steps = self.test_steps if steps is None else steps
        for taken, (parameters, dims, _) in enumerate(self.trajectory(support, steps, self.test_batch)):
            yield partial(self.query_predictions, parameters, dims, support, step=max(taken - 1, 0))

    def over_tasks(self, f: Callable[..., Any], dims: tuple[Dims, ...]) -> Callable[..., Any]:
        """``f``, a function of one task, as a function of many: batched if that is exact, else one after another.

        Args:
            f: Takes and returns tensors, or nested dictionaries and tuples of them, of one task.
            dims: The dimension of tasks in each of its arguments.
        """

        def batched(*arguments: Any) -> Any:
            with TaskBatched():
                return vmap(f, in_dims=dims, randomness="different")(*arguments)

        def loop(*arguments: Any) -> Any:
            tasks = range(len(arguments[-1]))
            return _stack([f(*(one_of(a, d, t) for a, d in zip(arguments, dims, strict=True))) for t in tasks])

        return batched if self.batchable and self.batch_tasks else loop

    def _one_after_another(self, support: Labelled, first_order: bool) -> tuple[Parameters, Dims]:
        """:meth:`adapted` with a rule whose state goes on from task to task."""
        each = []
        for task in range(len(support.y)):
            one = support.map(lambda values, task=task: values[task : task + 1])  # type: ignore[misc]
            *_, (parameters, dims, state) = self.trajectory(one, self.inner_steps, self.inner_batch, first_order)
            if state is not None:
                self.rule.keep(one_of(state, 0, 0))
            each.append(parameters if dims is None else one_of(parameters, dims, 0))
        return _stack(each), 0


def minibatches(support: Labelled, steps: int, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, y) for each step: the whole support set, or the next ``size`` examples of it in random order.

    Every task has an order of its own, drawn anew whenever it is used up.
    """
    tasks, examples = support.y.shape[:2]
    if size is None or size >= examples:
        yield from [(support.x, support.y)] * steps
        return
    device = support.y.device
    order = torch.rand(tasks, ceil(steps * size / examples), examples, device=device).argsort(-1).flatten(1)
    row = torch.arange(tasks, device=device)[:, None]
    for step in range(steps):
        chosen = order[:, step * size : (step + 1) * size]
        yield support.x[row, chosen], support.y[row, chosen]


def one_of(value: Any, dims: Dims, task: int) -> Any:
    """One task's part of an argument of :meth:`InnerLoopLearner.over_tasks`."""
    if dims is None:
        return value
    if isinstance(value, dict):
        return {k: one_of(v, dims[k] if isinstance(dims, dict) else dims, task) for k, v in value.items()}
    return value[task]


def _stack(values: Sequence[Any]) -> Any:
    """The inverse: a result of many tasks from those of each."""
    first = values[0]
    if isinstance(first, dict):
        return {k: _stack([v[k] for v in values]) for k in first}
    if isinstance(first, tuple):
        return tuple(map(_stack, zip(*values, strict=True)))
    return torch.stack(list(values))
