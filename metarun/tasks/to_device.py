"""Copies of what was drawn on the host, to the device that tasks are on."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[Any] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``values`` as a tensor on ``device``, of ``dtype`` or else of their own type.

    To a GPU they go through pinned memory, so that the host goes on at once. An ordinary copy would make it wait until
    the GPU has done all that it was asked before, which is the whole step of the last meta-batch.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
