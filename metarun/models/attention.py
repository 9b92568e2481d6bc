"""Multi-head attention, its cache of keys and values, and a pre-norm transformer block."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head scaled dot-product attention.

    Args:
        queries: Queries, [T, N, W].
        keys: Keys, [T, M, W].
        values: Values, [T, M, W].
        heads: Number of heads. It must divide W.
        mask: True for the keys that a query attends to, [N, M] or [T, 1, N, M]; ``None`` for all.

    Returns:
        Outputs of the heads, concatenated, [T, N, W].
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class KeyValueCache:
    """Cache of keys and values of earlier steps.

    New steps are appended in place to buffers that double in size when they are full. A cache can therefore be
    continued only once, and gradients reach only the steps of the first call of :meth:`append`.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.buffers: tuple[Tensor, ...] = ()

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Append keys and values of S steps, [T, S, width] each, and return those of all steps."""
        if not self.buffers:
            self.buffers, self.steps = new, new[0].shape[1]
            return new
        start, self.steps = self.steps, self.steps + new[0].shape[1]
        if self.steps > self.buffers[0].shape[1]:
            room = new[0].new_empty(len(new[0]), self.steps, new[0].shape[2])
            self.buffers = tuple(torch.cat([buffer[:, :start], room], 1) for buffer in self.buffers)
        for buffer, values in zip(self.buffers, new, strict=True):
            buffer[:, start : self.steps] = values
        return tuple(buffer[:, : self.steps] for buffer in self.buffers)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention and a two-layer perceptron, each with a residual connection.

    Args:
        width: Size of a token.
        heads: Number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_units = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.units = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, mask: Tensor, position: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Apply the block.

        Args:
            tokens: Tokens, [T, L, width].
            mask: True for the tokens that a token attends to, [L, L] or [T, 1, L, L].
            position: Encodes positions in queries and keys, [T, L, width] -> [T, L, width].

        Returns:
            Tokens, [T, L, width].
        """
        return self.extend(KeyValueCache(), tokens, mask, position)

    def extend(
        self, cache: KeyValueCache, tokens: Tensor, mask: Tensor, position: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Apply the block to L tokens that follow the P tokens in ``cache``, and add them to it.

        The arguments are those of :meth:`forward`, with a ``mask`` [L, P + L].
        """
        queries, keys, values = self.attention(self.before_attention(tokens)).chunk(3, -1)
        if position is not None:
            queries, keys = position(queries), position(keys)
        keys, values = cache.append(keys, values)
        tokens = tokens + self.out(attend(queries, keys, values, self.heads, mask))
        return tokens + self.units(self.before_units(tokens))
