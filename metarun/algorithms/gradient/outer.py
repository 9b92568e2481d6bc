"""Outer gradients: unrolled (MAML), of the difference of parameters (Reptile), and implicit (iMAML)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import vjp

from metarun.algorithms.base import Metrics
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner
from metarun.algorithms.gradient.parameters import Parameters, flatten, unflatten
from metarun.algorithms.gradient.pieces import OuterGradient
from metarun.algorithms.solve import conjugate_gradient, neumann_series
from metarun.errors import require
from metarun.tasks.episode import TaskBatch
from metarun.types import NonNegative, Positive, Rate


class Unrolled(OuterGradient):
    """The query loss differentiated through every inner step (MAML); if ``first_order``, inner gradients are constants.

    One step of SGD on all parameters: d l(phi; Q) / d theta = (I - lr H) g, H the support loss's Hessian at theta
    and g the query loss's gradient at phi (Finn et al. 2017, section 2.2); first order (FOMAML, section 5.2): g.
    """

    def __init__(self, *, first_order: bool) -> None:
        super().__init__()
        self.first_order = first_order

    def prepare(self, learner: InnerLoopLearner) -> None:
        refuse_constant_gradients(self.first_order, learner)

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        return learner.query_loss(*learner.adapted(batch.support, self.first_order), batch)

    def extra_repr(self) -> str:
        return f"first_order={self.first_order}"


def refuse_constant_gradients(first_order: bool, learner: InnerLoopLearner) -> None:
    """A learned loss acts through the inner gradients alone: with these as constants nothing of it would be learned."""
    learned = any(p.requires_grad for p in learner.loss.parameters())
    require(not (first_order and learned), "algorithm.outer.first_order=true: a learned loss gets no gradient that way")


class ReptileGradient(OuterGradient):
    """From the adapted parameters towards the meta-learned ones: d = mean over tasks of theta - phi (Reptile).

    Nichol, Achiam & Schulman 2018, arXiv:1803.02999, Algorithm 2: plain descent theta <- theta - epsilon d moves
    theta the fraction epsilon (``algorithm.outer_lr``) of the way to the mean phi. What does not adapt, and what
    the other pieces would learn, gets no gradient. The query set is for the log only.
    """

    def prepare(self, learner: InnerLoopLearner) -> None:
        learned = any(p.requires_grad for p in learner.meta_learned().values())
        require(
            learned, "algorithm.outer: the difference moves only what adapts, and here that starts at no learned value"
        )

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            adapted, dims = learner.adapted(batch.support)
            _, metrics = learner.query_loss(adapted, dims, batch)
        initial, _ = learner.adapts.initial(learner, batch.support)
        squares = [(p - adapted[name]).square().sum() for name, p in initial.items()]
        return torch.stack(squares).sum() / (2 * len(batch.support.y)), metrics


class Implicit(OuterGradient):
    """By the implicit function theorem, as if the inner loop had ended where the inner loss F is stationary.

        d l(phi; Q) / d theta = partial l / partial theta - (d2F / d theta d phi) v,   (d2F / d phi2) v = dl / d phi

    with v found by ``iterations`` of conjugate gradients (``cg``), or of the Neumann series of step size ``step``
    (``neumann``: Lorraine et al. 2020, arXiv:1911.02590), ``damping`` added to the Hessian. For the proximal F the
    right-hand side is (I + H / strength)^-1 dl / d phi, H the Hessian of the support loss: iMAML (Rajeswaran et al.
    2019, arXiv:1909.04630, Lemma 1 and Algorithm 2). Memory does not grow with the steps; what shapes the way to phi
    and not F itself, such as learned rates, gets no gradient.
    """

    def __init__(
        self, *, solver: Literal["cg", "neumann"], iterations: Positive, damping: NonNegative, step: Rate
    ) -> None:
        super().__init__()
        self.solver, self.iterations, self.damping, self.step = solver, iterations, damping, step

    def prepare(self, learner: InnerLoopLearner) -> None:
        require(learner.inner_steps > 0, "algorithm.inner_steps=0: an implicit gradient needs an inner loop")

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        (x, y), names = (batch.support.x, batch.support.y), learner.adapted_names
        with torch.no_grad():
            phi, _ = learner.adapted(batch.support)
        initial, shared = learner.adapts.initial(learner, batch.support)
        loss, metrics = learner.query_loss({n: p.requires_grad_() for n, p in phi.items()}, 0, batch)
        pull = dict(zip(names, torch.autograd.grad(loss, [phi[n] for n in names], retain_graph=True), strict=True))
        phi = {n: p.detach() for n, p in phi.items()}
        with torch.no_grad():
            v = learner.over_tasks(partial(self.solve, learner), (0, 0, shared, 0, 0))(pull, phi, initial, x, y)
        slope = learner.over_tasks(learner.inner_gradient, (0, shared, 0, 0))(phi, initial, x, y)
        return loss - torch.stack([(slope[n] * v[n]).sum() for n in names]).sum(), metrics

    def solve(
        self, learner: InnerLoopLearner, pull: Parameters, phi: Parameters, initial: Parameters, x: Tensor, y: Tensor
    ) -> Parameters:
        """One task's v."""

        def slope(vector: Tensor) -> Tensor:
            return flatten(learner.inner_gradient(unflatten(vector, phi), initial, x, y))

        hessian, b = vjp(slope, flatten(phi))[1], flatten(pull)

        def product(u: Tensor) -> Tensor:
            return hessian(u)[0] + self.damping * u

        if self.solver == "cg":
            v = conjugate_gradient(product, b, self.iterations)
        else:
            v = neumann_series(product, b, self.iterations, self.step)
        return unflatten(v, phi)

    def extra_repr(self) -> str:
        step = f", step={self.step}" if self.solver == "neumann" else ""
        return f"solver={self.solver}, iterations={self.iterations}, damping={self.damping}{step}"
