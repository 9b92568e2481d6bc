"""The gradient engine: a learner that adapts by gradient steps, put together from four exchangeable pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode

from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import call_with
from metarun.algorithms.gradient.adapts import Adapts
from metarun.algorithms.gradient.losses import InnerLoss
from metarun.algorithms.gradient.outer import OuterGradient
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.rules import Rule, State
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, dry_run, judge, with_head
from metarun.kernels.bfloat16 import bfloat16_disabled
from metarun.kernels.broadcast_add import broadcast_add
from metarun.kernels.mode import REPLACED, TaskBatched
from metarun.models.norm import set_policy, statistics_from
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, Positive, Rate

Dims = Any
"""Which dimension of an argument is the tasks': 0, ``None`` (shared by all), or nested dictionaries of these."""


RECORDED = 32
"""Inner steps up to which a step is captured: the recording, and the time that making it takes, grow with them."""


class Walk(NamedTuple):
    """Where the inner loops of many tasks stand, after ``step`` steps."""

    initial: Parameters
    shared: Dims
    """The dimension of tasks of ``initial``."""
    parameters: Parameters
    dims: Dims
    """The same of ``parameters``."""
    state: State
    """The rule's; ``None`` before the first step."""
    step: int


class GradientLearner(SupervisedAlgorithm):
    """Learns from where, and with learned pieces how, a few gradient steps learn a task.

    The model gets a linear head. On a task with support set S and query set Q, what ``adapts`` starts at phi_0
    (the meta-parameters theta themselves, as a rule) and takes ``inner_steps`` steps

        phi_k+1 = phi_k + u(g_k),   g_k = gradient of l(phi_k; S)

    of the ``rule`` u on the inner ``loss`` l, a mean over the support set; ``outer`` turns the adapted phi_K and
    Q into a gradient by theta and by all that the pieces themselves learn. MAML (Finn, Abbeel & Levine 2017,
    arXiv:1703.03400, Algorithm 2): all parameters, SGD, the task's loss, unrolled.

    ``inner_lr`` is the rule's step size, or what a learned one starts from. ``test_steps`` steps are taken on
    test tasks; ``inner_steps=0`` is joint pre-training on all tasks. Steps are on the whole support set, or on
    ``inner_batch`` (``test_batch``) examples of it. The outer step is Adam's or plain descent's
    (``outer_optimizer``) of size ``outer_lr``, halved every ``halve_every`` iterations, or falling to 0 over
    ``decay_over``, in a line or along a cosine (``decay``). ``head_init`` is the standard deviation of the head's
    weights (null: torch's own initialisation). Meta-trains on episodes of ``train_shot`` and ``train_query`` where
    given. ``norm``: ``transductive`` or ``support``; a running average has no meaning for parameters that change
    with every task.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        adapts: Adapts,
        rule: Rule,
        loss: InnerLoss,
        outer: OuterGradient,
        inner_lr: Rate,
        inner_steps: Count,
        inner_batch: Positive | None,
        test_steps: Count,
        test_batch: Positive | None,
        norm: Literal["transductive", "support"],
        head_init: Rate | None,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_optimizer: Literal["adam", "sgd"],
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        self.spec, self.norm = spec, norm
        self.inner_lr = inner_lr
        self.inner_steps, self.inner_batch = inner_steps, inner_batch
        self.test_steps, self.test_batch = test_steps, test_batch
        self.train_shot, self.train_query = train_shot, train_query
        self.net = with_head(model, spec, spec.output_size, head_init)
        set_policy(self.net, norm)
        self.adapts, self.rule, self.loss, self.outer = adapts, rule, loss, outer
        self.adapted_names, self.any_way = adapts.attach(self.net, spec), adapts.any_way
        adapts.prepare(self)
        rule.prepare(self.meta_learned(), inner_lr, inner_steps)
        loss.prepare(spec)
        outer.prepare(self)
        with _Unbatchable() as found:
            dry_run(model, spec)
        self.batchable = not found.any and getattr(model, "batchable", True)
        self.needs_full_meta_batch = rule.carries or outer.needs_full_meta_batch
        self.learn_with(outer_lr, halve_every, decay_over, decay, outer_optimizer)

    @property
    def batched(self) -> bool:
        """Whether inner loops run on all tasks at once: where that is exact, unless :attr:`batch_tasks` is off."""
        return self.batchable and self.batch_tasks

    def begin_iteration(self, iteration: int) -> None:
        super().begin_iteration(iteration)
        self.outer.begin_iteration(iteration)

    def capture_key(self, iteration: int) -> tuple[Any, ...]:
        return self.outer.capture_key(iteration)

    @property
    def is_capturable(self) -> bool:
        return self.outer.is_capturable and self.inner_steps <= RECORDED

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        """The model without the head."""
        return self.net[0]

    def meta_learned(self) -> Parameters:
        """What adapts, as the network holds it."""
        return {name: attrgetter(name)(self.net) for name in self.adapted_names}

    # One task. ``step`` is the one whose gradient is taken, or that came before the queries; null: the last one.

    def predict(self, parameters: Parameters, x: Tensor, step: int | None = None) -> Tensor:
        """Predictions [N, outputs]; ``parameters`` replace the network's own of the same names."""
        of_the_step = self.adapts.at(max(self.inner_steps - 1, 0) if step is None else step)
        return call_with({**of_the_step, **parameters}, self.net, x)

    def predict_query(self, parameters: Parameters, support: Tensor, query: Tensor, step: int | None = None) -> Tensor:
        """Query predictions, normalised as the policy says."""
        if self.norm == "support":
            with statistics_from(self.net, len(support)):
                return self.predict(parameters, torch.cat([support, query]), step)[len(support) :]
        return self.predict(parameters, query, step)

    def inner_gradient(
        self, parameters: Parameters, initial: Parameters, x: Tensor, y: Tensor, step: int | None = None
    ) -> Parameters:
        """Of the inner loss on the support set (x, y), by ``parameters``."""

        def loss(p: Parameters) -> Tensor:
            prediction = self.predict(p, x, step)
            with bfloat16_disabled():
                return self.loss(prediction, x, y, p, initial)

        return grad(loss)(parameters)

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
        """Parameters and the rule's state after one more step; ``state`` is ``None`` before the first."""
        gradients = self.inner_gradient(parameters, initial, x, y, step)
        if first_order:
            gradients = {name: g.detach() for name, g in gradients.items()}
        with bfloat16_disabled():  # the rule is not part of the network
            changes, state = self.rule.update(gradients, self.rule.init(parameters) if state is None else state, step)
        return {name: broadcast_add(p, changes[name]) for name, p in parameters.items()}, state

    # Many tasks.

    def begin(self, support: Labelled) -> Walk:
        """The inner loops before their first step."""
        initial, shared = self.adapts.initial(self, support)
        return Walk(initial, shared, initial, shared, None, 0)

    def trajectory(
        self, support: Labelled, steps: int, size: int | None, first_order: bool = False, start: Walk | None = None
    ) -> Iterator[tuple[Parameters, Dims, State]]:
        """Parameters after 0..``steps`` steps on ``size`` examples, the dimension of their tasks, the rule's state.

        From their beginning, or from wherever ``start`` says that they stand.
        """
        initial, shared, parameters, dims, state, done = start or self.begin(support)
        yield parameters, dims, state
        for step, (x, y) in enumerate(minibatches(support, steps, size), done):
            advance = self.over_tasks(
                partial(self.inner_step, step, first_order), (dims, None if state is None else 0, shared, 0, 0)
            )
            parameters, state = advance(parameters, state, initial, x, y)
            dims = 0
            yield parameters, dims, state

    def adapted(self, support: Labelled, first_order: bool = False) -> tuple[Parameters, Dims]:
        """Parameters after the inner loop of meta-training, and the dimension of their tasks.

        One task after another where the rule carries its state on.
        """
        if not self.rule.carries:
            *_, (parameters, dims, _) = self.trajectory(support, self.inner_steps, self.inner_batch, first_order)
            return parameters, dims
        each = []
        for task in range(len(support.y)):
            one = support.map(lambda values, task=task: values[task : task + 1])  # type: ignore[misc]
            *_, (parameters, dims, state) = self.trajectory(one, self.inner_steps, self.inner_batch, first_order)
            if state is not None:
                self.rule.keep(one_of(state, 0, 0))
            each.append(parameters if dims is None else one_of(parameters, dims, 0))
        return _stack(each), 0

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        steps = self.test_steps if steps is None else steps
        for taken, (parameters, dims, _) in enumerate(self.trajectory(support, steps, self.test_batch)):
            yield partial(self.answers, parameters, dims, support, step=max(taken - 1, 0))

    def answers(
        self, parameters: Parameters, dims: Dims, support: Labelled, query: Tensor, step: int | None = None
    ) -> Tensor:
        """Predictions [T, Nq, outputs] for the inputs ``query`` [T, Nq, ...]."""
        answer = partial(self.predict_query, step=step)
        return self.over_tasks(answer, (dims, 0, 0))(parameters, support.x, query)

    def query_loss(
        self, parameters: Parameters, dims: Dims, batch: TaskBatch, step: int | None = None
    ) -> tuple[Tensor, Metrics]:
        """Mean loss of adapted learners on their query sets; and that with the other metrics, detached."""
        judged = judge(self.spec, self.answers(parameters, dims, batch.support, batch.query.x, step), batch.query.y)
        means = {name: value.mean() for name, value in judged.items()}
        loss = means["loss" if self.spec.kind == "classification" else "mse"]
        return loss, {name: value.detach() for name, value in means.items()}

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        return self.outer(self, batch)

    def over_tasks(self, f: Callable[..., Any], dims: tuple[Dims, ...]) -> Callable[..., Any]:
        """``f`` of one task as a function of many: batched where that is exact, else one task after another."""
        if self.batched:

            def batched(*arguments: Any) -> Any:
                with TaskBatched():
                    return vmap(f, in_dims=dims, randomness="different")(*arguments)

            return batched

        def loop(*arguments: Any) -> Any:
            tasks = range(len(arguments[-1]))
            return _stack([f(*(one_of(a, d, t) for a, d in zip(arguments, dims, strict=True))) for t in tasks])

        return loop

    def protocol(self) -> dict[str, Any]:
        pieces = {"adapts": self.adapts, "rule": self.rule, "loss": self.loss, "outer": self.outer}
        return {
            "norm": self.norm,
            "inner_steps": self.inner_steps,
            "test_steps": self.test_steps,
            "inner_lr": self.inner_lr,
            **{name: f"{type(piece).__name__}({piece.extra_repr()})" for name, piece in pieces.items()},
        }


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


UNTRUSTED = ("batch_norm", "layer_norm", "instance_norm", "group_norm", "lstm", "gru", "rnn_tanh", "rnn_relu")


class _Unbatchable(TorchFunctionMode):
    """Notes whether an operation is called whose batching rule under ``vmap`` cannot be trusted.

    torch's own batch, layer and instance normalisation give wrong second-order gradients there, without a word; of
    these, ``metarun.kernels`` replaces all but the last. Recurrent kernels have no rule.
    """

    any = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any |= func not in REPLACED and getattr(func, "__name__", "").endswith(UNTRUSTED)
        return func(*args, **(kwargs or {}))


def one_of(value: Any, dims: Dims, task: int) -> Any:
    """One task's part of an argument of :meth:`GradientLearner.over_tasks`."""
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
