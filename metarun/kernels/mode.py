"""A torch function mode that replaces the operations of a network by those for many tasks at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from metarun.kernels.conv import conv2d
from metarun.kernels.layout import ChannelsLast
from metarun.kernels.norm import batch_norm
from metarun.kernels.pool import max_pool2d


class TaskBatched(TorchFunctionMode):
    """Replaces each function in :data:`REPLACED` by its counterpart in this package, whichever module calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))


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


def _relu(x: Tensor, inplace: bool = False) -> Tensor:
    """Rectify channels-last images with gradients of the same layout: masking another one takes ten times as long."""
    if inplace or x.dim() != 4 or x.stride(1) != 1:
        return F.relu(x, inplace)
    return ChannelsLast.apply(torch.relu(ChannelsLast.apply(x)))


def _max_pool2d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if _pair(dilation) != (1, 1) or ceil_mode or return_indices or x.dim() != 4:
        return F.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore[call-overload]
    stride = kernel_size if stride is None or stride == () or stride == [] else stride
    return max_pool2d(x, tuple(_pair(kernel_size)), tuple(_pair(stride)), tuple(_pair(padding)))


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
    if training or running_mean is None or running_var is None:
        return batch_norm(x, weight, bias, eps)[0]
    rows = x.movedim(1, -1)
    return _affine((rows - running_mean) * torch.rsqrt(running_var + eps), weight, bias).movedim(-1, 1)


def _layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    return _affine(_standardise(x, list(range(-len(normalized_shape), 0)), eps), weight, bias)


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    groups = _standardise(x.reshape(x.shape[0], num_groups, -1), [-1], eps).view(x.shape)
    return _affine(groups.movedim(1, -1), weight, bias).movedim(-1, 1)


def _standardise(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


REPLACED: dict[Any, Callable[..., Any]] = {
    torch.conv2d: _conv2d,
    torch.relu: _relu,
    F.relu: _relu,
    F.max_pool2d: _max_pool2d,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
"""Maps each replaced torch function to its replacement, which takes the same arguments."""
