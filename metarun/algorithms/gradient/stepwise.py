"""The outer gradient of single inner steps, without backpropagation through earlier steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from metarun.algorithms.base import Metrics
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner
from metarun.algorithms.gradient.pieces import OuterGradient
from metarun.errors import require
from metarun.tasks.episode import TaskBatch


class Stepwise(OuterGradient):
    """The gradient of the query loss one step after each point phi_k of the inner loop, the mean over k of

        l(phi_k + u(g_k); Q),   k = 0 .. inner_steps - 1,

    with constant phi_k. This is WarpGrad's objective for warp layers (Flennerhag et al. 2020, arXiv:1909.00025, section
    2.4), and can train any other learned piece. It covers every point of the inner loop and has no products of
    Hessians. The parameters that adapt get the gradient of each step as if phi_k were theta plus a constant, which is
    the mean of (I - lr H(phi_k)) dl / d phi_k+1. For one step it is MAML's. It takes the place of the paper's term for
    the initialisation (section 2.5), which can be chosen freely.
    """

    def prepare(self, learner: InnerLoopLearner) -> None:
        require(learner.inner_steps > 0, "algorithm.inner_steps=0: the outer gradient of single steps needs one")
        require(not learner.rule.carries, "algorithm.rule.carry=true: steps on their own have no state to carry on")

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        start, losses = None, []
        for step in range(learner.inner_steps):
            _, moved = learner.trajectory(batch.support, 1, learner.inner_batch, start=start)
            loss, metrics = learner.query_loss(moved.parameters, moved.dims, batch, step)
            losses.append(loss)
            constant = {name: p + (moved.parameters[name] - p).detach() for name, p in moved.initial.items()}
            start = moved._replace(parameters=constant, state=tree_map_only(Tensor, Tensor.detach, moved.state))
        return torch.stack(losses).mean(), metrics
