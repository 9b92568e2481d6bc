"""Fusion of a convolution with the normalisation after it: its switch and the matrix of image patches it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch.nn.functional as F
from torch import Tensor

_FUSION_ENABLED: ContextVar[bool] = ContextVar("fusion_enabled", default=False)


def is_fusion_enabled() -> bool:
    """Return whether a layer may be fused with the one before it into an equal layer that is faster."""
    return _FUSION_ENABLED.get()


@contextmanager
def fuse_layers(enabled: bool) -> Iterator[None]:
    """Enable or disable the fusion of layers within the block."""
    token = _FUSION_ENABLED.set(enabled)
    try:
        yield
    finally:
        _FUSION_ENABLED.reset(token)


def image_patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[Tensor, tuple[int, int]]:
    """Copy the patches of images to the columns of a matrix.

    A row of the matrix is one pixel of all patches, so images are copied row by row, which is several times as fast as
    patch by patch. The matrix takes kh kw times the memory of the images, so this is for few input channels.

    Args:
        x: Images, [B, C, H, W].
        kernel: Height and width of a patch.
        stride: Vertical and horizontal distance between patches.
        padding: Rows and columns of zeros on each side.

    Returns:
        The patches [C kh kw, B H' W'] and the size (H', W') of the output images.
    """
    planes = F.pad(x.transpose(0, 1), [padding[1], padding[1], padding[0], padding[0]])
    windows = planes.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])  # [C, B, H', W', kh, kw]
    size = (windows.shape[2], windows.shape[3])
    return windows.permute(0, 4, 5, 1, 2, 3).flatten(3).flatten(0, 2), size
