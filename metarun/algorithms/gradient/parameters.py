"""Named parameters of one task, as a dictionary and as one vector."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def flatten(parameters: Mapping[str, Tensor]) -> Tensor:
    """All values in one vector [P]."""
    return torch.cat([p.flatten() for p in parameters.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Parameters:
    """The inverse of :func:`flatten`; names and shapes from ``like``."""
    parts = vector.split([prod(p.shape) for p in like.values()])
    return {name: part.view(p.shape) for part, (name, p) in zip(parts, like.items(), strict=True)}
