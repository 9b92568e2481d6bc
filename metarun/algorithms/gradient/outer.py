"""Outer gradients: unrolled (MAML), the difference of parameters (Reptile), and implicit (iMAML)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import vjp

from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import without_compiler
from metarun.algorithms.gradient.inner_loop import InnerLoopLearner
from metarun.algorithms.gradient.parameters import Parameters, flatten, unflatten
from metarun.algorithms.gradient.pieces import OuterGradient
from metarun.algorithms.gradient.pieces import Unrolled as Unrolled
from metarun.algorithms.solve import conjugate_gradient, neumann_series
from metarun.errors import require
from metarun.tasks.episode import TaskBatch
from metarun.types import NonNegative, Positive, Rate


class ReptileGradient(OuterGradient):
    """Reptile: the difference between meta-learned and adapted parameters, d = mean over tasks of theta - phi.

    Nichol, Achiam & Schulman 2018, arXiv:1803.02999, Algorithm 2. Gradient descent theta <- theta - epsilon d moves
    theta towards the mean phi by the fraction epsilon (``algorithm.outer_lr``). Parameters that do not adapt, and those
    of the other pieces, get no gradient. The query set is only used for metrics.
    """

    def prepare(self, learner: InnerLoopLearner) -> None:
        learned = any(p.requires_grad for p in learner.meta_learned().values())
        require(
            learned,
            "algorithm.outer: Reptile needs parameters that adapt from meta-learned values, and this learner has none",
        )

    def forward(self, learner: InnerLoopLearner, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            adapted, dims = learner.adapted(batch.support)
            _, metrics = learner.query_loss(adapted, dims, batch)
        initial, _ = learner.adapts.initial(learner, batch.support)
        squares = [(p - adapted[name]).square().sum() for name, p in initial.items()]
        return torch.stack(squares).sum() / (2 * len(batch.support.y)), metrics


class Implicit(OuterGradient):
    """The gradient by the implicit function theorem, exact if the inner loop ends at a stationary point of the loss F.

        d l(phi; Q) / d theta = partial l / partial theta - (d2F / d theta d phi) v,   (d2F / d phi2) v = dl / d phi

    v is computed by ``iterations`` of conjugate gradients (``cg``) or of the Neumann series with step size ``step``
    (``neumann``: Lorraine et al. 2020, arXiv:1911.02590). ``damping`` is added to the Hessian. For the proximal F the
    right-hand side is (I + H / strength)^-1 dl / d phi with the Hessian H of the support loss: iMAML (Rajeswaran et al.
    2019, arXiv:1909.04630, Lemma 1 and Algorithm 2). Memory does not grow with the number of steps. Parameters that
    influence only the path to phi and not F, such as learned rates, get no gradient.
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
        query_gradient = dict(
            zip(names, torch.autograd.grad(loss, [phi[n] for n in names], retain_graph=True), strict=True)
        )
        phi = {n: p.detach() for n, p in phi.items()}
        with torch.no_grad():
            v = learner.map_tasks(
                partial(self.solve, learner), (0, 0, shared, 0, 0), query_gradient, phi, initial, x, y
            )
        gradient = learner.map_tasks(learner.inner_gradient, (0, shared, 0, 0), phi, initial, x, y)
        return loss - torch.stack([(gradient[n] * v[n]).sum() for n in names]).sum(), metrics

    @without_compiler()
    def solve(
        self,
        learner: InnerLoopLearner,
        query_gradient: Parameters,
        phi: Parameters,
        initial: Parameters,
        x: Tensor,
        y: Tensor,
    ) -> Parameters:
        """Return the v of one task."""

        def gradient(vector: Tensor) -> Tensor:
            return flatten(learner.inner_gradient(unflatten(vector, phi), initial, x, y))

        hessian, b = vjp(gradient, flatten(phi))[1], flatten(query_gradient)

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
