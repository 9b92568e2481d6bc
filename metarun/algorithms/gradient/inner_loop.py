"""The inner loop: adaptation to T tasks by gradient steps, and the loss on their query sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from math import ceil
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import call_with, repeats, without_compiler
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import (
    AdaptedParameters,
    Dims,
    InnerLoss,
    OuterGradient,
    Rule,
    State,
    TaskLoss,
)
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, prediction_metrics
from metarun.kernels.bfloat16 import bfloat16_disabled
from metarun.kernels.mode import TaskBatched
from metarun.kernels.shared import add_to_shared
from metarun.models.norm import statistics_from
from metarun.tasks.episode import Labelled, TaskBatch


class InnerLoopState(NamedTuple):
    """The state of the inner loops of T tasks.

    Attributes:
        initial: Initial values of the parameters that adapt.
        initial_dims: Dimension of tasks of ``initial``.
        parameters: Current values of the parameters that adapt.
        dims: Dimension of tasks of ``parameters``.
        state: State of the rule; ``None`` before the first step.
        step: Number of steps taken.
    """

    initial: Parameters
    initial_dims: Dims
    parameters: Parameters
    dims: Dims
    state: State
    step: int


class InnerLoopLearner(SupervisedAlgorithm):
    """The base class of learners that adapt by gradient steps. :class:`GradientLearner` assembles one from its pieces.

    MAML's outer loss calls the methods in this order: :meth:`outer_loss`, ``forward`` of the outer gradient,
    :meth:`adapted`, :meth:`trajectory`, :meth:`inner_step`, :meth:`inner_gradient`, :meth:`predict`, and then
    :meth:`query_loss` with the adapted parameters.
    """

    net: nn.Sequential
    """The model, then its linear head."""
    adapts: AdaptedParameters
    rule: Rule
    loss: InnerLoss
    outer: OuterGradient
    adapted_names: list[str]
    """Names in :attr:`net` of the parameters that adapt."""
    norm: str
    inner_steps: int
    inner_batch: int | None
    test_steps: int
    test_batch: int | None
    batchable: bool
    """True if all layers of the network are exact when T tasks are evaluated at once."""
    has_replaced_layers: bool = True
    """False if no layer of the network is one that :class:`TaskBatched` replaces."""

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        return self.outer(self, batch)

    def capture_key(self, iteration: int) -> tuple[Any, ...]:
        return self.outer.capture_key(iteration)

    def adapted(self, support: Labelled, first_order: bool = False) -> tuple[Parameters, Dims]:
        """Run the inner loop of meta-training.

        Args:
            support: Support sets of T tasks.
            first_order: If true, inner gradients are constants in the outer gradient.

        Returns:
            The adapted parameters, and their dimension of tasks.
        """
        if self.rule.carries:
            return self._one_after_another(support, first_order)
        *_, last = self.trajectory(support, self.inner_steps, self.inner_batch, first_order)
        return last.parameters, last.dims

    def trajectory(
        self,
        support: Labelled,
        steps: int,
        size: int | None,
        first_order: bool = False,
        start: InnerLoopState | None = None,
    ) -> Iterator[InnerLoopState]:
        """Take inner steps on all tasks.

        Args:
            support: Support sets of T tasks.
            steps: Number of steps.
            size: Examples per step; ``None``: the whole support set.
            first_order: If true, inner gradients are constants in the outer gradient.
            start: State to continue from; ``None``: the beginning.

        Yields:
            The state after 0, ..., ``steps`` steps.
        """
        now = start
        if now is None:
            initial, dims = self.adapts.initial(self, support)
            now = InnerLoopState(initial, dims, initial, dims, None, 0)
        yield now
        predict: Callable[..., Tensor] = self.predict
        if steps > 1 and self.has_constant_features and (size is None or size >= support.y.shape[1]):
            features = self.map_tasks(self.net[0], (0,), support.x)
            support, predict = replace(support, x=features), self.predict_from_features
        for step, (x, y) in enumerate(minibatches(support, steps, size), now.step):
            inner_step = partial(self.inner_step, step, first_order, predict=predict)
            argument_dims = (now.dims, None if now.state is None else 0, now.initial_dims, 0, 0)
            changes, state = self.map_tasks(inner_step, argument_dims, now.parameters, now.state, now.initial, x, y)
            moved = {}
            for name, p in now.parameters.items():
                shared = p.dim() < changes[name].dim()
                moved[name] = add_to_shared(p, changes[name]) if shared else p + changes[name]
            now = now._replace(parameters=moved, dims=0, state=state, step=step + 1)
            yield now

    def meta_learned(self) -> Parameters:
        """Return the values of the adapting parameters that the network holds, by name."""
        found = {}
        for name in self.adapted_names:
            found[name] = attrgetter(name)(self.net)
        return found

    # Functions of one task. ``step`` is the current inner step; for queries, the last one taken (``None``: the final).

    def inner_step(
        self,
        step: int,
        first_order: bool,
        parameters: Parameters,
        state: State,
        initial: Parameters,
        x: Tensor,
        y: Tensor,
        predict: Callable[..., Tensor] | None = None,
    ) -> tuple[Parameters, State]:
        """Return the change u(gradient) of the parameters by one step on one task, and the new state of the rule."""
        gradients = self.inner_gradient(parameters, initial, x, y, step, predict)
        if first_order:
            gradients = {name: g.detach() for name, g in gradients.items()}
        with bfloat16_disabled() if self.precision == "bfloat16" else nullcontext():  # layers of the rule
            return self.rule.update(gradients, self.rule.init(parameters) if state is None else state, step)

    @without_compiler()
    def inner_gradient(
        self,
        parameters: Parameters,
        initial: Parameters,
        x: Tensor,
        y: Tensor,
        step: int | None = None,
        predict: Callable[..., Tensor] | None = None,
    ) -> Parameters:
        """Return the gradient of the inner loss on the support set (x, y) with respect to ``parameters``.

        With ``predict``, a function as :meth:`predict`, ``x`` is what that takes, such as features.
        """
        predicted = predict or self.predict

        def loss(p: Parameters) -> Tensor:
            prediction = predicted(p, x, step)
            with bfloat16_disabled() if self.precision == "bfloat16" else nullcontext():  # layers of a learned loss
                return self.loss(prediction, x, y, p, initial)

        return grad(loss)(parameters)

    def predict(
        self, parameters: Parameters, x: Tensor, step: int | None = None, support: Tensor | None = None
    ) -> Tensor:
        """Return predictions [N, outputs] of the network with ``parameters`` in place of its own.

        Normalisation is by the statistics of ``x``, or of ``support`` [Ns, ...] if given and :attr:`norm` says so.
        """
        overrides = self.adapts.overrides_at(max(self.inner_steps - 1, 0) if step is None else step)
        if support is None or self.norm != "support":
            return call_with({**overrides, **parameters}, self.net, x)
        with statistics_from(self.net, len(support)):
            return call_with({**overrides, **parameters}, self.net, torch.cat([support, x]))[len(support) :]

    @property
    def has_constant_features(self) -> bool:
        """True if features are the same in all steps: the head alone adapts, by a loss of its predictions, and the
        body draws no noise."""
        head = {f"{len(self.net) - 1}.{name}" for name, _ in self.net[-1].named_parameters()}
        by_step = type(self.adapts).overrides_at is not AdaptedParameters.overrides_at
        alone = head.issuperset(self.adapted_names) and not by_step and isinstance(self.loss, TaskLoss)
        return alone and repeats(self.net[0])

    def predict_from_features(self, parameters: Parameters, features: Tensor, step: int | None = None) -> Tensor:
        """Return predictions [N, outputs] of the head alone, whose ``parameters`` have the names of the network's."""
        own = {name.partition(".")[2]: value for name, value in parameters.items()}
        return call_with(own, self.net[-1], features)

    # Functions of T tasks.

    def query_loss(
        self, parameters: Parameters, dims: Dims, batch: TaskBatch, step: int | None = None
    ) -> tuple[Tensor, Metrics]:
        """Return the mean loss [] of adapted learners on their queries, and the means of all metrics, detached."""
        predictions = self.query_predictions(parameters, dims, batch.support, batch.query.x, step)
        values = prediction_metrics(self.spec, predictions, batch.query.y)
        means, metrics = {}, {}
        for name, value in values.items():
            means[name] = value.mean()
            metrics[name] = means[name].detach()
        return means["loss" if self.spec.kind == "classification" else "mse"], metrics

    def query_predictions(
        self, parameters: Parameters, dims: Dims, support: Labelled, query: Tensor, step: int | None = None
    ) -> Tensor:
        """Return predictions [T, Nq, outputs] for query inputs [T, Nq, ...]."""
        return self.map_tasks(self.predict, (dims, 0, None, 0), parameters, query, step, support.x)

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        steps = self.test_steps if steps is None else steps
        for now in self.trajectory(support, steps, self.test_batch):
            yield partial(self.query_predictions, now.parameters, now.dims, support, step=max(now.step - 1, 0))

    def map_tasks(self, f: Callable[..., Any], dims: tuple[Dims, ...], *arguments: Any) -> Any:
        """Apply a function of one task to T tasks: batched if that is exact, else to one task after another.

        Args:
            f: Function of one task. It takes and returns tensors, or nested dictionaries and tuples of tensors.
            dims: Dimension of tasks of each argument.
            arguments: The arguments, of all tasks.

        Returns:
            The results, with tasks in dimension 0.
        """
        if self.batchable and self.batch_tasks:
            with TaskBatched() if self.has_replaced_layers else nullcontext():
                return vmap(f, in_dims=dims, randomness="different")(*arguments)
        tasks = range(len(arguments[-1]))
        return _stack([f(*(one_of(a, d, t) for a, d in zip(arguments, dims, strict=True))) for t in tasks])

    def _one_after_another(self, support: Labelled, first_order: bool) -> tuple[Parameters, Dims]:
        """Run :meth:`adapted` with a rule that carries its state from task to task."""
        each = []
        for one in support.singly():
            *_, last = self.trajectory(one, self.inner_steps, self.inner_batch, first_order)
            if last.state is not None:
                self.rule.keep(one_of(last.state, 0, 0))
            each.append(last.parameters if last.dims is None else one_of(last.parameters, last.dims, 0))
        return _stack(each), 0


def minibatches(support: Labelled, steps: int, size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (x [T, size, ...], y [T, size, ...]) for each step.

    This is the whole support set, or its next ``size`` examples in random order. Each task has its own order, which is
    drawn anew whenever it is used up.
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
    """Return one task's part of an argument of :meth:`InnerLoopLearner.map_tasks`."""
    if dims is None:
        return value
    if isinstance(value, dict):
        return {k: one_of(v, dims[k] if isinstance(dims, dict) else dims, task) for k, v in value.items()}
    return value[task]


def _stack(values: Sequence[Any]) -> Any:
    """Stack the results of single tasks; the inverse of :func:`one_of`."""
    first = values[0]
    if isinstance(first, dict):
        return {k: _stack([v[k] for v in values]) for k in first}
    if isinstance(first, tuple):
        return tuple(map(_stack, zip(*values, strict=True)))
    return torch.stack(list(values))
