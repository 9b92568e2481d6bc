"""MetaOptNet: a support vector machine on the support set, solved in batch and differentiated at its solution."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.metric.head import Head, membership
from metarun.algorithms.supervised import Adapted
from metarun.tasks.episode import Labelled
from metarun.types import Fraction, Positive, Rate

HELD = 1e14
"""Weight that holds a variable at its bound, in units of the kernel's diagonal."""


class SVM(Head):
    """The multi-class SVM of Crammer and Singer (MetaOptNet: Lee et al. 2019, arXiv:1904.03758, equations 4-6).

    Its dual has a variable a for each example n and class k,

        minimise   1/2 sum over n, m, k of a_nk (x_n . x_m + ridge [n = m]) a_mk - sum over n of a_n,y_n
        subject to a_nk <= cost [k = y_n]   and   sum over k of a_nk = 0

    and query x has the logits ``scale`` sum over n of a_nk (x_n . x), with a scale learned from there. ``ridge`` is
    that of the authors' code; it makes the solution unique where there are more examples than features. The dual is
    solved to rounding by ``steps`` of an interior point method in float64, and the gradient is that of the solution
    by the implicit function theorem, whatever the steps were. ``smoothing`` is that of the labels of the query loss.
    """

    def __init__(
        self, *, cost: Rate, ridge: Rate, steps: Positive, scale: Rate, learn_scale: bool, smoothing: Fraction
    ) -> None:
        super().__init__()
        self.cost, self.ridge, self.steps, self.smoothing = cost, ridge, steps, smoothing
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log(), requires_grad=learn_scale)

    def fit(self, support: Labelled) -> Adapted:
        x = support.x
        member = membership(support.y, support.way, x.dtype).transpose(1, 2)
        dual = crammer_singer(x @ x.transpose(1, 2), member, self.cost, self.ridge, self.steps)
        weights = x.transpose(1, 2) @ dual
        return lambda query: self.log_scale.exp() * (query @ weights)

    def loss(self, support: Labelled, query: Labelled, prediction: Tensor) -> Tensor:
        return F.cross_entropy(prediction.flatten(0, 1), query.y.flatten(), label_smoothing=self.smoothing)

    def extra_repr(self) -> str:
        return f"cost={self.cost}, ridge={self.ridge}, steps={self.steps}, smoothing={self.smoothing}"


def crammer_singer(kernel: Tensor, member: Tensor, cost: float, ridge: float, steps: int) -> Tensor:
    """The dual variables [T, N, K]; ``kernel`` [T, N, N], ``member`` [T, N, K] 1 where the example is of the class.

    Their gradient is exact in the first order: with the active bounds held, the conditions of optimality are linear,
    and a Newton step whose matrix is a constant has the solution's own derivative. That step also leaves the solution
    free of what the interior point method keeps between it and the bounds.
    """
    precise = kernel.dtype if kernel.device.type == "mps" else torch.float64
    k, linear, upper = kernel.to(precise), -member.to(precise), cost * member.to(precise)
    k = k + ridge * torch.eye(k.shape[-1], dtype=precise, device=k.device)
    with torch.no_grad():
        a, slack, multiplier = interior_point(k, linear, upper, steps)
        active = multiplier > slack
        a = torch.where(active, upper, a)
        system = KKT(k, HELD * k.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * active)
    change, _ = system.both(k @ a + linear, a.sum(-1))
    return (a + change).to(kernel.dtype)


