"""Two-dimensional convolution that ``torch.func.vmap`` turns into fast operations on all tasks at once.

If all tasks share the weights, as in the first step of an inner loop, the images of all tasks go through torch's own
convolution. If the weights differ from task to task, the patches of the images go through one batched matrix product.
Both paths keep images channels-last within each task: a tensor [T, B, C, H, W] lies in memory as [T, B, H, W, C], which
is a matrix [T, B H W, C] without a copy.

The derivative of each of the three functions is another of them, so derivatives of any order are exact:

    Conv(x, w)          y = x * w
    ConvInput(g, w)     adjoint of Conv in x
    ConvWeight(x, g)    adjoint of Conv in w
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import Library, impl
from torch.overrides import handle_torch_function, has_torch_function

Pair = Sequence[int]
"""Values for the vertical and the horizontal direction, in this order."""


class Geometry(NamedTuple):
    """Sizes of a convolution: input images, kernel, stride and zero padding."""

    size: Pair
    """Height and width of the input images."""
    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output images."""
        sizes = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)  # type: ignore[return-value]

    @property
    def output_padding(self) -> tuple[int, int]:
        """Numbers of rows and columns at the end of the padded image that no patch covers."""
        sizes = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) % s for n, k, s, p in sizes)  # type: ignore[return-value]


def conv2d(x: Tensor, w: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Convolve images as ``F.conv2d`` without bias.

    Args:
        x: Images, [B, C, H, W].
        w: Weights, [O, C, kh, kw].
        stride: Vertical and horizontal stride in pixels.
        padding: Rows and columns of zeros on each side.

    Returns:
        Images, [B, O, H', W'].
    """
    if has_torch_function((x, w)):  # lets a mode such as BFloat16Layers intercept this function as a layer
        return handle_torch_function(conv2d, (x, w), x, w, stride, padding)
    return Conv.apply(x, w, Geometry((x.shape[2], x.shape[3]), (w.shape[2], w.shape[3]), stride, padding))


class Conv(Function):
    """Convolution y = x * w of images ``x`` [B, C, H, W] with weights ``w`` [O, C, kh, kw]."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return torch.ops.aten.convolution(x, w, None, geometry.stride, geometry.padding, [1, 1], False, [0, 0], 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        return (
            ConvInput.apply(g, w, ctx.geometry) if ctx.needs_input_grad[0] else None,
            ConvWeight.apply(x, g, ctx.geometry) if ctx.needs_input_grad[1] else None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, w: Tensor, geometry: Geometry
    ) -> tuple[Tensor, int]:
        x = task_dim_first(x, in_dims[0], info.batch_size)
        if in_dims[1] is None or info.batch_size == 1:
            w = w if in_dims[1] is None else w.squeeze(in_dims[1])
            return Conv.apply(channels_last(x.flatten(0, 1)), w, geometry).unflatten(0, x.shape[:2]), 0
        patches = Im2Col.apply(x, geometry)
        return as_images(patches @ as_matrix(w.movedim(in_dims[1], 0)).transpose(1, 2), geometry.output), 0


