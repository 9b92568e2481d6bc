"""How the outer gradient is found: the last of the gradient engine's four pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.tasks.base import TaskBatch

if TYPE_CHECKING:
    from metarun.algorithms.gradient.learner import GradientLearner


class OuterGradient(nn.Module):
    """Gives a loss whose gradient by the meta-parameters is the outer gradient; its value need mean nothing."""

    def forward(self, learner: GradientLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        """That loss, and the means over tasks of what the adapted learners are judged by on their query sets."""
        raise NotImplementedError


class Unrolled(OuterGradient):
    """The query loss differentiated through every inner step (MAML); if ``first_order``, inner gradients are constants.

    One step of SGD on all parameters: d l(phi; Q) / d theta = (I - lr H) g, H the support loss's Hessian at theta
    and g the query loss's gradient at phi (Finn et al. 2017, section 2.2); first order (FOMAML, section 5.2): g.
    """

    def __init__(self, *, first_order: bool) -> None:
        super().__init__()
        self.first_order = first_order

    def forward(self, learner: GradientLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        return learner.query_loss(*learner.adapted(batch.support, self.first_order), batch)

    def extra_repr(self) -> str:
        return f"first_order={self.first_order}"


class Difference(OuterGradient):
    """From the adapted parameters towards the meta-learned ones: d = mean over tasks of theta - phi (Reptile).

    Nichol, Achiam & Schulman 2018, arXiv:1803.02999, Algorithm 2: plain descent theta <- theta - epsilon d moves
    theta the fraction epsilon (``algorithm.outer_lr``) of the way to the mean phi. What does not adapt, and what
    the other pieces would learn, gets no gradient. The query set is for the log only.
    """

    def forward(self, learner: GradientLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            adapted, dims = learner.adapted(batch.support)
            _, metrics = learner.query_loss(adapted, dims, batch)
        initial, _ = learner.adapts.initial(learner, batch.support)
        squares = [(p - adapted[name]).square().sum() for name, p in initial.items()]
        return torch.stack(squares).sum() / (2 * len(batch.support.y)), metrics
