"""Normalisation by the mean and variance of many samples, with its second-order derivative written out.

torch's own rules for differentiating normalisation a second time under ``torch.func.vmap`` are wrong where inputs or
factors differ from task to task. These formulas are right, and read each tensor as few times as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def normalise(x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    """``w (x - mean) / sqrt(var + eps) + b`` with mean and (biased) variance of each column of ``x`` [M, C]."""
    one = x.new_ones(1, x.shape[1]) if w is None else w.view(1, -1)
    zero = x.new_zeros(1, x.shape[1]) if b is None else b.view(1, -1)
    return Normalise.apply(x, one, zero, eps)[0]


def total(x: Tensor) -> Tensor:
    """The sum over rows: [..., M, C] -> [..., 1, C]."""
    return x.sum(-2, keepdim=True)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of the columns of [..., M, C], both [..., 1, C]."""
    n = x.shape[-2]
    mean = total(x) / n
    # torch.var_mean over this dimension is ten times slower.
    return mean, torch.rsqrt(total((x - mean).square_()) / n + eps)


def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if x.dim() == 3 and len(x) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled():
        return native_forward(x, w, b, eps)
    mean, r = statistics(x, eps)
    scale = w * r
    return torch.addcmul(b - mean * scale, x, scale), mean, r


def native_forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same of one task, by torch's own kernel: fewer passes over the memory."""
    image = x.view(1, x.shape[1], 1, x.shape[2]).permute(0, 3, 1, 2)
    y, mean, r = torch.native_batch_norm(image, w.flatten(), b.flatten(), None, None, True, 0.0, eps)
    return y.permute(0, 2, 3, 1).view(x.shape), mean.view(w.shape), r.view(w.shape)


def backward(g: Tensor, x: Tensor, mean: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, w and b."""
    n = x.shape[-2]
    gb = total(g)
    gw = r * (total(g * x) - mean * gb)
    scale = w * r
    slope = -scale * r * gw / n
    # s (g - gb / n - xhat gw / n), with xhat = (x - mean) r
    return torch.addcmul(torch.addcmul(-scale * gb / n - slope * mean, x, slope), g, scale), gw, gb


def double_backward(
    u: Tensor, p: Tensor, q: Tensor, g: Tensor, x: Tensor, mean: Tensor, r: Tensor, w: Tensor, gw: Tensor, gb: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For cotangents ``u`` of gx, ``p`` of gw and ``q`` of gb: gradients by g, x and w.

    With xhat = (x - mean) r, s = w r, n rows, and sums over rows U1 = sum u, U2 = sum u xhat:

        gx = s (g - gb / n - xhat gw / n)
        F  = sum u gx + p gw + q gb,   A = sum u g - (U1 gb + U2 gw) / n,   dF/dw = r A
        dF/dg = s (u - U1 / n - xhat U2 / n) + p xhat + q
        h = p g - s / n (u gw + g U2)                                    (by xhat)
        dF/dx = r (h - mean(h) - xhat mean(h xhat)) - w A r^2 xhat / n   (and by r in s)
    """
    n, s = x.shape[-2], w * r
    u1, ug = total(u), total(u * g)
    u2 = r * (total(u * x) - mean * u1)
    a = ug - (u1 * gb + u2 * gw) / n
    # dF/dg, affine in u and x
    tilt = r * (p - s * u2 / n)
    dg = torch.addcmul(torch.addcmul(q - s * u1 / n - tilt * mean, x, tilt), u, s)
    # dF/dx, affine in u, g and x
    by_u, by_g = -s / n * gw, p - s / n * u2
    mean_h = (by_u * u1 + by_g * gb) / n
    mean_hx = (by_u * u2 + by_g * gw) / n
    by_x = -r * r * (mean_hx + w * a * r / n)
    dx = torch.addcmul(torch.addcmul(torch.addcmul(-r * mean_h - by_x * mean, x, by_x), u, r * by_u), g, r * by_g)
    return dg, dx, r * a


class Normalise(Function):
    """x [..., M, C], w and b [..., 1, C] -> y, and the statistics."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return forward(x, w, b, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w, b, ctx.eps = inputs
        _, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, w, b, mean, r)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        x, w, b, mean, r = ctx.saved_tensors
        gx, gw, gb = NormaliseBackward.apply(g, x, mean, r, w, ctx.eps)
        return gx, shaped(gw, w), shaped(gb, b), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, w: Tensor, b: Tensor, eps: float
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        x, w, b = tasks_in_front((x, w, b), in_dims)
        return Normalise.apply(x, w, b, eps), (0, 0, 0)


class NormaliseBackward(Function):
    """The first derivative, itself differentiable."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, mean: Tensor, r: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return backward(g, x, mean, r, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, u: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor | None, ...]:
        g, x, mean, r, w, gw, gb = ctx.saved_tensors
        if torch.is_grad_enabled():
            # To be differentiated yet again: the statistics, too, are functions of x, in elementary operations.
            mean, r = statistics(x, ctx.eps)
            _, gw, gb = backward(g, x, mean, r, w)
        dg, dx, dw = double_backward(u, p, q, g, x, mean, r, w, gw, gb)
        return dg, dx, None, None, shaped(dw, w), None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        g: Tensor,
        x: Tensor,
        mean: Tensor,
        r: Tensor,
        w: Tensor,
        eps: float,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return NormaliseBackward.apply(*tasks_in_front((g, x, mean, r, w), in_dims), eps), (0, 0, 0)


def tasks_in_front(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """The tasks' dimension of each in front, the others aligned from the last on so that all broadcast."""
    rank = max(t.dim() - (dim is not None) for t, dim in zip(tensors, dims, strict=False))
    return [
        t if dim is None else t.movedim(dim, 0)[(slice(None),) + (None,) * (rank + 1 - t.dim())]
        for t, dim in zip(tensors, dims, strict=False)
    ]


def shaped(gradient: Tensor, like: Tensor) -> Tensor:
    """Summed over the tasks where these share what it is the gradient of."""
    return gradient if gradient.shape == like.shape else gradient.sum_to_size(like.shape)
