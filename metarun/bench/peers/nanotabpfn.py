"""The training loop of nanoTabPFN, a small public re-implementation of TabPFN v2 (arXiv:2511.03634), restated."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.tasks.episode import TaskBatch

NAME = "nanoTabPFN"
WIDTH, LAYERS, HEADS, UNITS = 96, 3, 4, 192
"""Sizes in its README."""
CLIP = 100.0
"""Bound of standardised values."""


class Block(nn.Module):
    """Post-norm block: attention between the cells of a row, attention to the support rows, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.over_columns = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.over_rows = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.units = nn.Sequential(nn.Linear(WIDTH, UNITS), nn.GELU(), nn.Linear(UNITS, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, tokens: Tensor, count: int) -> Tensor:
        """Apply the block to tokens [T, R, C, width], the first ``count`` rows of which are the support rows."""
        tasks, rows, columns, _ = tokens.shape
        cells = tokens.flatten(0, 1)
        tokens = self.norms[0]((cells + self.over_columns(cells, cells, cells)[0]).unflatten(0, (tasks, rows)))
        by_column = tokens.transpose(1, 2).flatten(0, 1)
        support, queries = by_column[:, :count], by_column[:, count:]
        found = [self.over_rows(asking, support, support)[0] for asking in (support, queries)]
        by_column = by_column + torch.cat(found, 1)
        tokens = self.norms[1](by_column.unflatten(0, (tasks, columns)).transpose(1, 2))
        return self.norms[2](tokens + self.units(tokens))


class Network(nn.Module):
    """Its network for ``classes`` classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cell, self.label = nn.Linear(1, WIDTH), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.Linear(WIDTH, UNITS), nn.GELU(), nn.Linear(UNITS, classes))

    def forward(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Return logits [T, M, K] of query rows [T, M, C], from support rows [T, N, C] with labels [T, N]."""
        count = x.shape[1]
        both = (torch.cat([x, queries], 1) - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-20)
        labels = y[..., None].to(x.dtype)
        labels = torch.cat([labels, labels.mean(1, keepdim=True).expand(-1, queries.shape[1], -1)], 1)
        tokens = torch.cat([self.cell(both.clamp(-CLIP, CLIP)[..., None]), self.label(labels[..., None])], 2)
        for block in self.blocks:
            tokens = block(tokens, count)
        return self.head(tokens[:, count:, -1])


def training(batch: TaskBatch, device: torch.device) -> Callable[[], int]:
    """Return a function that takes a training step on ``batch``, which is on ``device``, and returns 1.

    Its schedule-free AdamW is replaced by torch's AdamW, which does less.
    """
    network = Network(batch.support.way).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.0)

    def step() -> int:
        logits = network(batch.support.x, batch.support.y, batch.query.x)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.query.y.flatten())
        loss.backward()
        loss.item()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return 1

    return step
