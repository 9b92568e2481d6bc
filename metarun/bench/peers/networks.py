"""A learner's network as users of other libraries write it: torch's own layers, in the order that papers give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun.bench.workloads import Problem
from metarun.models.conv4 import Block, Conv4
from metarun.models.mlp import MLP


class SpatialMean(nn.Module):
    """[N, C, H, W] -> [N, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def twin(problem: Problem, learner: Any) -> nn.Sequential:
    """``learner``'s network of torch's own layers, with its parameters' values, in their order."""
    body, *head = learner.net if hasattr(learner, "net") else [learner.model]
    layers = _conv4(body) if isinstance(body, Conv4) else _mlp(body)
    layers += [nn.Linear(h.in_features, h.out_features) for h in head]
    net = nn.Sequential(*layers).to(problem.device, problem.dtype)
    with torch.no_grad():
        for mine, its in zip(net.parameters(), learner.parameters(), strict=True):
            mine.copy_(its)
    return net


def _conv4(model: Conv4) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for block in model.blocks:
        assert isinstance(block, Block)
        conv, norm = block.conv, block.norm
        layers += [
            # As in the learner, no bias, which the normalisation would cancel.
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
