"""The counter-based generator: known answers, uniformity, purity."""

import numpy as np
import pytest
import torch

from metarun.tasks.rng import choose, derived_seed, generator, permutation, philox, uniforms

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_known_answers(counter, key, result):
    k0, k1 = words(key)
    assert philox(np.array(words(counter), dtype=np.uint64), (k0, k1)).tolist() == words(result)


def test_philox_is_vectorised_over_counters():
    counters = np.array([words(counter) for counter, _, _ in KNOWN], dtype=np.uint64)
    together = philox(counters, (7, 8))
    assert all((philox(counters[i], (7, 8)) == together[i]).all() for i in range(3))


def test_uniforms_depend_on_seed_split_index_and_stream_alone():
    both = uniforms(5, "val", [3, 4], 7)
    assert (both[1] == uniforms(5, "val", [4], 7)[0]).all()
    assert (both[1, :4] == uniforms(5, "val", [4], 4)[0]).all()
    changed = [uniforms(6, "val", [3], 7), uniforms(5, "test", [3], 7), uniforms(5, "val", [3], 7, stream=1)]
    changed += [
        uniforms(5, "val", [4], 7),
        uniforms(5 + 2**32, "val", [3], 7),
        uniforms(5, "val", [3 + 2**32], 7),
    ]
    assert all((both[0] != other[0]).all() for other in changed)


def test_uniforms_are_uniform():
    u = uniforms(0, "train", range(2000), 25)
    assert 0 <= u.min() < 1e-3
    assert 1 - 1e-3 < u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    assert ((counts - 2500) ** 2 / 2500).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = .001
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.08


def test_choose_draws_distinct_integers_below_each_size():
    sizes = np.array([6, 9, 20] * 50)
    drawn = choose(uniforms(1, "train", range(150), 6), sizes)
    assert drawn.shape == (150, 6)
    assert all(len(set(row)) == 6 for row in drawn.tolist())
    assert (drawn >= 0).all()
    assert (drawn < sizes[:, None]).all()


def test_choose_is_uniform_over_ordered_draws():
    drawn = choose(uniforms(2, "train", range(12000), 2), 4)
    counts = np.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16).reshape(4, 4)
    assert (np.diag(counts) == 0).all()
    off = counts[~np.eye(4, dtype=bool)]
    assert ((off - 1000) ** 2 / 1000).sum() < 31.3  # chi-squared, 11 degrees of freedom, p = .001


def test_permutation_is_one_and_follows_the_seed():
    order = permutation(3, 100)
    assert sorted(order) == list(range(100))
    assert (order == permutation(3, 100)).all()
    assert (order != permutation(4, 100)).any()


def test_generators_repeat_and_differ_between_episodes():
    cpu = torch.device("cpu")

    def noise(index: int) -> torch.Tensor:
        return torch.rand(4, generator=generator(cpu, 0, "test", [index]))

    assert torch.equal(noise(1), noise(1))
    assert not torch.equal(noise(1), noise(2))
    assert generator(torch.device("meta"), 0, "test", [1]) is None
    assert derived_seed(0, "test", 1, 8) != derived_seed(0, "test", 1, 9)
