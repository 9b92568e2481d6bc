"""A torch function mode that computes a network's layers in bfloat16 and everything else in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from metarun.kernels.conv import conv2d

LAYERS = frozenset(
    {
        F.linear,
        F.bilinear,
        torch.conv1d,
        torch.conv2d,
        torch.conv3d,
        torch.conv_transpose1d,
        torch.conv_transpose2d,
        torch.conv_transpose3d,
        F.scaled_dot_product_attention,
        F.multi_head_attention_forward,
        conv2d,
    }
)
"""Functions that learned layers call. They hold nearly all of a network's multiplications."""


class BFloat16Layers(TorchFunctionMode):
    """Casts the float32 arguments of the functions in :data:`LAYERS` to bfloat16 and their results back to float32.

    The casts are differentiable operations. Derivatives of any order therefore multiply in bfloat16 too, and the
    gradients of parameters are float32.

    ``torch.autocast`` does not fit here for two reasons. It passes bfloat16 on to the operations that follow a layer,
    which differ by device and include sums over tasks, linear systems and metarun's own kernels. It also caches casts
    of parameters, which is wrong for parameters that change in each step of an inner loop.
    """

    suspended: ClassVar[int] = 0
    """Number of :func:`bfloat16_disabled` blocks that are open."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in LAYERS or BFloat16Layers.suspended:
            return func(*args, **kwargs)
        is_cast = False

        def to_bfloat16(t: Tensor) -> Tensor:
            nonlocal is_cast
            if t.dtype is not torch.float32:
                return t
            is_cast = True
            return t.to(torch.bfloat16)

        args, kwargs = tree_map_only(Tensor, to_bfloat16, (tuple(args), kwargs))
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, to_float32, result) if is_cast else result


def to_float32(t: Tensor) -> Tensor:
    """Cast a bfloat16 tensor to float32. Other tensors are returned as they are."""
    return t.to(torch.float32) if t.dtype is torch.bfloat16 else t


@contextmanager
def bfloat16_disabled() -> Iterator[None]:
    """Disable :class:`BFloat16Layers` within the block, for layers that are not part of the learner's network."""
    BFloat16Layers.suspended += 1
    try:
        yield
    finally:
        BFloat16Layers.suspended -= 1
