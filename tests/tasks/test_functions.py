"""Function classes against their definitions, one example at a time; purity in (seed, split, index)."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.regression.functions import Functions
from metarun.tasks.rng import normals, uniforms
from tests.composed import composed

CLASSES = ["linear", "sparse_linear", "tree", "relu_network"]


def task(function: str, seed: int = 0, **changes: Any) -> Functions:
    section = composed("task=regression/functions")["task"]
    return construct({**section, "size": 6, "function": function, **changes}, seed=seed)


@pytest.mark.parametrize("function", CLASSES)
def test_a_task_depends_on_seed_split_and_index_alone(function: str) -> None:
    batch, alone = (task(function, noise=0.2).batch("train", indices) for indices in ([7, 2, 9], [2]))
    assert batch.support.x.shape == (3, 40, 6)
    assert batch.query.y.shape == (3, 4, 1)
    assert torch.equal(batch.support.y[1], alone.support.y[0])
    assert torch.equal(batch.query.x[1], alone.query.x[0])
    for other in (task(function, noise=0.2).batch("val", [2]), task(function, 1, noise=0.2).batch("train", [2])):
        assert not torch.equal(other.query.y, alone.query.y)


@pytest.mark.parametrize("function", ["linear", "sparse_linear"])
def test_linear_functions(function: str) -> None:
    family = task(function)
    batch = family.batch("train", range(2000))
    w = torch.linalg.lstsq(batch.support.x.double(), batch.support.y.double()).solution[..., 0]
    assert torch.allclose(w, torch.from_numpy(family.weights("train", range(2000))), atol=1e-4)
    kept = torch.from_numpy(family.weights("train", range(2000))) != 0
    if function == "sparse_linear":
        assert torch.equal(kept.sum(1), torch.full((2000,), 3))
        assert torch.allclose(kept.float().mean(0), torch.full((6,), 0.5), atol=0.05)
    assert w[kept].var().item() == pytest.approx(1, abs=0.06)
    assert w[kept].mean().item() == pytest.approx(0, abs=0.05)
    assert task(function, normalise=True).batch("train", range(2000)).query.y.var().item() == pytest.approx(1, abs=0.06)


def test_trees_by_descent() -> None:
    family, x = task("tree", depth=3), np.random.default_rng(0).normal(size=(5, 30, 6))
    asked = np.floor(6 * uniforms(0, "train", range(5), 7, stream=3)).astype(int)
    leaves = normals(0, "train", range(5), 8)
    got = family.values("train", range(5), x)
    for t in range(5):
        for n in range(30):
            path = ""
            for level in range(3):
                node = 2**level - 1 + (int(path, 2) if path else 0)
                path += "1" if x[t, n, asked[t, node]] > 0 else "0"
            assert got[t, n] == leaves[t, int(path, 2)]
    assert len(np.unique(got[0])) > 4


def test_networks_by_hand() -> None:
    family, x = task("relu_network", hidden=5), np.random.default_rng(0).normal(size=(2, 4, 6))
    entries = normals(0, "train", range(2), 35)
    got = family.values("train", range(2), x)
    for t in range(2):
        a, W = entries[t, :5], entries[t, 5:].reshape(5, 6)
        for n in range(4):
            assert got[t, n] == pytest.approx(sqrt(2 / 5) * sum(a[h] * max(0.0, W[h] @ x[t, n]) for h in range(5)))


def test_noise_is_added_to_support_and_query_alike() -> None:
    noisy, clean = (task("tree", noise=noise).batch("train", range(2000)) for noise in (0.5, 0.0))
    for part in ("support", "query"):
        apart = getattr(noisy, part).y - getattr(clean, part).y
        assert apart.var().item() == pytest.approx(0.25, rel=0.05)
        assert torch.equal(getattr(noisy, part).x, getattr(clean, part).x)


def test_more_entries_than_dimensions_are_refused() -> None:
    with pytest.raises(UserError, match=r"task.sparsity=7 is more than the task.size=6"):
        task("sparse_linear", sparsity=7)


def test_uniform_inputs() -> None:
    x = task("linear", inputs="uniform").batch("train", range(2000)).support.x
    assert x.abs().max().item() <= 0.5
    assert x.mean().item() == pytest.approx(0, abs=0.005)
    assert x.var().item() == pytest.approx(1 / 12, rel=0.01)
