"""The patches of images as one matrix, for convolutions of so few inputs that its memory does not matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch.nn.functional as F
from torch import Tensor

_FOLDING: ContextVar[bool] = ContextVar("folding", default=False)


def folding() -> bool:
    """Whether layers may merge into an equal one that is faster."""
    return _FOLDING.get()


@contextmanager
def fold(on: bool) -> Iterator[None]:
    """Within the block, :func:`folding` is ``on``."""
    before = _FOLDING.set(on)
    try:
        yield
    finally:
        _FOLDING.reset(before)


def patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, tuple[int, int]]:
    """Images [B, C, H, W] -> their patches as columns [C kh kw, B H' W'], and (H', W').

    A row is one pixel of all patches: images are copied row by row, which is several times as fast as patch by patch.
    """
    planes = F.pad(x.transpose(0, 1), [padding[1], padding[1], padding[0], padding[0]])
    seen = planes.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])  # [C, B, H', W', kh, kw]
    size = (seen.shape[2], seen.shape[3])
    return seen.permute(0, 4, 5, 1, 2, 3).flatten(3).flatten(0, 2), size
