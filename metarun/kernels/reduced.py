"""The layers of a network in bfloat16, everything around them in float32."""

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
"""The functions that learned layers are made of: nearly all of a network's multiplications."""


class BFloat16Layers(TorchFunctionMode):
    """Within the block, :data:`LAYERS` round their float32 arguments to bfloat16, and their results are float32 again.

    Casts are operations like others, so that derivatives of any order multiply in bfloat16 too, and reach parameters
    in float32. Not ``torch.autocast``: that hands bfloat16 on to whatever comes next, which is different on each kind
    of device and includes sums over tasks, linear systems and metarun's own operations; and the casts that it
    remembers are wrong for parameters that change from step to step of an inner loop.
    """

    suspended: ClassVar[int] = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in LAYERS or BFloat16Layers.suspended:
            return func(*args, **kwargs)
        rounded = False

        def down(t: Tensor) -> Tensor:
            nonlocal rounded
            if t.dtype is not torch.float32:
                return t
            rounded = True
            return t.to(torch.bfloat16)

        args, kwargs = tree_map_only(Tensor, down, (tuple(args), kwargs))
        result = func(*args, **kwargs)
        return tree_map_only(Tensor, up, result) if rounded else result


def up(t: Tensor) -> Tensor:
    """float32 of bfloat16."""
    return t.to(torch.float32) if t.dtype is torch.bfloat16 else t


@contextmanager
def layers_as_they_are() -> Iterator[None]:
    """Within the block, :class:`BFloat16Layers` changes nothing: for layers that are no part of the network."""
    BFloat16Layers.suspended += 1
    try:
        yield
    finally:
        BFloat16Layers.suspended -= 1
