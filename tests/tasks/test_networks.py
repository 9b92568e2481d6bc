"""Training problems: networks of random sizes on letters, and quadratics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metarun
from metarun.errors import UserError
from metarun.tasks.optimization.networks import BATCHES, Networks
from metarun.tasks.optimization.problem import ACTIVATIONS


@pytest.fixture(scope="module")
def task() -> Networks:
    made: Networks = metarun.make("optimization/networks", seed=3)
    return made


def test_a_problem_is_a_function_of_seed_split_and_index(task: Networks) -> None:
    first, again = task.batch("val", [5, 2])[1], task.batch("val", [2])[0]
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert all(torch.equal(p, again.initial[name]) for name, p in first.initial.items())
    for split, seed in (("train", 3), ("test", 3), ("val", 4)):
        other = metarun.make("optimization/networks", seed=seed).batch(split, [2])[0]
        assert other.x.shape != again.x.shape or not torch.equal(other.x, again.x)


def test_problems_are_of_every_kind(task: Networks) -> None:
    problems = task.batch("train", range(300))
    quadratics = [p for p in problems if p.y.is_floating_point()]
    networks = [p for p in problems if not p.y.is_floating_point()]
    conv = [p for p in networks if p.initial["0.weight"].dim() == 4]
    assert 0.08 < len(quadratics) / 300 < 0.23
    assert 0.25 < len(conv) / len(networks) < 0.46
    assert {p.batch for p in networks} == {*BATCHES}
    assert {p.activation for p in networks} == {*ACTIVATIONS}
    widths = {len(p.initial[n]) for p in networks for n in p.initial if n != f"{len(p.initial) // 2 - 1}.weight"}
    assert min(widths - {2, 3}) == 4
    assert max(widths) == 32
    depths = [len(p.initial) // 2 for p in networks if p.initial["0.weight"].dim() == 2]
    assert {*depths} == {1, 2, 3, 4}
    assert {int(p.y.max()) + 1 for p in networks} == {*range(2, 11)}
    for p in problems:
        loss = p.loss(p.initial, *p.minibatch(0))
        assert loss.dim() == 0
        assert loss.isfinite()
        assert len(p.y) % p.batch == 0
        x, _ = p.minibatch(len(p.y) // p.batch)
        assert torch.equal(x, p.minibatch(0)[0])
    images = torch.cat([p.x.flatten() for p in networks])
    assert abs(float(images.mean())) < 0.3
    assert 0.7 < float(images.std()) < 1.4


def test_a_loss_of_one_is_that_of_constant_predictions(task: Networks) -> None:
    for p in task.batch("test", range(20)):
        flat = {name: torch.zeros_like(value) for name, value in p.initial.items()}
        assert float(p.loss(flat, p.x, p.y)) == pytest.approx(1, rel=1e-5)


def test_a_quadratic_has_a_minimum_of_zero() -> None:
    task = metarun.make("optimization/networks", quadratics=1.0)
    for p in task.batch("train", range(10)):
        x, y = p.x.double(), p.y.double()
        best = torch.linalg.lstsq(x, y, driver="gelsd").solution.T
        assert float(p.loss({"0.weight": best}, x, y)) < 1e-6


def test_splits_have_letters_of_their_own(task: Networks) -> None:
    seen = [{*letters.tolist()} for letters in task.letters.values()]
    assert all(len(letters) >= task.way for letters in seen)
    assert sum(map(len, seen)) == len(set.union(*seen))


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"size": 7}, "at least 8 pixels"),
        ({"way": 1}, "at least 2 classes"),
        ({"examples": 100}, "multiple of 64"),
        ({"widths": [5, 4]}, "smallest and the largest"),
        ({"val": 0.6, "test": 0.5}, "no classes"),
    ],
)
def test_keys_out_of_range(keys: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        metarun.make("optimization/networks", **keys)
