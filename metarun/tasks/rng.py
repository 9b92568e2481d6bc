"""Random numbers as a pure function of (seed, split, index): Philox 4x32-10, vectorised over episodes.

A counter-based generator has no state, so an episode is the same on every device, for any number of processes and after
any resume. (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.types import SPLITS, Split

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Apply ten rounds of Philox 4x32. ``counter`` [..., 4] and the result hold 32-bit words in uint64."""
    c0, c1, c2, c3 = (counter[..., i].copy() for i in range(4))
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _MASK, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1)


def uniforms(seed: int, split: Split, indices: Sequence[int], count: int, stream: int = 0) -> NDArray[np.float64]:
    """Return uniforms in [0, 1), [len(indices), count]; row i depends on (seed, split, indices[i]) only.

    Args:
        seed: Seed of the family; its lower 64 bits are used.
        split: Split of the tasks.
        indices: Numbers of the tasks, below 2^64.
        count: Numbers of a task.
        stream: Number below 16 that separates different uses within a task, such as classes and examples.
    """
    blocks = -(-count // 2)  # two 53-bit uniforms a block of four words
    index = np.asarray(indices, dtype=np.uint64)[:, None]
    counter = np.empty((len(indices), blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks, dtype=np.uint64)
    counter[..., 1] = index & _MASK
    counter[..., 2] = index >> _SHIFT
    counter[..., 3] = np.uint64(SPLITS.index(split) + 4 * stream)
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    high, low = words[..., 0::2] >> np.uint64(5), words[..., 1::2] >> np.uint64(6)
    values = (high.astype(np.float64) * 67108864.0 + low.astype(np.float64)) / 9007199254740992.0
    return values.reshape(len(indices), -1)[:, :count]


def normals(seed: int, split: Split, indices: Sequence[int], count: int, stream: int = 0) -> NDArray[np.float64]:
    """Return standard normals [len(indices), count], made of the uniforms of the same ``stream`` by Box-Muller."""
    u, v = np.split(uniforms(seed, split, indices, 2 * count, stream), 2, axis=1)
    return np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)


def choose(u: NDArray[np.float64], sizes: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Draw without replacement by a partial Fisher-Yates shuffle, vectorised over rows.

    Args:
        u: Uniforms [R, k].
        sizes: Size of each row's population, [R] or one for all; at least k.

    Returns:
        Distinct integers below ``sizes``, [R, k].
    """
    rows, k = u.shape
    size = np.broadcast_to(np.asarray(sizes, dtype=np.int64), (rows,))
    order = np.tile(np.arange(size.max(), dtype=np.int64), (rows, 1))
    every = np.arange(rows)
    for j in range(k):
        pick = j + np.floor(u[:, j] * (size - j)).astype(np.int64)
        chosen = order[every, pick]
        order[every, pick] = order[:, j]
        order[:, j] = chosen
    return order[:, :k]


def permutation(seed: int, count: int) -> NDArray[np.int64]:
    """Return a seeded permutation of ``range(count)`` for splitting classes, in a stream that no episode uses."""
    return choose(uniforms(seed, "train", [0], count, stream=15), count)[0]


def derived_seed(seed: int, split: Split, index: int, stream: int) -> int:
    """Return a 53-bit seed for torch's or NumPy's generators, a pure function of (seed, split, index, stream)."""
    return derived_seeds(seed, split, [index], stream)[0]


def derived_seeds(seed: int, split: Split, indices: Sequence[int], stream: int) -> list[int]:
    """Return :func:`derived_seed` of each index. A hundred of them take hardly longer than one."""
    return [int(u * 2**53) for u in uniforms(seed, split, indices, 1, stream)[:, 0]]


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators on the CPU and on ``device``.

    ``torch.manual_seed`` seeds those of all devices. Where there is no GPU it takes a hundred times as long, because it
    keeps the call, with the stack, for a GPU that may be set up later.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def forked_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Run a block with torch's generators on the CPU and on ``device`` seeded by ``seed``, then restore their states.

    Without a ``seed`` the block continues from the current states. The GPU's generator is restored too because
    ``torch.manual_seed`` seeds it as well.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield


class Share(Sequence[int]):
    """The indices of a meta-batch that one of several processes computes: every ``world``-th, from the ``rank``-th
    on.
    """

    def __init__(self, whole: range, rank: int, world: int) -> None:
        self.whole, self.rank, self.world = whole, rank, world
        self.own = whole[rank::world]

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> range: ...
    def __getitem__(self, key: int | slice) -> int | range:
        return self.own[key]

    def __len__(self) -> int:
        return len(self.own)


class Noise(torch.Generator):
    """A torch generator for the noise of a batch of tasks; :attr:`share` is set if this process computes a part of
    them.
    """

    share: Share | None = None


def generator(
    device: torch.device, seed: int, split: Split, indices: Sequence[int], stream: int = 8
) -> torch.Generator | None:
    """Return a generator for noise inside episodes, such as sampled actions and transitions.

    Args:
        device: Device of the generator.
        seed: Seed of the family.
        split: Split of the tasks.
        indices: Numbers of the tasks; the first of the whole meta-batch seeds the generator.
        stream: Random stream of the seed.

    Returns:
        The generator, or ``None`` on the ``meta`` device, which has no random numbers.
    """
    if device.type == "meta":
        return None
    noise = Noise(device=device)
    whole = indices.whole if isinstance(indices, Share) else indices
    noise.share = indices if isinstance(indices, Share) else None
    return noise.manual_seed(derived_seed(seed, split, whole[0], stream))


def drawn(x: Tensor, how: str, *arguments: float, generator: torch.Generator | None, tasks: int = 0) -> Tensor:
    """Fill ``x`` in place with random numbers and return it.

    If the generator belongs to one process's share of a meta-batch, each task gets the numbers that it would get if all
    tasks were computed in one process.

    Args:
        x: Tensor to fill.
        how: Name of a torch in-place sampler, such as ``normal_`` or ``uniform_``.
        arguments: Arguments of the sampler.
        generator: Source of the random numbers, from :func:`generator`.
        tasks: The dimension of ``x`` that counts tasks.
    """
    share = getattr(generator, "share", None)
    if share is None:
        return getattr(x, how)(*arguments, generator=generator)
    shape = list(x.shape)
    shape[tasks] = len(share.whole)
    every = getattr(x.new_empty(shape), how)(*arguments, generator=generator)
    own = (slice(None),) * tasks + (slice(share.rank, None, share.world),)
    return x.copy_(every[own])
