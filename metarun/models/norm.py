"""Batch normalisation with its statistics as a named policy.

``transductive``  statistics of the batch at hand, at test too (MAML, Relation Networks);
``support``       statistics of the support set, also for the query examples;
``running``       batch statistics while meta-training, their running average at test (Prototypical Networks).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import UserError
from metarun.types import NormPolicy


class BatchNorm(nn.Module):
    """Batch normalisation over every dimension but the channel's (dimension 1).

    ``scale`` and ``shift`` say whether the learned factor and offset exist (MAML's networks have no factor).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, scale: bool = True, shift: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if scale else None
        self.bias = nn.Parameter(torch.zeros(channels)) if shift else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.momentum, self.eps = 0.1, 1e-5
        self.policy: NormPolicy = "running"
        self.rows: int | None = None
        """Take statistics from the first ``rows`` examples only."""

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is None:
            if self.policy == "running":
                mean, var, batch = self.running_mean, self.running_var, self.training
            else:
                mean, var, batch = None, None, True
            return F.batch_norm(x, mean, var, self.weight, self.bias, batch, self.momentum, self.eps)
        measured = x[: self.rows]
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = measured.mean(over, keepdim=True)
        var = (measured - mean).square().mean(over, keepdim=True)
        x = (x - mean) * torch.rsqrt(var + self.eps)
        if self.weight is not None:
            x = x * self.weight.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)


def set_policy(model: nn.Module, policy: NormPolicy) -> None:
    """Give every normalisation layer of ``model`` the policy; torch's own layers included where they can follow.

    Raises :class:`~metarun.errors.UserError` for torch's own batch norm under ``support``.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, BatchNorm):
            layer.policy = policy
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and policy != "running":
            if policy == "support":
                raise UserError(
                    f"algorithm.norm=support cannot steer torch's own batch norm (layer '{name}'); "
                    "use metarun.models.norm.BatchNorm, or norm=transductive or running"
                )
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None


@contextmanager
def statistics_from(model: nn.Module, rows: int | None) -> Iterator[None]:
    """Within the block, normalise with the statistics of the first ``rows`` examples of each batch."""
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm)]
    for layer in layers:
        layer.rows = rows
    try:
        yield
    finally:
        for layer in layers:
            layer.rows = None
