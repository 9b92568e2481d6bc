"""Transformer policy for RL2, which attends to all steps of a trial."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metarun.errors import require
from metarun.models.attention import Block, KeyValueCache
from metarun.models.policies import HistoryPolicy
from metarun.tasks.episode import Spec
from metarun.types import Positive, Rate


class TransformerPolicy(HistoryPolicy):
    """Causal transformer that replaces the GRU of RL2 and attends to all earlier steps of a trial.

    The architecture follows Melo 2022 (arXiv:2206.06614) and Grigsby, Fan & Zhu 2023 (arXiv:2310.09971): pre-norm
    blocks with perceptrons of 4 ``width`` units, and sinusoidal positional encodings (Vaswani et al. 2017). A second
    head estimates the value.

    Args:
        spec: Shapes of the task.
        filters: Number of filters of each 3x3 convolution for image observations.
        transitions: If true, the input of a step also holds the previous observation. One attention layer can then find
            which action was taken at the current observation, and its reward.
        width: Size of a token.
        layers: Number of blocks.
        heads: Number of attention heads. ``width`` must be a multiple of twice as many.
        init_std: Initial standard deviation of continuous actions.

    Raises:
        UserError: ``width`` does not fit ``heads``, or the observations are images and ``transitions`` is true.
    """

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
        require(width % (2 * heads) == 0, f"model.width={width} must be a multiple of twice model.heads={heads}")
        super().__init__(spec, filters, transitions)
        self.inputs = nn.Linear(self.read_size, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.make_heads(spec, width, init_std)

    def features(self, inputs: Tensor, past: Sequence[KeyValueCache] = ()) -> tuple[Tensor, Sequence[KeyValueCache]]:
        """Return the features that both heads read, [S, B, width], and the caches of the blocks, with the S steps."""
        past = past or [KeyValueCache() for _ in self.blocks]
        offset = past[0].steps
        tokens = self.inputs(self.eyes(inputs).transpose(0, 1))
        tokens = tokens + positional_encoding(offset, tokens.shape[1], tokens)
        steps = torch.arange(offset + tokens.shape[1], device=tokens.device)
        mask = steps[None] <= steps[offset:, None]
        for block, cache in zip(self.blocks, past, strict=True):
            assert isinstance(block, Block)
            tokens = block.extend(cache, tokens, mask)
        return self.norm(tokens).transpose(0, 1), past


def positional_encoding(first: int, count: int, like: Tensor) -> Tensor:
    """Return sinusoidal encodings of ``count`` steps from step ``first``, [count, width]."""
    half = like.shape[-1] // 2
    steps = torch.arange(first, first + count, device=like.device, dtype=like.dtype)
    rate = 10_000 ** (-torch.arange(half, device=like.device, dtype=like.dtype) / half)
    angle = steps[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1)
