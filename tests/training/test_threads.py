"""The choice of threads: all cores for large steps, one for small ones and on a busy machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metarun import distributed
from metarun.bench.workloads import WORKLOADS, Problem
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine.step import Engine
from metarun.training import setup, threads
from metarun.training.threads import LONG, Operation, choose_threads, share_of_long


@pytest.fixture(autouse=True)
def _two_quiet_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(threads, "STARVED", 0.0)


@pytest.mark.parametrize(
    ("name", "tasks", "chosen"),
    [("W1", None, 1), ("W2", 16, 2), ("W4", None, 2), ("W5-FOMAML", None, 2), ("W5-ANIL", None, 2), ("W2", 1, 1)],
)
def test_large_steps_use_all_cores(name: str, tasks: int | None, chosen: int) -> None:
    problem = Problem(WORKLOADS[name].with_tasks(tasks), torch.device("cpu"), torch.float32)
    assert choose_threads(problem.learner(), lambda: problem.batch) == chosen
    assert choose_threads(problem.learner(), lambda: problem.batch, processes=2) == 1


def test_a_step_is_weighed_by_the_time_of_its_operations() -> None:
    large, small = Operation(int(2 * LONG / threads.SECONDS_PER_ELEMENT)), Operation(1000)
    assert share_of_long([large] * 10 + [small] * 100) > threads.SHARE_OF_LONG  # most operations are small
    assert share_of_long([large] * 10 + [small] * 1000) < threads.SHARE_OF_LONG  # they outweigh the large ones
    assert Operation(1000, flops=10**9).seconds > LONG
    assert share_of_long([]) == 0


def test_sequential_and_rollout_steps_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "MAX_OPERATIONS", 2000)
    for words in (["task=regression/sinusoid", "algorithm=reptile"], ["task=rl/bandit", "algorithm=rl2"]):
        run = build(compose([*words, "runner.device=cpu", "tracker.wandb=disabled"]).config)
        assert setup.threads_for(run.algorithm, run.task, run.runner, run.device) == 1


def test_a_run_without_training_is_looked_at_as_it_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of meta-training may take memory and time that no test does."""
    run = build(compose(["task=vision/glyphs", "runner.iterations=0", "runner.device=cpu"]).config)
    drawn, trained, batch = [], [], run.task.batch
    monkeypatch.setattr(Engine, "gradient", lambda *given: trained.append(given))
    monkeypatch.setattr(run.task, "batch", lambda split, *given: drawn.append(split) or batch(split, *given))
    setup.threads_for(run.algorithm, run.task, run.runner, run.device)
    assert (drawn, trained) == (["test"], [])


def test_a_busy_machine_gets_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(WORKLOADS["W2"].with_tasks(8), torch.device("cpu"), torch.float32)
    assert choose_threads(problem.learner(), lambda: problem.batch) == 2
    monkeypatch.setattr(threads, "STARVED", float("inf"))
    assert choose_threads(problem.learner(), lambda: problem.batch) == 1


def test_the_choice_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(WORKLOADS["W1"], torch.device("cpu"), torch.float32)
    learner, count = problem.learner(), torch.get_num_threads()
    before = [p.detach().clone() for p in learner.parameters()]
    state = torch.get_rng_state()
    choose_threads(learner, lambda: problem.batch)
    assert all(map(torch.equal, before, learner.parameters()))
    assert all(p.grad is None for p in learner.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == count

    def fails(*_: Any) -> None:
        raise RuntimeError("only on two threads")

    monkeypatch.setattr(Engine, "gradient", fails)
    assert choose_threads(learner, lambda: problem.batch) == 2
    assert torch.get_num_threads() == count


def test_other_processes_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert distributed.rank() == 1
    with distributed.alone():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        value = torch.ones(2)
        assert torch.equal(distributed.average(value), value)
    assert distributed.world_size() == 2
