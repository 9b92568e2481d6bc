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
    mean = x.mean(-2, keepdim=True)
    # torch.var_mean over this dimension is ten times slower.
    return mean, torch.rsqrt((x - mean).square_().mean(-2, keepdim=True) + eps)


def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if native(x):
        y, mean, r = torch.native_batch_norm(as_image(x), w.flatten(), b.flatten(), None, None, True, 0.0, eps)
        return as_rows(y, x), mean.view(1, 1, -1), r.view(1, 1, -1)
    mean, r = statistics(x, eps)
    scale = w * r
    return torch.addcmul(torch.addcmul(b, mean, scale, value=-1), x, scale), mean, r


def backward(g: Tensor, x: Tensor, mean: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x, w and b."""
    if native(x):
        gx, gw, gb = torch.ops.aten.native_batch_norm_backward(
            as_image(g), as_image(x), w.flatten(), None, None, mean.flatten(), r.flatten(), True, 0.0, [True] * 3
        )
        return as_rows(gx, x), gw.view(1, 1, -1), gb.view(1, 1, -1)
    gb = total(g)
    gw = r * torch.addcmul(total(g * x), mean, gb, value=-1)
    scale = w * r
    by_sum = scale * (-1 / x.shape[-2])
    slope = by_sum * r * gw
    # s (g - gb / n - xhat gw / n), with xhat = (x - mean) r
    level = torch.addcmul(by_sum * gb, slope, mean, value=-1)
    return affine(level, (x, slope), (g, scale)), gw, gb


def native(x: Tensor) -> bool:
    """Whether torch's own kernels serve: of one task, on the CPU, not differentiated. They read memory less often."""
    return x.dim() == 3 and len(x) == 1 and x.device.type == "cpu" and not torch.is_grad_enabled()


def as_image(x: Tensor) -> Tensor:
    """[1, M, C] -> [1, C, 1, M], channels-last."""
    return x.view(1, x.shape[1], 1, x.shape[2]).permute(0, 3, 1, 2)


def as_rows(image: Tensor, like: Tensor) -> Tensor:
    """The inverse."""
    return image.permute(0, 2, 3, 1).view(like.shape)


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
    share = 1 / x.shape[-2]
    s = w * r
    u1, ug = total(u), total(u * g)
    u2 = r * torch.addcmul(total(u * x), mean, u1, value=-1)
    dw = r * torch.addcmul(torch.addcmul(ug, u1, gb, value=-share), u2, gw, value=-share)
    # dF/dg, affine in u and x
    tilt = r * torch.addcmul(p, s, u2, value=-share)
    level = torch.addcmul(torch.addcmul(q, s, u1, value=-share), tilt, mean, value=-1)
    dg = affine(level, (x, tilt), (u, s))
    # dF/dx, affine in u, g and x; r h = by_u u + by_g g
    by_u, by_g = r * s * gw * -share, tilt
    sum_h = torch.addcmul(by_u * u1, by_g, gb)
    sum_hx = torch.addcmul(by_u * u2, by_g, gw)
    by_x = torch.addcmul(sum_hx, s, dw) * r * -share
    level = torch.addcmul(sum_h * -share, by_x, mean, value=-1)
    return dg, affine(level, (x, by_x), (u, by_u), (g, by_g)), dw


def affine(level: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """``level`` plus all products; written into one place, unless it may be differentiated."""
    (x, slope), *others = products
    y = torch.addcmul(level, x, slope)
    for x, slope in others:
        y = torch.addcmul(y, x, slope) if torch.is_grad_enabled() else y.addcmul_(x, slope)
    return y


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
