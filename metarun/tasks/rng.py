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
_FACTORS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.arange(10, dtype=np.uint64)[:, None] * np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Apply ten rounds of Philox 4x32. ``counter`` [..., 4] and the result hold 32-bit words in uint64."""
    even, odd = (np.ascontiguousarray(counter.reshape(-1, 4)[:, i::2].T) for i in range(2))
    even, odd = _ten_rounds(even, odd, key)
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=-1).reshape(counter.shape)


def _ten_rounds(
    even: NDArray[np.uint64], odd: NDArray[np.uint64], key: tuple[int, int]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Apply ten rounds to the words 0 and 2, and 1 and 3, of n counters, [2, n] each, which are overwritten."""
    high = np.empty_like(even)
    for keys in np.bitwise_and(np.array(key, dtype=np.uint64) + _KEY_STEPS, _MASK):
        even *= _FACTORS
        np.right_shift(even, _SHIFT, out=high)
        even &= _MASK
        odd ^= high[::-1]
        odd ^= keys[:, None]
        even, odd = odd, even[::-1]
    return even, odd


def uniforms(seed: int, split: Split, indices: Sequence[int], count: int, stream: int = 0) -> NDArray[np.float64]:
    """Return uniforms in [0, 1), [len(indices), count]; row i depends on (seed, split, indices[i]) only.

    Args:
        seed: Seed of the family; its lower 64 bits are used.
        split: Split of the tasks.
        indices: Numbers of the tasks, below 2^64.
        count: Numbers of a task.
        stream: Number below 2^30 that separates different uses within a task, such as classes and examples.
    """
    blocks = -(-count // 2)  # two 53-bit uniforms a block of four words
    index = np.asarray(indices, dtype=np.uint64)[:, None]
    even, odd = np.empty((2, len(indices), blocks), np.uint64), np.empty((2, len(indices), blocks), np.uint64)
    even[0], odd[0] = np.arange(blocks, dtype=np.uint64), index & _MASK
    even[1], odd[1] = index >> _SHIFT, np.uint64(SPLITS.index(split) + 4 * stream)
    high, low = _ten_rounds(even.reshape(2, -1), odd.reshape(2, -1), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    high >>= np.uint64(5)
    low >>= np.uint64(6)
    values = high.T.astype(np.float64, order="C")
    values *= 67108864.0
    values += low.T
    values /= 9007199254740992.0
    return values.reshape(len(indices), -1)[:, :count]


def normals(seed: int, split: Split, indices: Sequence[int], count: int, stream: int = 0) -> NDArray[np.float64]:
    """Return standard normals [len(indices), count], made of the uniforms of the same ``stream`` by Box-Muller."""
    u, v = np.split(uniforms(seed, split, indices, 2 * count, stream), 2, axis=1)
    angle = 2 * np.pi * v
    radius = np.negative(u)
    np.log1p(radius, out=radius)
    radius *= -2
    np.sqrt(radius, out=radius)
    radius *= np.cos(angle, out=angle)
    return radius


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
