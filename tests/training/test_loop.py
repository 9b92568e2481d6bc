"""The outer loop: what it draws, logs, validates, keeps as the best, tests, and goes on with after a stop."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun import distributed
from metarun.algorithms.base import Algorithm
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine.step import Engine
from metarun.errors import Interrupted, UserError
from metarun.evaluation.evaluator import Result
from metarun.tracking.rundir import RunDirectory
from metarun.tracking.sinks.wandb import WandbSink
from metarun.training import checkpoint, loop
from metarun.training.experiment import Experiment
from metarun.training.session import Progress, Session
from metarun.training.signals import StopRequest

HIGHER = ["task=rl/bandit", "algorithm=rl2", "model.hidden=4", "algorithm.rollouts=1", "algorithm.test_rollouts=1"]
LOWER = ["task=regression/sinusoid", "model.hidden=[4]"]


def experiment(words: Sequence[str] = LOWER, **runner: Any) -> Experiment:
    keys = {"iterations": 3, "meta_batch": 2, "validate_every": 1, "val_episodes": 3, "test_episodes": 5,
            "threads": 1, "device": "cpu", "plots": False, "log_every": 1, "tune_above": None, "select": "best",
            **runner}  # fmt: skip
    given = [f"runner.{key}={json.dumps(value)}" for key, value in keys.items()]
    return build(compose([*words, *given, "tracker.wandb=disabled", "name=x"]).config)


class Told(Algorithm):
    """Learns nothing: its metrics are what ``metric`` gives for an iteration."""

    kinds = ("regression",)

    def __init__(self, metric: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.model, self.metric = torch.nn.Linear(1, 1), metric

    def meta_step(self, batch: Any, iteration: int) -> dict[str, Tensor]:
        return {"loss": self.metric(iteration)}

    def evaluate(self, batch: Any) -> dict[str, Tensor]:
        return {"mse": torch.zeros(len(batch.query.y), 1)}


def directory(tmp_path: Path, name: str = "x") -> RunDirectory:
    return RunDirectory.create(tmp_path, name, 0)


def scripted(monkeypatch: pytest.MonkeyPatch, values: Sequence[float]) -> list[dict[str, Tensor]]:
    """Have validations find ``values``, one after another; the learner's parameters at each."""
    learners: list[dict[str, Tensor]] = []
    left = iter(values)

    def validated(algorithm: Algorithm, task: Any, split: str, *rest: Any, **more: Any) -> Result:
        learners.append({name: value.clone() for name, value in algorithm.state_dict().items()})
        return Result({task.metric: torch.tensor([[next(left)]])})

    monkeypatch.setattr(loop, "evaluate", validated)
    return learners


@pytest.mark.parametrize(
    ("words", "values", "best"),
    [
        (HIGHER, (0.3, 0.9, 0.5), 2),
        (LOWER, (0.3, 0.9, 0.5), 1),
        (HIGHER, (0.9, 0.3, 0.5), 1),
        (LOWER, (0.5, 0.9, 0.3), 3),
    ],
)
def test_the_best_on_validation_is_kept_and_tested(
    words: list[str], values: tuple[float, ...], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners, tested = scripted(monkeypatch, values), []
    test = Experiment.test

    def watched(self: Experiment, *rest: Any) -> Any:
        tested.append({name: value.clone() for name, value in self.algorithm.state_dict().items()})
        return test(self, *rest)

    monkeypatch.setattr(Experiment, "test", watched)
    run = directory(tmp_path)
    summary = experiment(words).run(run)
    assert summary["best_iteration"] == best
    assert checkpoint.load(run.path / "checkpoints" / "best.pt", torch.device("cpu"))["iteration"] == best
    (learner,) = tested
    assert all(torch.equal(value, learners[best - 1][name]) for name, value in learner.items())
    assert not all(torch.equal(value, learners[best % 3][name]) for name, value in learner.items())
    assert next(iter(summary["test"].values()))["n"] == 5  # and not as many as validation has


def test_the_best_is_still_the_best_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, (0.3, 0.9))
    run = directory(tmp_path)
    stopped = experiment()
    stopped.on_validation = lambda row: signal.raise_signal(signal.SIGTERM) if row["iteration"] == 1 else None
    with pytest.raises(Interrupted):
        stopped.run(run)
    scripted(monkeypatch, (0.9, 0.5))
    assert experiment().run(run)["best_iteration"] == 1


