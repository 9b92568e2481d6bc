"""Outer gradients of long inner loops, one window of steps per outer step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from metarun.algorithms.base import Metrics
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner, InnerLoopState
from metarun.algorithms.gradient.pieces import OuterGradient, refuse_constant_gradients
from metarun.algorithms.supervised import prediction_metrics
from metarun.errors import require
from metarun.tasks.episode import Labelled, TaskBatch
from metarun.types import Positive

SMALLEST = 1e-10
"""Added to a loss before the logarithm, as in the paper."""


class TruncatedUnroll(OuterGradient):
    """The base class of outer gradients of ``unroll`` inner steps per outer step (null: of the whole inner loop).

    The next outer step continues the inner loops on the same tasks. After ``algorithm.inner_steps`` steps all inner
    loops start again on the current meta-batch; the meta-batches in between are not used. The state is part of the
    checkpoint. With ``log`` the objective is the logarithm of each task's loss, so that late, small losses count as
    much as early, large ones (Wichrowska et al. 2017, arXiv:1703.04813, section 3.3).
    """

    def __init__(self, *, unroll: Positive | None, log: bool) -> None:
        super().__init__()
        self.unroll, self.log = unroll, log
        self.needs_full_meta_batch = unroll is not None
        """True if it needs the whole meta-batch at once, because its tasks are kept together."""
        self.kept: dict[str, Any] | None = None
        """State of the unfinished inner loops, tensors and plain values; ``None``: the next outer step begins anew."""

    def prepare(self, learner: InnerLoopLearner) -> None:
        require(learner.inner_steps > 0, "algorithm.inner_steps=0: a window of the inner loop needs one")
        require(not learner.rule.carries, "algorithm.rule.carry=true: long inner loops keep a rule's state themselves")

    def window(self, learner: InnerLoopLearner, step: int) -> int:
        """Return the number of inner steps to take after ``step`` steps."""
        return min(self.unroll or learner.inner_steps, learner.inner_steps - step)

    def task_objectives(self, metrics: Metrics) -> Tensor:
        """Return the objective [T] of each task's learner, computed from its metrics."""
        losses = metrics["loss"] if "loss" in metrics else metrics["mse"]
        return (losses + SMALLEST).log() if self.log else losses

    def keep(self, learner: InnerLoopLearner, batch: TaskBatch, inner: InnerLoopState, **more: Any) -> None:
        """Keep the state from which the next outer step continues, unless the inner loops have ended."""
        self.kept = None
        if inner.step < learner.inner_steps:
            support, query = batch.support, batch.query
            tasks = {"support": (support.x, support.y), "query": (query.x, query.y), "way": support.way}
            self.kept = mapped(lambda t: t.detach().clone(), {"walk": tuple(inner), **tasks, **more})

    def tasks(self, batch: TaskBatch) -> TaskBatch:
        """Return the tasks of the unfinished inner loops, or ``batch`` if there are none."""
        if self.kept is None:
            return batch
        (sx, sy), (qx, qy), way = (self.kept[part] for part in ("support", "query", "way"))
        return TaskBatch(Labelled(sx, sy, way), Labelled(qx, qy, way))

    def get_extra_state(self) -> dict[str, Any] | None:
        return self.kept

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        self.kept = state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TruncatedUnroll:
        """Also move the kept state in ``to``."""
        self.kept = mapped(fn, self.kept)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"unroll={self.unroll}, log={self.log}"


class TruncatedBackprop(TruncatedUnroll):
    """Truncated backpropagation: the gradient of the sum of query losses after each step of a window.

    L = sum over k of l(phi_k; Q) (Andrychowicz et al. 2016, arXiv:1606.04474, equation 3 with all w_k = 1), a mean
    over tasks. Steps before the window are constants. With ``first_order`` the inputs of the rule are constants too
    (the paper's dashed edges), which avoids second derivatives. With ``unroll`` null nothing is truncated.
    """

    def __init__(self, *, unroll: Positive | None, log: bool, first_order: bool) -> None:
        super().__init__(unroll=unroll, log=log)
        self.first_order = first_order

    def prepare(self, learner: InnerLoopLearner) -> None:
        super().prepare(learner)
        refuse_constant_gradients(self.first_order, learner)

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        batch = self.tasks(batch)
        start = None if self.kept is None else InnerLoopState(*self.kept["walk"])
        steps, losses = self.window(learner, 0 if start is None else start.step), []
        trajectory = learner.trajectory(batch.support, steps, learner.inner_batch, self.first_order, start)
        for now in islice(trajectory, 1, None):
            predictions = learner.query_predictions(
                now.parameters, now.dims, batch.support, batch.query.x, now.step - 1
            )
            metrics = prediction_metrics(learner.spec, predictions, batch.query.y)
            losses.append(self.task_objectives(metrics).mean())
        self.keep(learner, batch, now)
        return torch.stack(losses).sum(), {name: value.detach().mean() for name, value in metrics.items()}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, first_order={self.first_order}"


def mapped(f: Callable[[Tensor], Tensor], values: Any) -> Any:
    """Apply ``f`` to every tensor in nested dictionaries and tuples."""
    return tree_map_only(Tensor, f, values)
