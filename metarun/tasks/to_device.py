"""Copies from the host to the device of the tasks."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: NDArray[Any] | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``values`` as a tensor on ``device``, converted to ``dtype`` if given.

    A copy to a GPU goes through pinned memory and does not block. An ordinary copy would wait for all work queued on
    the GPU, which is the previous outer step.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
