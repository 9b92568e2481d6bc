"""The search for the fastest exact way to compute a step: what it refuses, keeps, and lets be repeated to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.algorithms.gradient.learner import GradientLearner
from metarun.cli import main
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine import tuning
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.engine.tuning import Tuned, choose, peak, tuned
from metarun.tracking.rundir import RunDirectory
from metarun.training.experiment import Experiment
from metarun.training.setup import plan_steps

WORDS = ["task=vision/glyphs", "algorithm=maml", "model.width=4", "runner.meta_batch=4", "runner.device=cpu",
         "runner.threads=1", "tracker.wandb=disabled", "runner.plots=false", "name=tuning", "task.test_ways=[]",
         "runner.validate_every=4", "runner.val_episodes=4", "runner.test_episodes=4",
         "runner.checkpoint_seconds=0", "runner.log_every=1", "runner.tune_above=0"]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glyphs come from the real cache, plans from one of this test's own."""
    monkeypatch.setattr(tuning, "cache_dir", lambda: tmp_path / "cache")


@pytest.fixture
def _batching_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that do not depend on how busy the machine is."""
    monkeypatch.setattr(tuning, "seconds", lambda engine, batch, plan, rounds=3: 0.1 if plan.batched else 1.0)


@pytest.fixture
def _captures_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "seconds", lambda engine, batch, plan, rounds=3: 1.0 if plan.capture == "none" else 0.1)


def experiment(*words: str) -> Experiment:
    return build(compose([*WORDS, *words]).config)


def problem(*words: str) -> tuple[Any, Any]:
    run = experiment(*words)
    return run.algorithm, run.task.batch("train", range(4), run.algorithm.train_shape(run.task.shape))


@pytest.mark.usefixtures("_batching_pays")
def test_the_choice_is_exact_and_captured() -> None:
    learner, batch = problem()
    found = choose(learner, batch, 1000, None, 0.0)
    assert found.plan.batched
    assert found.plan.capture == "graph"
    assert found.error is not None
    assert found.error < 1e-10
    assert found.milliseconds is not None
    assert found.peak_mb is not None
    assert learner.batch_tasks  # the learner itself is left alone
    assert Tuned.of(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.usefixtures("_batching_pays")
def test_a_wrong_gradient_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    learner, batch = problem()
    right = GradientLearner.map_tasks

    def wrong(self: GradientLearner, f: Any, dims: Any, *arguments: Any) -> Any:
        result = right(self, f, dims, *arguments)
        return _scaled(result) if self.batchable and self.batch_tasks else result

    monkeypatch.setattr(GradientLearner, "map_tasks", wrong)
    found = choose(learner, batch, 1000, None, 0.0)
    assert not found.plan.batched
    assert "not used, as its gradient is off" in caplog.text


def _scaled(result: Any) -> Any:
    return result * 1.001 if isinstance(result, torch.Tensor) else result


@pytest.mark.usefixtures("_captures_pay")
def test_random_steps_are_captured_alone_and_short_runs_not_searched() -> None:
    assert choose(*problem("algorithm.inner_batch=2"), 1000, None, 0.0).plan == Plan(chunk=4, capture="graph")
    assert choose(*problem(), 1000, 2, None).plan == Plan(chunk=2)
    found = choose(*problem(), 1000, None, 1e9)
    assert (found.plan, found.short) == (Plan(), 1000)


@pytest.mark.usefixtures("_batching_pays")
def test_the_choice_is_kept_and_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(*problem(), 1000, None, 0.0)
    monkeypatch.setattr(tuning, "choose", lambda *a: pytest.fail("searched again"))
    assert tuned(*problem(), 5, None, 0.0) == found


@pytest.mark.usefixtures("_captures_pay")
def test_a_run_long_enough_to_be_worth_compiling_is_searched_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SMALL", 1.0)
    monkeypatch.setattr(tuning, "COMPILATION", 1e4)
    found = tuned(*problem(), 1000, None, 0.0)
    assert found is not None
    assert found.short is not None
    assert found.milliseconds is not None
    assert found.short + 1 == pytest.approx(tuning.COMPILATION / (tuning.SAVED * found.milliseconds / 1e3), abs=1)
    monkeypatch.setattr(tuning, "choose", lambda *a: replace(found, short=None))
    assert tuned(*problem(), found.short, None, 0.0) == found
    assert tuned(*problem(), found.short + 1, None, 0.0) == replace(found, short=None)


def test_smaller_parts_take_less_memory() -> None:
    learner, batch = problem()
    engine = Engine(learner)
    whole, half, one = (peak(engine, batch, Plan(chunk=size)) for size in (4, 2, 1))
    loop = peak(engine, batch, Plan(batched=False, chunk=1))
    assert whole > 1.5 * half > 2 * one
    assert one < 1.2 * loop


@pytest.mark.usefixtures("_batching_pays")
def test_a_tuned_run_that_is_stopped_and_resumed_ends_the_same_to_the_bit(tmp_path: Path) -> None:
    whole = experiment("runner.iterations=8")
    whole.run()
    first = experiment("runner.iterations=4")
    first.run()
    runs = sorted((tmp_path / "outputs" / "tuning").iterdir())
    assert [json.loads((r / "meta.json").read_text())["step"]["plan"]["capture"] for r in runs] == ["graph", "graph"]
    step = json.loads((runs[1] / "meta.json").read_text())["step"]
    plan = replace(Plan(**step["plan"]), chunk=3)  # kept with the run, whatever would be found now
    (runs[1] / "meta.json").write_text(
        json.dumps({**json.loads((runs[1] / "meta.json").read_text()), "step": {**step, "plan": vars(plan)}})
    )
    again = experiment("runner.iterations=6")
    plan_steps(again.engine, again.task, again.runner, RunDirectory(runs[1]), 4)
    assert again.engine.plan == plan
    (runs[1] / "meta.json").write_text(json.dumps({**json.loads((runs[1] / "meta.json").read_text()), "step": step}))
    assert main(["resume", str(runs[1]), "runner.iterations=8"]) == 0
    states = [torch.load(r / "checkpoints" / "last.pt", weights_only=True)["algorithm"]["parameters"] for r in runs]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    rows = [[json.loads(line) for line in (r / "metrics.jsonl").read_text().splitlines()] for r in runs]
    assert [r for r in rows[1] if "test/accuracy" not in r] == [r for r in rows[0] if "test/accuracy" not in r]
