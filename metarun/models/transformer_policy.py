"""A policy whose memory is a transformer over all that it has perceived in a trial."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.amortised.sequence import attend
from metarun.errors import require
from metarun.models.policies import ActionHead, PerceptVector, TaskLinear
from metarun.tasks.base import Spec
from metarun.types import Positive, Rate

Past = tuple[Tensor, ...]
"""Keys and values of what came before, [B, steps, width] each, two a block."""


class TransformerPolicy(nn.Module):
    """Reads what a recurrent policy reads, and attends to every earlier step of the trial instead of remembering it.

    A causal transformer in RL2's place of the GRU (as by Melo 2022, arXiv:2206.06614, and Grigsby, Fan & Zhu 2023,
    arXiv:2310.09971): ``layers`` pre-norm blocks of ``heads`` heads and ``width`` units, each with a layer of 4
    ``width``, on percepts with sines of their place (Vaswani et al. 2017). A second head estimates the value.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state")
    role: ClassVar[str] = "recurrent_policy"

    def __init__(self, spec: Spec, *, width: Positive, layers: Positive, heads: Positive, init_std: Rate) -> None:
        super().__init__()
        require(width % (2 * heads) == 0, f"model.width={width} must be a multiple of twice model.heads={heads}")
        self.encode = PerceptVector(spec)
        self.inputs = nn.Linear(self.encode.size, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = ActionHead(width, spec, init_std)
        self.value = TaskLinear(width, 1)

    def forward(self, inputs: Tensor, past: Past | None = None) -> tuple[Tensor, Tensor, Past]:
        """S steps of B trials, [S, B, inputs], after the ``past`` (``None``: a trial begins).

        Returns action distributions [S, B, outputs], values [S, B] and the past with these steps.
        """
        before = 0 if past is None else past[0].shape[1]
        tokens = self.inputs(inputs.transpose(0, 1))
        tokens = tokens + places(before, tokens.shape[1], tokens)
        now: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            tokens, *known = block(tokens, None if past is None else past[2 * number : 2 * number + 2])
            now += known
        features = self.norm(tokens).transpose(0, 1)
        return self.head(features), self.value(features)[..., 0], tuple(now)


class Block(nn.Module):
    """Causal attention and a layer of units, each added to what it reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_units = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.units = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, past: Past | None) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = self.attention(self.before_attention(tokens)).chunk(3, -1)
        if past is not None:
            keys, values = (torch.cat([old, new], 1) for old, new in zip(past, (keys, values), strict=True))
        steps, known = queries.shape[1], keys.shape[1]
        at = torch.arange(known, device=tokens.device)
        seen = at[None] <= at[known - steps :, None]
        tokens = tokens + self.out(attend(queries, keys, values, self.heads, seen))
        return tokens + self.units(self.before_units(tokens)), keys, values


def places(first: int, count: int, like: Tensor) -> Tensor:
    """Sines and cosines of the steps from ``first`` on, [count, width]."""
    half = like.shape[-1] // 2
    at = torch.arange(first, first + count, device=like.device, dtype=like.dtype)
    rate = 10_000 ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
    angle = at[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)