def interior_point(kernel: Tensor, linear: Tensor, upper: Tensor, steps: int) -> tuple[Tensor, ...]:
    """min 1/2 tr(a^T K a) + tr(linear^T a), a <= upper, rows of a summing to 0; with slacks and multipliers, [T, N, K].

    Mehrotra's predictor and corrector (Nocedal & Wright, Numerical Optimization, 2nd ed., algorithm 16.4). It always
    takes ``steps``, since to stop early would be to read back from the device; a task that has converged stays as it
    is, for what follows would be rounding.
    """
    a = torch.zeros_like(linear)
    slack, multiplier = torch.ones_like(a), torch.ones_like(a)
    shift = torch.zeros_like(a[..., :1])  # of the sums to zero
    for _ in range(steps):
        dual = kernel @ a + linear + multiplier + shift
        primal, total = a + slack - upper, a.sum(-1)
        gap = (slack * multiplier).mean((1, 2), keepdim=True)
        done = (gap < 1e-13) & (dual.abs().amax((1, 2), keepdim=True) < 1e-10)
        newton = Newton(KKT(kernel, multiplier / slack), slack, multiplier, dual, primal, total)
        _, _, ds, dm = newton.direction(0.0)
        ahead, raised = slack + reach(slack, ds) * ds, multiplier + reach(multiplier, dm) * dm
        centring = ((ahead * raised).mean((1, 2), keepdim=True) / gap) ** 3 * gap
        da, dshift, ds, dm = newton.direction(ds * dm - centring)
        length = 0.99 * torch.minimum(reach(slack, ds), reach(multiplier, dm))
        length = length.masked_fill(done, 0.0)
        a, shift = move(a, da, length), move(shift, dshift, length)
        slack, multiplier = move(slack, ds, length), move(multiplier, dm, length)
    return a, slack, multiplier


class Newton(NamedTuple):
    """The linearised conditions of optimality at one point, each residual [T, N, K] ([T, N] for the sums)."""

    system: KKT
    slack: Tensor
    multiplier: Tensor
    dual: Tensor
    primal: Tensor
    total: Tensor

    def direction(self, centring: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Changes of a, of the sums' multipliers, of slacks and of their multipliers."""
        complementary = self.slack * self.multiplier + centring
        pushed = self.dual + (self.multiplier * self.primal - complementary) / self.slack
        da, dshift = self.system.both(pushed, self.total)
        ds = -self.primal - da
        return da, dshift, ds, -(complementary + self.multiplier * ds) / self.slack


def move(value: Tensor, change: Tensor, length: Tensor) -> Tensor:
    """``value`` itself where ``length`` is 0, even if the change is not finite."""
    return torch.where(length > 0, value + length * change, value)


def reach(value: Tensor, change: Tensor) -> Tensor:
    """The longest step, up to 1, that leaves ``value`` [T, N, K] positive, [T, 1, 1]."""
    limit = torch.where(change < 0, -value / change, torch.ones_like(value))
    return limit.amin((1, 2), keepdim=True).clamp(max=1.0)


class KKT:
    """Solves  [K (x) I + diag(barrier), E; E^T, 0] (da, dshift) = -(pushed, total), E^T a being each row's sum.

    ``kernel`` [T, N, N], ``barrier`` [T, N, K]. Classes are apart but for the sums: K + diag(barrier_k) is factorised
    for each, and the sums' multipliers come from the N x N Schur complement.
    """

    def __init__(self, kernel: Tensor, barrier: Tensor) -> None:
        weights = barrier.transpose(1, 2)  # [T, K, N]
        # Rows and columns are scaled to a diagonal of 1: barriers of active bounds are very large.
        self.root = torch.rsqrt(kernel.diagonal(dim1=1, dim2=2)[:, None] + weights)
        matrix = (kernel[:, None] + torch.diag_embed(weights)) * self.root[..., None] * self.root[..., None, :]
        self.factor = torch.linalg.cholesky_ex(matrix)[0]
        eye = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
        self.inverse = self.root[..., None] * torch.cholesky_solve(eye * self.root[..., None, :], self.factor)
        self.complement = torch.linalg.cholesky_ex(self.inverse.sum(1))[0]

    def both(self, pushed: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """da [T, N, K] and dshift [T, N, 1]."""
        free = self.apply(pushed)
        dshift = torch.cholesky_solve((total - free.sum(-1))[..., None], self.complement)
        return -free - self.apply(dshift.expand_as(pushed)), dshift

    def apply(self, b: Tensor) -> Tensor:
        """(K (x) I + diag(barrier))^-1 ``b`` [T, N, K]."""
        return (self.inverse @ b.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
