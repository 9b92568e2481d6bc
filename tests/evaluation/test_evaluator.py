"""Estimates of results against formulas and counting by hand."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from itertools import product

import pytest
import torch

from metarun.algorithms.supervised import prediction_metrics
from metarun.cli import main
from metarun.evaluation.evaluator import Estimate, Result, RobustEstimate, evaluate, robust
from metarun.tasks.base import Task
from metarun.tasks.episode import Spec
from metarun.tasks.regression.sinusoid import Sinusoid
from metarun.tasks.rl.bandit import Bandit
from metarun.types import Split


def test_an_interquartile_mean_leaves_the_quarters_out() -> None:
    values = torch.tensor([9.0, 1.0, 100.0, 4.0, 3.0, -50.0, 5.0, 2.0, 6.0])  # 9 // 4 = 2 of each end
    found = RobustEstimate.of(values)
    assert found.iqm == pytest.approx((2 + 3 + 4 + 5 + 6) / 5)
    assert found.low <= found.iqm <= found.high
    assert found == RobustEstimate.of(values)


def test_a_bootstrap_interval_is_that_of_all_samples_with_replacement() -> None:
    values = torch.tensor([0.0, 1.0, 3.0, 7.0])
    middles = sorted(sum(sorted(sample)[1:3]) / 2 for sample in product(values.tolist(), repeat=4))
    found = RobustEstimate.of(values)
    assert found.low == pytest.approx(middles[round(0.025 * len(middles))], abs=0.51)
    assert found.high == pytest.approx(middles[round(0.975 * len(middles)) - 1], abs=0.51)


def test_an_interval_shrinks_as_that_of_a_mean_of_the_middle_half() -> None:
    """Of the normal distribution the variance of a 25 % trimmed mean is 1.19 / n."""
    values = torch.randn(4000, generator=torch.Generator().manual_seed(3))
    found = RobustEstimate.of(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(1.19 / 4000), rel=0.1)


def test_what_each_family_is_told() -> None:
    returns = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    episodes = torch.cat([0.25 * returns, 0.75 * returns], 1)
    trial = Result({"return": returns, "episode_return": episodes})
    bandit = Bandit(0, arms=2, pulls=2, rewards="bernoulli")
    assert robust(bandit, {"": trial})["robust"]["return"]["iqm"] == 2.5
    assert (
        robust(Sinusoid(0, shot=5, query=5, test_shots=[], frequency=[1.0, 1.0]), {"": Result({"mse": returns})}) == {}
    )
    first, second = trial.adaptation("return")
    assert (first["episode"], second["episode"]) == (1, 2)
    assert second["mean"] == pytest.approx(0.75 * 2.5)
    assert [p["step"] for p in Result({"return": returns}).adaptation("return")] == [0]
    assert Estimate.of(returns[:, 0]).ci95 == pytest.approx(1.96 * float(returns.std()) / 2)


def test_a_trial_is_printed_by_episode(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "task=rl/gridnavi",
        "algorithm=random",
        "runner.iterations=0",
        "runner.test_episodes=8",
        "runner.threads=1",
    ]
    assert main([*words, "tracker.wandb=disabled"]) == 0
    told = capsys.readouterr().out
    assert "in episodes of a trial   1: " in told
    assert "return, interquartile mean   " in told


class Numbered:
    """A family whose batch is the tasks' numbers, and a learner that gives them back beside a random number each."""

    device = torch.device("cpu")
    seed = 3

    tested_together = 1
    batches = Task.batches

    def batch(self, split: str, indices: Sequence[int], shape: object = None) -> torch.Tensor:
        return torch.tensor([*indices], dtype=torch.float64)

    def evaluate(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"number": torch.stack([-batch, batch], 1), "noise": torch.rand(len(batch), 1)}


def evaluated(episodes: int = 10, batch: int = 4, split: Split = "test") -> Result:
    return evaluate(Numbered(), Numbered(), split, episodes, batch=batch)  # type: ignore[arg-type]


def test_every_task_is_evaluated_once_and_the_last_column_is_the_result() -> None:
    result = evaluated()
    assert result.curves["number"][:, 1].tolist() == [*range(10)]
    assert result.final()["number"].mean == 4.5


def test_what_evaluation_draws_depends_on_seed_split_and_batch_alone() -> None:
    torch.manual_seed(0)
    first = evaluated().curves["noise"]
    torch.rand(7)
    again = evaluated().curves["noise"]
    assert torch.equal(first, again)
    assert len(first.unique()) == 10  # no batch repeats another's
    assert not torch.equal(first, evaluated(split="val").curves["noise"])


def test_no_tensor_of_a_batch_is_kept() -> None:
    """Small ones that stay keep the memory of larger ones between them from being used again: a run of 10,000 test
    tasks needed 3 GB instead of .5."""
    made: list[weakref.ref[torch.Tensor]] = []

    class Watched(Numbered):
        def evaluate(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            assert all(each() is None for each in made[:-1])  # the last one is still being stored
            found = {"number": torch.stack([-batch, batch], 1)}
            made.append(weakref.ref(found["number"]))
            return found

    evaluate(Watched(), Numbered(), "test", 10, batch=2)  # type: ignore[arg-type]
    assert len(made) == 5


def test_metrics_by_hand() -> None:
    spec = Spec("classification", "vector", (2,), 3)
    prediction = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]], [[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]]])
    found = prediction_metrics(spec, prediction, torch.tensor([[2, 1], [2, 1]]))
    assert found["accuracy"].tolist() == [0.5, 1.0]
    chances = prediction.softmax(-1)
    expected = [
        -(chances[0, 0, 2].log() + chances[0, 1, 1].log()) / 2,
        -(chances[1, 0, 2] * chances[1, 1, 1]).log() / 2,
    ]
    torch.testing.assert_close(found["loss"], torch.stack(expected))
    found = prediction_metrics(
        Spec("regression", "vector", (2,), 1, peak=2.0), torch.ones(1, 4, 1), torch.full((1, 4, 1), 0.8)
    )
    assert found["mse"].item() == pytest.approx(0.04)
    assert found["psnr"].item() == pytest.approx(20)  # 10 log10(4 / .04)
