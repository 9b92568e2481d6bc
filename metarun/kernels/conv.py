"""Two-dimensional convolution that ``torch.func.vmap`` turns into fast operations on all tasks at once.

Weights that all tasks share (an inner loop's first step) take torch's own convolution over the images of all tasks;
weights that differ take one batched matrix product of the images' patches. Both keep images channels-last, task by
task: a tensor [T, B, C, H, W] lies in memory as [T, B, H, W, C], which is a matrix [T, B H W, C] without a copy.

The three functions are closed under differentiation, so derivatives of any order are exact:

    Conv(x, w)          y = x * w
    ConvInput(g, w)     its adjoint in x
    ConvWeight(x, g)    its adjoint in w
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
"""Vertical and horizontal."""


class Geometry(NamedTuple):
    """Everything about a convolution but its tensors."""

    size: Pair
    """Of the input images."""
    kernel: Pair
    stride: Pair
    padding: Pair

    @property
    def output(self) -> tuple[int, int]:
        """Size of the output images."""
        sizes = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)  # type: ignore[return-value]

    @property
    def uncovered(self) -> tuple[int, int]:
        """Rows and columns at the end of the padded image that no patch reaches."""
        sizes = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) % s for n, k, s, p in sizes)  # type: ignore[return-value]


def conv2d(x: Tensor, w: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """``x`` [B, C, H, W] with ``w`` [O, C, kh, kw] -> [B, O, H', W'], as ``F.conv2d`` without bias."""
    if has_torch_function((x, w)):  # a mode that treats layers in a way of its own finds this among them
        return handle_torch_function(conv2d, (x, w), x, w, stride, padding)
    return Conv.apply(x, w, Geometry((x.shape[2], x.shape[3]), (w.shape[2], w.shape[3]), stride, padding))


class Conv(Function):
    """y = x * w."""

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
        x = tasks_first(x, in_dims[0], info.batch_size)
        if in_dims[1] is None or info.batch_size == 1:
            w = w if in_dims[1] is None else w.squeeze(in_dims[1])
            return Conv.apply(channels_last(x.flatten(0, 1)), w, geometry).unflatten(0, x.shape[:2]), 0
        patches = Unfold.apply(x, geometry)
        return as_images(patches @ as_matrix(w.movedim(in_dims[1], 0)).transpose(1, 2), geometry.output), 0


class ConvInput(Function):
    """The adjoint of y = x * w in x, applied to ``g`` [B, O, H', W']."""

    @staticmethod
    def forward(g: Tensor, w: Tensor, geometry: Geometry) -> Tensor:
        return torch.ops.aten.convolution(
            g, w, None, geometry.stride, geometry.padding, [1, 1], True, geometry.uncovered, 1
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
        g = tasks_first(g, in_dims[0], info.batch_size)
        if in_dims[1] is None or info.batch_size == 1:
            w = w if in_dims[1] is None else w.squeeze(in_dims[1])
            return ConvInput.apply(channels_last(g.flatten(0, 1)), w, geometry).unflatten(0, g.shape[:2]), 0
        return Fold.apply(as_rows(g) @ as_matrix(w.movedim(in_dims[1], 0)), geometry), 0


class ConvWeight(Function):
    """The adjoint of y = x * w in w, applied to ``x`` [B, C, H, W] and ``g`` [B, O, H', W']."""

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
        x, g = (tasks_first(t, dim, info.batch_size) for t, dim in ((x, in_dims[0]), (g, in_dims[1])))
        if info.batch_size == 1:
            # Flattened, as the derivative of an item is a copy among zeros.
            x, g = (channels_last(t.flatten(0, 1)) for t in (x, g))
            return ConvWeight.apply(x, g, geometry)[None], 0
        rows, patches = as_rows(g), Unfold.apply(x, geometry)
        if patches.shape[2] < rows.shape[2]:  # a matrix product is fastest with the longer side last
            w = (patches.transpose(1, 2) @ rows).transpose(1, 2)
        else:
            w = rows.transpose(1, 2) @ patches
        return w.unflatten(2, (*geometry.kernel, x.shape[2])).permute(0, 1, 4, 2, 3), 0


class Unfold(Function):
    """The patches of images [T, B, C, H, W] as rows: [T, B H' W', kh kw C]."""

    @staticmethod
    def forward(x: Tensor, geometry: Geometry) -> Tensor:
        return torch.ops.metarun.unfold(x, geometry.kernel, geometry.stride, geometry.padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return Fold.apply(g, ctx.geometry), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        x = tasks_first(x, in_dims[0], info.batch_size)
        return Unfold.apply(x.flatten(0, 1), geometry).unflatten(0, x.shape[:2]), 0


class Fold(Function):
    """The adjoint of :class:`Unfold`: patches [T, B H' W', kh kw C] summed where they overlap."""

    @staticmethod
    def forward(patches: Tensor, geometry: Geometry) -> Tensor:
        return torch.ops.metarun.fold(patches, geometry.size, geometry.kernel, geometry.stride, geometry.padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry = inputs[1]

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor, None]:
        return Unfold.apply(u, ctx.geometry), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], patches: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
        patches = tasks_first(patches, in_dims[0], info.batch_size)
        return Fold.apply(patches.flatten(0, 1), geometry).unflatten(0, patches.shape[:2]), 0


# As operations of torch, so that a recording has one step for each, which it may share though it writes piece by piece.
OPERATIONS = Library("metarun", "DEF")
OPERATIONS.define("unfold(Tensor x, int[] kernel, int[] stride, int[] padding) -> Tensor")
OPERATIONS.define("fold(Tensor patches, int[] size, int[] kernel, int[] stride, int[] padding) -> Tensor")


@impl(OPERATIONS, "unfold", "CompositeExplicitAutograd")
def _unfold(x: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    geometry = Geometry((x.shape[3], x.shape[4]), kernel, stride, padding)
    images = _framed(x.permute(0, 1, 3, 4, 2), padding)
    tasks, batch, _, _, channels = images.shape
    t, b, row, column, one = images.stride()
    patches = images.as_strided(
        (tasks, batch, *geometry.output, *kernel, channels),
        (t, b, row * stride[0], column * stride[1], row, column, one),
    )
    return patches.flatten(1, 3).flatten(2)


def _framed(images: Tensor, padding: Pair) -> Tensor:
    """[T, B, H, W, C] with ``padding`` zeros around; of these alone is memory cleared."""
    tasks, batch, height, width, channels = images.shape
    down, across = padding
    framed = images.new_empty(tasks, batch, height + 2 * down, width + 2 * across, channels)
    framed[:, :, :down].zero_()
    framed[:, :, down + height :].zero_()
    framed[:, :, :, :across].zero_()
    framed[:, :, :, across + width :].zero_()
    framed[:, :, down : down + height, across : across + width] = images
    return framed


@impl(OPERATIONS, "fold", "CompositeExplicitAutograd")
def _fold(patches: Tensor, size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    (height, width), (kh, kw), (down, across), (top, left) = size, kernel, stride, padding
    h, w = Geometry(size, kernel, stride, padding).output
    parts = patches.view(patches.shape[0], -1, h, w, kh, kw, patches.shape[2] // (kh * kw))
    images = parts.new_empty(*parts.shape[:2], height + 2 * top, width + 2 * left, parts.shape[-1])
    # The first ``down`` x ``across`` pixels of all patches meet without a gap: only what lies beyond them is cleared.
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


def tasks_first(x: Tensor, dim: int | None, tasks: int) -> Tensor:
    """The tasks' dimension moved to the front, or made if all share ``x``."""
    return x.expand(tasks, *x.shape) if dim is None else x.movedim(dim, 0)


def channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] with the channels of a pixel side by side in memory; as it is, if it lies so."""
    # Not contiguous(memory_format=...), which vmap does not know: this may run inside another one.
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def as_rows(images: Tensor) -> Tensor:
    """[T, B, C, H, W] -> [T, B H W, C], a view of channels-last images."""
    return images.permute(0, 1, 3, 4, 2).flatten(1, 3)


def as_images(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of :func:`as_rows` for images of ``size``."""
    return rows.view(rows.shape[0], -1, *size, rows.shape[2]).permute(0, 1, 4, 2, 3)


def as_matrix(w: Tensor) -> Tensor:
    """Weights [T, O, C, kh, kw] -> [T, O, kh kw C], a view of channels-last weights."""
    return w.permute(0, 1, 3, 4, 2).flatten(2)