class ConvInput(Function):
    """Adjoint of y = x * w in x, applied to ``g`` [B, O, H', W']."""

    @staticmethod
    def forward(g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return torch.ops.aten.convolution(
            g, w, None, geometry.stride, geometry.padding, [1, 1], True, geometry.output_padding, 1
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[2]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        g, w = ctx.saved_tensors
        return (
            Conv.apply(u, w, ctx.geometry) if ctx.needs_input_grad[0] else None,
            ConvWeight.apply(u, g, ctx.geometry) if ctx.needs_input_grad[1] else None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], g: Tensor, w: Tensor, geometry: Geometry
    ) -> tuple[Tensor, int]:
        g = task_dim_first(g, in_dims[0], info.batch_size)
        if in_dims[1] is None or info.batch_size == 1:
            w = w if in_dims[1] is None else w.squeeze(in_dims[1])
            return ConvInput.apply(channels_last(g.flatten(0, 1)), w, geometry).unflatten(0, g.shape[:2]), 0
        return Col2Im.apply(as_rows(g) @ as_matrix(w.movedim(in_dims[1], 0)), geometry), 0


class ConvWeight(Function):
    """Adjoint of y = x * w in w, applied to ``x`` [B, C, H, W] and ``g`` [B, O, H', W']."""

    @staticmethod
    def forward(x: Tensor, g: Tensor, geometry: Geometry) -> Tensor:
        shape = (g.shape[1], x.shape[1], *geometry.kernel)
        like = g.new_empty(1).expand(shape)
        return torch.ops.aten.convolution_backward(
            g, x, like, None, geometry.stride, geometry.padding, [1, 1], False, [0, 0], 1, [False, True, False]
        )[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.geometry = inputs[2]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, g = ctx.saved_tensors
        return (
            ConvInput.apply(g, v, ctx.geometry) if ctx.needs_input_grad[0] else None,
            Conv.apply(x, v, ctx.geometry) if ctx.needs_input_grad[1] else None,
            None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, g: Tensor, geometry: Geometry
    ) -> tuple[Tensor, int]:
        x, g = (task_dim_first(t, dim, info.batch_size) for t, dim in ((x, in_dims[0]), (g, in_dims[1])))
        if info.batch_size == 1:
            # Flatten instead of indexing: the derivative of an index is a copy into zeros.
            x, g = (channels_last(t.flatten(0, 1)) for t in (x, g))
            return ConvWeight.apply(x, g, geometry)[None], 0
        rows, patches = as_rows(g), Im2Col.apply(x, geometry)
        if patches.shape[2] < rows.shape[2]:  # a matrix product is fastest with its longer side last
            w = (patches.transpose(1, 2) @ rows).transpose(1, 2)
        else:
            w = rows.transpose(1, 2) @ patches
        return w.unflatten(2, (*geometry.kernel, x.shape[2])).permute(0, 1, 4, 2, 3), 0


class Im2Col(Function):
    """Copies the patches of images [T, B, C, H, W] to rows [T, B H' W', kh kw C]."""

    @staticmethod
    def forward(x: Tensor, geometry: Geometry) -> Tensor:
        return torch.ops.metarun.im2col(x, geometry.kernel, geometry.stride, geometry.padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return Col2Im.apply(g, ctx.geometry), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        x = task_dim_first(x, in_dims[0], info.batch_size)
        return Im2Col.apply(x.flatten(0, 1), geometry).unflatten(0, x.shape[:2]), 0


class Col2Im(Function):
    """Adjoint of :class:`Im2Col`: sums patches [T, B H' W', kh kw C] into images [T, B, C, H, W]."""

    @staticmethod
    def forward(patches: Tensor, geometry: Geometry) -> Tensor:
        return torch.ops.metarun.col2im(patches, geometry.size, geometry.kernel, geometry.stride, geometry.padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry = inputs[1]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        return Im2Col.apply(u, ctx.geometry), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], patches: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        patches = task_dim_first(patches, in_dims[0], info.batch_size)
        return Col2Im.apply(patches.flatten(0, 1), geometry).unflatten(0, patches.shape[:2]), 0


# Registered as torch operators, so that a captured graph has one node for each although they write in several steps.
OPERATORS = Library("metarun", "DEF")
OPERATORS.define("im2col(Tensor x, int[] kernel, int[] stride, int[] padding) -> Tensor")
OPERATORS.define("col2im(Tensor patches, int[] size, int[] kernel, int[] stride, int[] padding) -> Tensor")


@impl(OPERATORS, "im2col", "CompositeExplicitAutograd")
def _im2col(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    geometry = Geometry((x.shape[3], x.shape[4]), kernel, stride, padding)
    images = _zero_pad(x.permute(0, 1, 3, 4, 2), padding)
    tasks, batch, _, _, channels = images.shape
    t, b, row, column, one = images.stride()
    patches = images.as_strided(
        (tasks, batch, *geometry.output, *kernel, channels),
        (t, b, row * stride[0], column * stride[1], row, column, one),
    )
    return patches.flatten(1, 3).flatten(2)


def _zero_pad(images: Tensor, padding: Pair) -> Tensor:
    """Pad images [T, B, H, W, C] with zeros. Only the border is cleared, not the whole memory."""
    tasks, batch, height, width, channels = images.shape
    down, across = padding
    padded = images.new_empty(tasks, batch, height + 2 * down, width + 2 * across, channels)
    padded[:, :, :down].zero_()
    padded[:, :, down + height :].zero_()
    padded[:, :, :, :across].zero_()
    padded[:, :, :, across + width :].zero_()
    padded[:, :, down : down + height, across : across + width] = images
    return padded


@impl(OPERATORS, "col2im", "CompositeExplicitAutograd")
def _col2im(patches: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    (height, width), (kh, kw), (down, across), (top, left) = size, kernel, stride, padding
    h, w = Geometry(size, kernel, stride, padding).output
    parts = patches.view(patches.shape[0], -1, h, w, kh, kw, patches.shape[2] // (kh * kw))
    images = parts.new_empty(*parts.shape[:2], height + 2 * top, width + 2 * left, parts.shape[-1])
    # The first ``down`` x ``across`` pixels of all patches tile the image without a gap. They are written, not added,
    # so only the pixels beyond them must be cleared.
    tiled = kh >= down and kw >= across
    images[:, :, down * h if tiled else 0 :].zero_()
    images[:, :, :, across * w if tiled else 0 :].zero_()
    for i in range(kh):
        for j in range(kw):
            pixels = images[:, :, i : i + down * h : down, j : j + across * w : across]
            if tiled and i < down and j < across:
                pixels.copy_(parts[:, :, :, :, i, j])
            else:
                pixels.add_(parts[:, :, :, :, i, j])
    return images[:, :, top : top + height, left : left + width].permute(0, 1, 4, 2, 3)


def task_dim_first(x: Tensor, dim: int | None, tasks: int) -> Tensor:
    """Move the task dimension to the front, or expand ``x`` over it if all tasks share ``x`` (``dim`` is ``None``)."""
    return x.expand(tasks, *x.shape) if dim is None else x.movedim(dim, 0)


def channels_last(images: Tensor) -> Tensor:
    """Return images [N, C, H, W] in channels-last memory format, without a copy if they already are."""
    # vmap has no rule for contiguous(memory_format=...), and this may run inside another vmap.
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def as_rows(images: Tensor) -> Tensor:
    """View channels-last images [T, B, C, H, W] as rows of pixels [T, B H W, C]."""
    return images.permute(0, 1, 3, 4, 2).flatten(1, 3)


def as_images(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """View rows of pixels [T, B H W, C] as images [T, B, C, H, W] of ``size`` (H, W)."""
    return rows.view(rows.shape[0], -1, *size, rows.shape[2]).permute(0, 1, 4, 2, 3)


def as_matrix(w: Tensor) -> Tensor:
    """View channels-last weights [T, O, C, kh, kw] as a matrix [T, O, kh kw C]."""
    return w.permute(0, 1, 3, 4, 2).flatten(2)
