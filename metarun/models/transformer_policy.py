"""A policy whose memory is a transformer over all that it has perceived in a trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.attention import Block, Past
from metarun.models.policies import ActionHead, Eyes, PerceptVector, TaskLinear
from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate


class TransformerPolicy(nn.Module):
    """Reads what a recurrent policy reads, and attends to every earlier step of the trial instead of remembering it.

    A causal transformer in RL2's place of the GRU (as by Melo 2022, arXiv:2206.06614, and Grigsby, Fan & Zhu 2023,
    arXiv:2310.09971): ``layers`` pre-norm blocks of ``heads`` heads and ``width`` units, each with a layer of 4
    ``width``, on percepts with sines of their place (Vaswani et al. 2017). A second head estimates the value.
    Images are read by convolutions of ``filters`` each. With ``transitions`` a percept also has the observation that
    was acted on before: one step of attention then finds what was done where the agent is now, and what it paid.
    """

    modalities: ClassVar[tuple[str, ...]] = ("vector", "state", "image", "observation")
    role: ClassVar[str] = "recurrent_policy"

    def __init__(
        self,
        spec: Spec,
        *,
        filters: Sequence[Positive],
        transitions: bool,
        width: Positive,
        layers: Positive,
        heads: Positive,
        init_std: Rate,
    ) -> None:
        super().__init__()
        require(width % (2 * heads) == 0, f"model.width={width} must be a multiple of twice model.heads={heads}")
        self.encode, self.eyes = PerceptVector(spec, transitions), Eyes(spec, filters)
        self.inputs = nn.Linear(self.eyes.features + self.encode.more, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = ActionHead(width, spec, init_std)
        self.value = TaskLinear(width, 1)

    def forward(self, inputs: Tensor, past: Sequence[Past] = ()) -> tuple[Tensor, Tensor, Sequence[Past]]:
        """S steps of B trials, [S, B, inputs], after the ``past`` of each block (none: a trial begins).

        Returns action distributions [S, B, outputs], values [S, B] and the past, which these steps have joined.
        """
        features, past = self.features(inputs, past)
        return self.head(features), self.value(features)[..., 0], past

    def features(self, inputs: Tensor, past: Sequence[Past] = ()) -> tuple[Tensor, Sequence[Past]]:
        """What both heads read, [S, B, width], and the past."""
        past = past or [Past() for _ in self.blocks]
        before = past[0].steps
        tokens = self.inputs(self.eyes(inputs).transpose(0, 1))
        tokens = tokens + places(before, tokens.shape[1], tokens)
        at = torch.arange(before + tokens.shape[1], device=tokens.device)
        seen = at[None] <= at[before:, None]
        for block, known in zip(self.blocks, past, strict=True):
            assert isinstance(block, Block)
            tokens = block.after(known, tokens, seen)
        return self.norm(tokens).transpose(0, 1), past


def places(first: int, count: int, like: Tensor) -> Tensor:
    """Sines and cosines of the steps from ``first`` on, [count, width]."""
    half = like.shape[-1] // 2
    at = torch.arange(first, first + count, device=like.device, dtype=like.dtype)
    rate = 10_000 ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
    angle = at[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)
