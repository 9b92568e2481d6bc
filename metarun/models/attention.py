"""Attention, its cache of keys and values, and the transformer block that models and algorithms share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, seen: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of ``heads`` equal parts: [T, N, W], [T, M, W], [T, M, W] -> [T, N, W].

    ``seen`` [N, M] or [T, 1, N, M]: which keys each query attends to; all without it.
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)


class Past:
    """Keys and values of the steps before, which those that follow attend to.

    They are written behind one another, in place, in room that doubles when it is full: a past has one future, and
    nothing is differentiated through more than its first part.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.rooms: tuple[Tensor, ...] = ()

    def followed_by(self, *now: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of all steps, after those of S more [T, S, width]."""
        if not self.rooms:
            self.rooms, self.steps = now, now[0].shape[1]
            return now
        start, self.steps = self.steps, self.steps + now[0].shape[1]
        if self.steps > self.rooms[0].shape[1]:
            more = now[0].new_empty(len(now[0]), self.steps, now[0].shape[2])
            self.rooms = tuple(torch.cat([room[:, :start], more], 1) for room in self.rooms)
        for room, new in zip(self.rooms, now, strict=True):
            room[:, start : self.steps] = new
        return tuple(room[:, : self.steps] for room in self.rooms)


class Block(nn.Module):
    """A transformer's block, its normalisation before attention and before the layer that follows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_units = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.units = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, seen: Tensor, place: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """``tokens`` [T, L, width]; ``seen`` [L, L] or [T, 1, L, L]: which others each attends to.

        ``place`` tells queries and keys where they stand.
        """
        return self.after(Past(), tokens, seen, place)

    def after(
        self, past: Past, tokens: Tensor, seen: Tensor, place: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """The same where P others came before, which these then join: ``seen`` [L, P + L]."""
        queries, keys, values = self.attention(self.before_attention(tokens)).chunk(3, -1)
        if place is not None:
            queries, keys = place(queries), place(keys)
        keys, values = past.followed_by(keys, values)
        tokens = tokens + self.out(attend(queries, keys, values, self.heads, seen))
        return tokens + self.units(self.before_units(tokens))