def test_a_logged_row_is_the_mean_since_the_row_before(tmp_path: Path) -> None:
    run = directory(tmp_path)
    told = experiment(iterations=7, log_every=3, validate_every=0)
    told.algorithm = Told(lambda iteration: torch.tensor(float(iteration)))
    told.engine = Engine(told.algorithm)
    told.run(run)
    rows = [(row["iteration"], row["train/loss"]) for row in run.rows() if "train/loss" in row]
    assert rows == [(3, 1.0), (6, 4.0), (7, 6.0)]


def test_training_ends_when_validation_stops_improving_and_a_stop_in_between_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"iterations": 50, "patience": 2, "log_every": 4}
    values = (0.5, 0.9, 0.4, 0.4, 0.6, 0.1)
    scripted(monkeypatch, values)
    whole = directory(tmp_path, "whole")
    summary = experiment(**keys).run(whole)
    assert (summary["iterations"], summary["best_iteration"], summary["ended_by"]) == (5, 3, "runner.patience")
    assert summary["protocol"]["early_stopping"] == "patience 2"

    scripted(monkeypatch, values)
    run = directory(tmp_path, "stopped")
    stopped = experiment(**keys)
    stopped.on_validation = lambda row: signal.raise_signal(signal.SIGTERM) if row["iteration"] == 4 else None
    with pytest.raises(Interrupted):
        stopped.run(run)
    scripted(monkeypatch, values[4:])
    assert experiment(**keys).run(run)["iterations"] == 5
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    assert [row["iteration"] for row in run.rows() if "train/mse" in row] == [4, 5]


def test_patience_needs_validations() -> None:
    with pytest.raises(UserError, match=r"runner\.validate_every=0 makes none"):
        experiment(patience=1, validate_every=0)


def test_a_step_draws_by_its_iteration_and_process_and_not_by_what_was_drawn_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(train: Callable[[Experiment], Any]) -> list[float]:
        found: list[float] = []

        def metric(iteration: int) -> Tensor:
            found.append(float(torch.rand(1 + iteration % 2)[0]))
            return torch.tensor(0.0)

        told = experiment(validate_every=0, test_episodes=0)
        told.algorithm = Told(metric)
        told.engine = Engine(told.algorithm)
        train(told)
        return found

    first = drawn(lambda told: told.run(directory(tmp_path)))
    torch.rand(7)
    assert drawn(lambda told: told.run(directory(tmp_path))) == first
    assert len({*first}) == 3
    session = Session(Progress(), StopRequest())
    monkeypatch.setattr(distributed, "rank", lambda: 1)  # not the main process: it saves and shows nothing
    other = drawn(lambda told: loop.meta_train(told.task, told.engine, told.runner, told.seed, session))
    assert len({*first, *other}) == 6


def test_the_cpu_time_of_a_run_goes_on_from_its_checkpoint() -> None:
    before = Progress()
    before.cpu_seconds = 7.0
    after = Progress()
    after.restore(before.state())
    assert after.cpu_seconds == 7.0
    after.restore({name: value for name, value in before.state().items() if name != "cpu_seconds"})
    assert math.isnan(after.cpu_seconds), "unknown if the checkpoint does not say how much came before"


def test_sweeps_share_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    start = WandbSink.start

    def watched(path: Path, **more: Any) -> WandbSink:
        told.append(more)
        return start(path, **more)

    monkeypatch.setattr(WandbSink, "start", watched)
    one = experiment(test_episodes=0)
    one.facts = {"group": "the sweep", "choices": {"task": "regression/sinusoid", "runner": "default"}}
    one.run(directory(tmp_path))
    assert told[0]["group"] == "the sweep"
    assert told[0]["tags"] == ["regression/sinusoid"]
    assert told[0]["name"] == "x-s0"


def test_meta_training_is_on_the_learners_own_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = experiment([*LOWER, "algorithm.train_shot=3", "algorithm.train_query=4"], iterations=2)
    drawn: set[tuple[str, int, int]] = set()
    batch = type(given.task).batch

    def watched(self: Any, split: str, *rest: Any) -> Any:
        found = batch(self, split, *rest)
        drawn.add((split, found.support.x.shape[1], found.query.x.shape[1]))
        return found

    monkeypatch.setattr(type(given.task), "batch", watched)
    given.run(directory(tmp_path))
    shape = given.task.shape
    assert shape is not None
    assert drawn == {("train", 3, 4), ("val", shape.shot, shape.query), ("test", shape.shot, shape.query)}
