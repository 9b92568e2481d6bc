"""Quadratics: the distribution, purity in (seed, split, index), and the loss that the engine sees is f itself."""

from __future__ import annotations

import pytest
import torch

from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.regression.quadratics import Quadratics
from metarun.tasks.vision.glyphs import Glyphs
from tests.composed import composed


def test_a_task_depends_on_seed_split_and_index_alone() -> None:
    task = Quadratics(3, shot=4, size=5, distribution="normal")
    batch = task.batch("train", [7, 2, 9])
    assert batch.support.x.shape == (3, 4, 5)
    assert batch.support.y.shape == (3, 4, 1)
    assert torch.equal(task.batch("train", [2]).support.x[0], batch.support.x[1])
    for other in (task.batch("val", [2]), Quadratics(4, shot=4, size=5, distribution="normal").batch("train", [2])):
        assert not torch.equal(other.support.x[0], batch.support.x[1])
    assert batch.query is batch.support


@pytest.mark.parametrize(("distribution", "mean", "variance"), [("uniform", 0.5, 1 / 12), ("normal", 0.0, 1.0)])
def test_entries_are_distributed_as_said(distribution: str, mean: float, variance: float) -> None:
    entries = Quadratics(0, shot=10, size=10, distribution=distribution).entries("train", range(2000), 10)  # type: ignore[arg-type]
    assert entries.shape == (2000, 10, 11)
    count = entries.size
    assert entries.mean() == pytest.approx(mean, abs=4 * (variance / count) ** 0.5)
    assert entries.var() == pytest.approx(variance, rel=0.02)
    assert abs(float((entries[:, 0, 0] * entries[:, 0, 1]).mean()) - mean**2) < 0.1  # neighbours are independent
    kurtosis = ((entries - mean) ** 4).mean() / variance**2
    assert kurtosis == pytest.approx(3.0 if distribution == "normal" else 1.8, rel=0.03)


def test_the_learners_loss_is_the_quadratic_itself() -> None:
    torch.set_default_dtype(torch.float64)
    config = composed("task=regression/quadratics", "algorithm=scratch", "algorithm.inner_lr=0.01")
    task = construct(config["task"], seed=0)
    learner = construct(config["algorithm"], model=construct(config["model"]), spec=task.spec)
    assert [name for name, _ in learner.net.named_parameters()] == ["1.weight"]
    batch = task.batch("val", range(3))
    *_, last = learner.trajectory(batch.support, 4, None)
    got = learner.evaluate(batch)["mse"]
    assert got.shape == (3, 101)
    for t, entries in enumerate(task.entries("val", range(3), 10)):
        W, y = torch.tensor(entries[:, :10]), torch.tensor(entries[:, 10])
        theta = last.parameters["1.weight"][t, 0]
        f = (W @ theta - y).square().sum()
        assert learner.query_loss({"1.weight": last.parameters["1.weight"][t : t + 1]}, 0, task.batch("val", [t]))[
            0
        ].item() == pytest.approx(float(f), rel=1e-12)


def test_a_query_set_of_its_own_is_refused() -> None:
    with pytest.raises(UserError, match="evaluated on their support set"):
        Quadratics(0, shot=4, size=5, distribution="normal").check("train", EpisodeShape(0, 4, 3))


def test_an_episode_of_images_without_query_is_judged_on_its_support_set() -> None:
    config = composed("task=vision/glyphs")["task"]
    task: Glyphs = construct({**config, "way": 3, "shot": 8, "query": 0, "test_ways": [], "augment": 0.2}, seed=0)
    for split in ("train", "test"):
        batch = task.batch(split, range(2))
        assert batch.query is batch.support
        assert batch.support.x.shape == (2, 24, 1, 28, 28)
