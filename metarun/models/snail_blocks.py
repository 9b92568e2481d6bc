"""Blocks of SNAIL, which read a sequence causally (Mishra et al. 2018, arXiv:1707.03141, section 3 and figure 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil, log2, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.models.attention import KeyValueCache


class Attention(nn.Module):
    """Causal attention with one head, whose output is concatenated with its input (figure 2b).

    Args:
        channels: Size of the input.
        keys: Size of a key.
        values: Size of a value.
    """

    def __init__(self, channels: int, keys: int, values: int) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(channels, n) for n in (keys, keys, values))
        self.scale = sqrt(keys)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Read S positions, [B, S, C] -> [B, S, C + values], after those in ``cache``, to which they are added."""
        cache = cache or KeyValueCache()
        start = cache.steps
        keys, values = cache.append(self.keys(x), self.values(x))
        logits = self.queries(x) @ keys.mT / self.scale
        places = torch.arange(keys.shape[1], device=x.device)
        weights = logits.masked_fill(places[None] > places[start:, None], float("-inf")).softmax(-1)
        return torch.cat([x, weights @ values], -1)


class Dense(nn.Module):
    """Gated causal convolution of size 2, whose output is concatenated with its input (figure 2a).

    Args:
        channels: Size of the input.
        dilation: Distance of the two positions that the convolution reads.
        filters: Number of filters.
    """

    def __init__(self, channels: int, dilation: int, filters: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.before, self.here = nn.Linear(channels, 2 * filters, bias=False), nn.Linear(channels, 2 * filters)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Read S positions, [B, S, C] -> [B, S, C + filters], after those in ``cache``, to which they are added."""
        cache = cache or KeyValueCache()
        first = cache.steps - self.dilation
        (whole,) = cache.append(x)
        earlier = whole[:, max(first, 0) : max(first + x.shape[1], 0)]
        earlier = F.pad(earlier, (0, 0, x.shape[1] - earlier.shape[1], 0))
        # Two matrix products are faster than a convolution here, as the sequences are short and wide.
        candidate, gate = (self.before(earlier) + self.here(x)).chunk(2, -1)
        return torch.cat([x, torch.tanh(candidate) * torch.sigmoid(gate)], -1)


class TemporalConvolutions(nn.Module):
    """Dense blocks with dilations 1, 2, 4, .., whose receptive field is at least ``span`` positions (figure 2c).

    Args:
        channels: Size of the input.
        span: Number of positions of the receptive field.
        filters: Number of filters of each block.
    """

    def __init__(self, channels: int, span: int, filters: int) -> None:
        super().__init__()
        count = max(1, ceil(log2(span)))
        self.blocks = nn.Sequential(*(Dense(channels + i * filters, 2**i, filters) for i in range(count)))
        self.channels = channels + count * filters
        """Size of the output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def layers(blocks: Iterable[nn.Module]) -> Iterator[Attention | Dense]:
    """Yield the layers of ``blocks`` in order. Each needs a cache of its own."""
    for block in blocks:
        if isinstance(block, TemporalConvolutions):
            yield from layers(block.blocks)
        else:
            assert isinstance(block, Attention | Dense)
            yield block
