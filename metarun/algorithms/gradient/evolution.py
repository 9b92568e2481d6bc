"""Evolution strategies: an estimate of the outer gradient from the losses of perturbed meta-parameters."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import function_of_tensors
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner, InnerLoopState, minibatches, one_of
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.truncated import TruncatedUnroll
from metarun.algorithms.supervised import prediction_metrics
from metarun.errors import require
from metarun.tasks.episode import Labelled, TaskBatch
from metarun.tasks.rng import forked_rng
from metarun.types import Positive, Rate


class Evolution(TruncatedUnroll):
    """Antithetic evolution strategies with a pair of particles theta +- e for each task.

    With e ~ N(0, ``sigma``^2 I) drawn for each task and the losses L+ and L- of its pair,

        d = mean over tasks of e (L+ - L-) / (2 sigma^2)

    is an unbiased estimate of the gradient of L smoothed by N(0, sigma^2 I) (Salimans et al. 2017, arXiv:1703.03864).
    Both particles of a pair get the same random numbers. If the inner loop is split into windows of ``unroll`` steps,
    particles continue from one window to the next with a new e each, and the sum of a pair's e so far replaces e in the
    estimate. These are persistent evolution strategies, which have no truncation bias (Vicol, Metz & Sohl-Dickstein
    2021, arXiv:2112.13835, Algorithm 2). L is the query loss after the last step or, with ``along``, the sum of the
    losses after every step. A pair with a particle whose loss is infinite or NaN contributes 0 until its inner loop
    ends.
    """

    is_capturable = False

    def __init__(self, *, sigma: Rate, unroll: Positive | None, log: bool, along: bool) -> None:
        super().__init__(unroll=unroll, log=log)
        self.sigma, self.along = sigma, along

    def prepare(self, learner: InnerLoopLearner) -> None:
        super().prepare(learner)
        self.learns = [name for name, p in learner.named_parameters() if p.requires_grad]
        require(bool(self.learns), "algorithm.outer: evolution strategies need a meta-parameter, and here is none")

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        theta = {name: learner.get_parameter(name) for name in self.learns}
        batch = self.tasks(batch)
        tasks, some = len(batch.support.y), next(iter(theta.values()))
        with torch.no_grad():
            noise = {n: self.sigma * torch.randn(tasks, *p.shape, dtype=p.dtype, device=p.device)
                     for n, p in theta.items()}  # fmt: skip
            plus, minus = ({n: p + sign * noise[n] for n, p in theta.items()} for sign in (1, -1))
            particles = {n: torch.cat([plus[n], minus[n]]) for n in theta}
            if self.kept is None:
                with forked_rng(some.device):
                    start = self.begin(learner, plus, batch.support)
                mirrored = self.begin(learner, minus, batch.support)
                start = {n: torch.cat([p, mirrored[n]]) for n, p in start.items()}
                inner, drift = InnerLoopState(start, 0, start, 0, None, 0), noise
            else:
                inner = InnerLoopState(*self.kept["walk"])
                drift = {n: e + self.kept["drift"][n] for n, e in noise.items()}
            inner, losses, metrics = self.run(learner, particles, inner, batch)
            self.keep(learner, batch, inner, drift=drift)
            differences = finite(losses[:tasks] - losses[tasks:]) / (2 * self.sigma**2 * tasks)
            gradient = {n: torch.tensordot(differences, e, 1) for n, e in drift.items()}
        return torch.stack([(gradient[n] * p).sum() for n, p in theta.items()]).sum(), metrics

    def begin(self, learner: InnerLoopLearner, meta: Parameters, support: Labelled) -> Parameters:
        """Return the initial parameters of each task's particle."""

        def one(x: Tensor, y: Tensor) -> Parameters:
            return one_of(*learner.adapts.initial(learner, Labelled(x[None], y[None], support.way)), 0)

        return learner.map_tasks(function_of_tensors(learner, one), (0, 0, 0), meta, support.x, support.y)

    def run(
        self, learner: InnerLoopLearner, meta: Parameters, inner: InnerLoopState, batch: TaskBatch
    ) -> tuple[InnerLoopState, Tensor, Metrics]:
        """Run all particles through a window; return their state, their losses [2T], and the metrics at its end.

        The first T particles have theta + e, the others theta - e.
        """
        initial, _, parameters, _, state, first = inner
        last = first + self.window(learner, first)
        support, query = (part.map(twice) for part in (batch.support, batch.query))
        losses, metrics = next(iter(meta.values())).new_zeros(2 * len(batch.support.y)), {}
        for step, (x, y) in enumerate(minibatches(batch.support, last - first, learner.inner_batch), first):
            move = function_of_tensors(learner, partial(learner.inner_step, step, False))
            dims = (0, 0, None if state is None else 0, 0, 0, 0)
            changes, state = learner.map_tasks(move, dims, meta, parameters, state, initial, twice(x), twice(y))
            parameters = {name: p + changes[name] for name, p in parameters.items()}
            if self.along or step + 1 == last:
                predict = function_of_tensors(learner, learner.predict)
                each = (0, 0, 0, None, 0)
                predictions = learner.map_tasks(predict, each, meta, parameters, query.x, step, support.x)
                metrics = prediction_metrics(learner.spec, predictions, query.y)
            if self.along or step + 1 == learner.inner_steps:
                losses = losses + self.task_objectives(metrics)
        there = losses.isfinite() & torch.stack(list(metrics.values())).isfinite().all(0)
        means = {name: torch.where(there, value, 0).sum() / there.sum() for name, value in metrics.items()}
        return InnerLoopState(initial, 0, parameters, 0, state, last), losses, means

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, {super().extra_repr()}, along={self.along}"


def finite(x: Tensor) -> Tensor:
    """Zero for what is infinite or not a number."""
    return torch.where(x.isfinite(), x, 0)


def twice(x: Tensor) -> Tensor:
    """The tasks [T, ...] once for each half of the particles, [2T, ...]."""
    return torch.cat([x, x])
