"""Batch normalisation with its first and second derivatives written out.

torch's own second derivative of batch normalisation is wrong under ``torch.func.vmap`` when inputs or scales differ
from task to task. The formulas here are exact and read each tensor as few times as possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

BLOCK = 4096
"""Rows of which each sum is taken, before these are summed."""


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the channels of images by their own mean and variance: ``w (x - mean) / sqrt(var + eps) + b``.

    Args:
        x: Images or vectors, [N, C, ...], best in memory with the channels last.
        weight: Scale, [C], or ``None`` for 1.
        bias: Shift, [C], or ``None`` for 0.
        eps: Added to the variance, which is the biased one.

    Returns:
        The normalised images, their mean [C] and their inverse standard deviation [C].
    """
    rows = x.movedim(1, -1)
    flat = rows.flatten(0, -2)
    one = flat.new_ones(1, flat.shape[1]) if weight is None else weight.view(1, -1)
    zero = flat.new_zeros(1, flat.shape[1]) if bias is None else bias.view(1, -1)
    y, mean, r = Normalise.apply(flat, one, zero, eps)
    return y.view(rows.shape).movedim(-1, 1), mean.flatten(), r.flatten()


def sum_rows(x: Tensor) -> Tensor:
    """Sum over rows: [..., M, C] -> [..., 1, C]."""
    return x.sum(-2, keepdim=True)


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and the inverse standard deviation of the columns of ``x`` [..., M, C], each [..., 1, C].

    torch's batch normalisation of channels-last images sums each column one by one in float32. Where many values are
    nearly equal, such as the background of drawings, the inverse standard deviation is then wrong by up to 1e-3.
    """
    if in_blocks(x):
        shift = x[..., :BLOCK, :].mean(-2, keepdim=True)
        centred = x - shift
        beyond = sum_blocks(centred) / x.shape[-2]
        squares = sum_blocks(centred.square_()) / x.shape[-2]
        return shift + beyond, torch.rsqrt((squares - beyond.square()).clamp_(min=0) + eps)
    mean = x.mean(-2, keepdim=True)
    # torch.var_mean over this dimension is ten times slower.
    return mean, torch.rsqrt((x - mean).square_().mean(-2, keepdim=True) + eps)


def in_blocks(x: Tensor) -> bool:
    """Return whether sums over the rows of ``x`` are computed block by block: those of a single task's many rows."""
    single = x.dim() == 2 or (x.dim() == 3 and len(x) == 1)
    return single and x.shape[-2] > 2 * BLOCK and x.device.type == "cpu" and not torch.is_grad_enabled()


def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised ``x``, its mean and its inverse standard deviation."""
    mean, r = statistics(x, eps)
    scale = w * r
    return torch.addcmul(torch.addcmul(b, mean, scale, value=-1), x, scale), mean, r


def backward(g: Tensor, x: Tensor, mean: Tensor, r: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, w and b for the output's gradient ``g``."""
    gw, gb = (sums_in_blocks if in_blocks(x) else sums)(g, x, mean, r)
    scale = w * r
    by_sum = scale * (-1 / x.shape[-2])
    slope = by_sum * r * gw
    # s (g - gb / n - xhat gw / n), with xhat = (x - mean) r
    offset = torch.addcmul(by_sum * gb, slope, mean, value=-1)
    return affine(offset, (x, slope), (g, scale)), gw, gb


