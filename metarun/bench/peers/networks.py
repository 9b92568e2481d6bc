"""The learner's network built from torch's own layers, as users of other libraries would write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun.bench.workloads import Problem
from metarun.models.conv4 import Block, Conv4
from metarun.models.mlp import MLP


class SpatialMean(nn.Module):
    """Mean over the pixels of images: [N, C, H, W] -> [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def torch_network(problem: Problem, learner: Any) -> nn.Sequential:
    """Return ``learner``'s network built from torch's own layers, with equal parameters in the same order."""
    body, *heads = learner.net if hasattr(learner, "net") else [learner.model]
    layers = _conv4(body) if isinstance(body, Conv4) else _mlp(body)
    layers += [nn.Linear(h.in_features, h.out_features) for h in heads]
    net = nn.Sequential(*layers).to(problem.device, problem.dtype)
    with torch.no_grad():
        for copy, original in zip(net.parameters(), learner.parameters(), strict=True):
            copy.copy_(original)
    return net


def _conv4(model: Conv4) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for block in model.blocks:
        assert isinstance(block, Block)
        conv, norm = block.conv, block.norm
        layers += [
            # Without bias, as in the learner: the normalisation would cancel it.
            nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride[0], 1, bias=False),
            nn.BatchNorm2d(conv.out_channels, eps=norm.eps, track_running_stats=norm.policy == "running"),
            nn.ReLU(),
            *([nn.MaxPool2d(2)] if block.pool else []),
        ]
    return [*layers, SpatialMean() if model.reduce == "mean" else nn.Flatten()]


def _mlp(model: MLP) -> list[nn.Module]:
    return [
        nn.Linear(layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else type(layer)()
        for layer in model.layers
    ]
