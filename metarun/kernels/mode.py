"""The operations of a network that are replaced by exact and fast ones while it is evaluated on many tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from metarun.kernels.conv import conv2d
from metarun.kernels.norm import normalise


class TaskBatched(TorchFunctionMode):
    """Within the block, convolutions and batch normalisation are those of ``metarun.kernels``, whoever calls them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = REPLACED.get(func)
        return (func if replacement is None else replacement)(*args, **(kwargs or {}))


def _conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if groups != 1 or _pair(dilation) != (1, 1) or isinstance(padding, str) or x.dim() != 4:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    y = conv2d(x, weight, tuple(_pair(stride)), tuple(_pair(padding)))
    return y if bias is None else y + bias.view(-1, 1, 1)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    rows = x.movedim(1, -1)
    return normalise(rows.flatten(0, -2), weight, bias, eps).view(rows.shape).movedim(-1, 1)


REPLACED: dict[Any, Callable[..., Any]] = {torch.conv2d: _conv2d, F.batch_norm: _batch_norm}