def sums(g: Tensor, x: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to w and b: the sums over rows of g xhat and of g."""
    gb = sum_rows(g)
    return r * torch.addcmul(sum_rows(g * x), mean, gb, value=-1), gb


def sums_in_blocks(g: Tensor, x: Tensor, mean: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as :func:`sums`, by sums of few rows each."""
    return r * sum_blocks((x - mean).mul_(g)), sum_blocks(g)


def sum_blocks(x: Tensor) -> Tensor:
    """Sum over rows, [..., M, C] -> [..., 1, C], block by block: a sum of many values one by one loses digits."""
    whole = x.shape[-2] // BLOCK * BLOCK
    blocks = x[..., :whole, :].unflatten(-2, (-1, BLOCK)).sum(-2)
    return sum_rows(blocks) + sum_rows(x[..., whole:, :])


def double_backward(
    u: Tensor, p: Tensor, q: Tensor, g: Tensor, x: Tensor, mean: Tensor, r: Tensor, w: Tensor, gw: Tensor, gb: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to g, x and w for cotangents ``u`` of gx, ``p`` of gw and ``q`` of gb.

    With xhat = (x - mean) r, s = w r, n rows, and sums over rows U1 = sum u, U2 = sum u xhat:

        gx = s (g - gb / n - xhat gw / n)
        F  = sum u gx + p gw + q gb,   A = sum u g - (U1 gb + U2 gw) / n,   dF/dw = r A
        dF/dg = s (u - U1 / n - xhat U2 / n) + p xhat + q
        h = p g - s / n (u gw + g U2)                                    (by xhat)
        dF/dx = r (h - mean(h) - xhat mean(h xhat)) - w A r^2 xhat / n   (and by r in s)
    """
    share = 1 / x.shape[-2]
    s = w * r
    u1, ug = sum_rows(u), sum_rows(u * g)
    u2 = r * torch.addcmul(sum_rows(u * x), mean, u1, value=-1)
    dw = r * torch.addcmul(torch.addcmul(ug, u1, gb, value=-share), u2, gw, value=-share)
    # dF/dg, affine in u and x
    tilt = r * torch.addcmul(p, s, u2, value=-share)
    offset = torch.addcmul(torch.addcmul(q, s, u1, value=-share), tilt, mean, value=-1)
    dg = affine(offset, (x, tilt), (u, s))
    # dF/dx, affine in u, g and x; r h = by_u u + by_g g
    by_u, by_g = r * s * gw * -share, tilt
    sum_h = torch.addcmul(by_u * u1, by_g, gb)
    sum_hx = torch.addcmul(by_u * u2, by_g, gw)
    by_x = torch.addcmul(sum_hx, s, dw) * r * -share
    offset = torch.addcmul(sum_h * -share, by_x, mean, value=-1)
    return dg, affine(offset, (x, by_x), (u, by_u), (g, by_g)), dw


def affine(offset: Tensor, *products: tuple[Tensor, Tensor]) -> Tensor:
    """Return ``offset`` plus the sum of all products, accumulated in place unless gradients are recorded."""
    (x, slope), *others = products
    y = torch.addcmul(offset, x, slope)
    for x, slope in others:
        y = torch.addcmul(y, x, slope) if torch.is_grad_enabled() else y.addcmul_(x, slope)
    return y


class Normalise(Function):
    """Normalisation of x [..., M, C] with w and b [..., 1, C]. Returns y, mean and inverse standard deviation."""

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
        return gx, sum_shared(gw, w), sum_shared(gb, b), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, w: Tensor, b: Tensor, eps: float
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        x, w, b = align_task_dims((x, w, b), in_dims)
        return Normalise.apply(x, w, b, eps), (0, 0, 0)


class NormaliseBackward(Function):
    """First derivative of :class:`Normalise`, which can itself be differentiated."""

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
            # A third derivative may follow, so the statistics must be differentiable functions of x, too.
            mean, r = statistics(x, ctx.eps)
            _, gw, gb = backward(g, x, mean, r, w)
        dg, dx, dw = double_backward(u, p, q, g, x, mean, r, w, gw, gb)
        return dg, dx, None, None, sum_shared(dw, w), None

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
        return NormaliseBackward.apply(*align_task_dims((g, x, mean, r, w), in_dims), eps), (0, 0, 0)


def align_task_dims(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """Move the task dimension of each tensor to the front and align the others at the end so that all broadcast."""
    rank = max(t.dim() - (dim is not None) for t, dim in zip(tensors, dims, strict=False))
    return [
        t if dim is None else t.movedim(dim, 0)[(slice(None),) + (None,) * (rank + 1 - t.dim())]
        for t, dim in zip(tensors, dims, strict=False)
    ]


def sum_shared(gradient: Tensor, like: Tensor) -> Tensor:
    """Sum ``gradient`` over tasks if they share the tensor ``like`` that it belongs to."""
    return gradient if gradient.shape == like.shape else gradient.sum_to_size(like.shape)
