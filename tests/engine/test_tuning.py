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
from metarun.engine import step, tuning
from metarun.engine.measure import peak
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.engine.tuning import Measured, Tuned, tuned
from metarun.tracking.rundir import RunDirectory
from metarun.training.experiment import Experiment
from metarun.training.setup import plan_steps

WORDS = ["task=regression/sinusoid", "algorithm=maml", "algorithm.inner_steps=1", "model.hidden=[8]",
         "runner.meta_batch=4", "runner.device=cpu",
         "runner.threads=1", "tracker.wandb=disabled", "runner.plots=false", "name=tuning",
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


def problem(*words: str) -> tuple[Engine, Any]:
    run = experiment(*words)
    return run.engine, run.task.batch("train", range(4), run.algorithm.train_shape(run.task.shape))


def chosen(engine: Engine, batch: Any, iterations: int, chunk: int | None = None, above: float | None = 0.0) -> Tuned:
    found = tuned(engine, batch, iterations, chunk, above)
    assert found is not None
    return found


@pytest.mark.usefixtures("_captures_pay")
def test_the_choice_is_exact_and_captured() -> None:
    engine, batch = problem()
    found = chosen(engine, batch, 1000)
    assert found.plan.batched
    assert found.plan.capture == "graph"
    assert found.error is not None
    assert found.error < 1e-10
    assert found.milliseconds is not None
    assert found.peak_mb is not None
    assert engine.algorithm.batch_tasks  # the learner itself is left alone
    assert Tuned.of(json.loads(json.dumps(found.as_dict()))) == found
    assert Tuned.of({**found.as_dict(), "short": 1000}) == found  # as stored by earlier runs


@pytest.mark.usefixtures("_batching_pays")
def test_a_wrong_gradient_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    right = GradientLearner.map_tasks

    def wrong(self: GradientLearner, f: Any, dims: Any, *arguments: Any) -> Any:
        result = right(self, f, dims, *arguments)
        return _scaled(result) if self.batchable and self.batch_tasks else result

    monkeypatch.setattr(GradientLearner, "map_tasks", wrong)
    assert not chosen(*problem(), 1000).plan.batched
    assert "not used, as its gradient is off" in caplog.text


@pytest.mark.usefixtures("_captures_pay")
def test_a_wrong_recording_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    replay = step.Captured.__call__

    def wrong(self: Any, *data: Any) -> Any:
        metrics, gradients = replay(self, *data)
        return metrics, [g if g is None else 1.001 * g for g in gradients]

    monkeypatch.setattr(step.Captured, "__call__", wrong)
    assert chosen(*problem(), 1000).plan.capture == "none"
    assert "not used, as its gradient is off" in caplog.text


def _scaled(result: Any) -> Any:
    return result * 1.001 if isinstance(result, torch.Tensor) else result


@pytest.mark.usefixtures("_captures_pay")
def test_random_steps_are_captured_alone_and_short_runs_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(*problem("algorithm.inner_batch=2"), 1000).plan == Plan(chunk=4, capture="graph")
    assert chosen(*problem(), 1000, 2, None).plan == Plan(chunk=2)
    monkeypatch.setattr(tuning, "search", lambda *a: pytest.fail("searched"))
    assert chosen(*problem(), 1000, None, 1e9).plan == Plan()
    iterations = int(tuning.SEARCH_STEPS / tuning.SEARCH_SHARE)
    assert chosen(*problem(), iterations - 1, None, 1.0).plan == Plan()  # the search would take too large a share
    with pytest.raises(pytest.fail.Exception):
        chosen(*problem(), iterations, None, 1.0)


@pytest.mark.usefixtures("_captures_pay")
def test_a_short_run_records_only_if_its_steps_take_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "MEMORY", 0.0)
    monkeypatch.setattr(step, "Captured", lambda *a: pytest.fail("recorded"))
    found = chosen(*problem(), 100, None, 1.0)
    assert (found.plan.capture, found.plan.chunk) == ("none", 1)


@pytest.mark.usefixtures("_captures_pay")
def test_a_search_records_few_plans_once_and_leaves_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype] = []

    class Counted(step.Captured):
        def __init__(self, algorithm: Any, *rest: Any) -> None:
            made.append(next(algorithm.parameters()).dtype)
            super().__init__(algorithm, *rest)

    monkeypatch.setattr(step, "Captured", Counted)
    engine, batch = problem()
    engine.plan = chosen(engine, batch, 1000).plan
    assert engine.plan.capture == "graph"
    assert made == tuning.RECORDED * [torch.float32]  # none in float64
    parameters = list(engine.algorithm.parameters())
    engine.meta_step(batch, 0)
    ours = [p.detach().clone() for p in parameters]
    assert len(made) == tuning.RECORDED  # the run uses the search's recording
    again, _ = problem()
    again.plan = engine.plan
    again.meta_step(batch, 0)
    assert len(made) == tuning.RECORDED + 1
    assert all(map(torch.equal, ours, again.algorithm.parameters()))


@pytest.mark.usefixtures("_captures_pay")
def test_what_was_measured_is_kept_and_serves_the_runs_for_which_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(*problem(), 1000)
    monkeypatch.setattr(tuning, "search", lambda *a: pytest.fail("searched again"))
    assert chosen(*problem(), 1000) == found
    assert chosen(*problem(), 1000, None, 1.0).plan.capture == "graph"


def test_a_plan_is_taken_if_it_saves_more_than_its_start() -> None:
    eager, graph, code = Plan(), Plan(capture="graph"), Plan(capture="compiled")
    known = Measured((
        Tuned(eager, 3.0, 9.0, 1.0, 0.0),
        Tuned(graph, 2.0, 9.0, 1.0, 0.0, start_seconds=1.0),
        Tuned(code, 1.0, 9.0, 1.0, 0.0, start_seconds=21.0),
    ), searched=True, recorded=True, compiled=True)  # fmt: skip
    assert [known.best(n).plan for n in (100, 5_000, 50_000)] == [eager, graph, code]
    assert known.best(100, ready={graph}).plan == graph
    assert known.best(float("inf")).plan == code
    assert Measured.of(json.loads(json.dumps(known.as_dict()))) == known
    large = replace(known, plans=(replace(known.plans[0], error=None), *known.plans[1:]))
    assert large.best(100).plan == graph  # the default takes too much memory


@pytest.mark.usefixtures("_captures_pay")
def test_a_run_long_enough_to_be_worth_compiling_compiles_and_searches_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SMALL", 1.0)
    monkeypatch.setattr(tuning, "COMPILATION", 1e4)
    engine, batch = problem()
    found = chosen(engine, batch, 1000)
    assert found.milliseconds is not None
    enough = int(tuning.COMPILATION / (tuning.SAVED * found.milliseconds / 1e3))
    monkeypatch.setattr(tuning, "search", lambda *a: pytest.fail("searched again"))
    tried: list[Plan] = []

    def compiled(algorithm: Any, engine: Any, batch: Any, known: Measured, recorded: Tuned) -> Measured:
        tried.append(recorded.plan)
        return known

    monkeypatch.setattr(tuning, "compiled", compiled)
    chosen(*problem(), enough - 10)
    assert tried == []
    chosen(*problem(), enough + 10)
    chosen(*problem(), enough + 10)
    assert tried == [found.plan]


def test_smaller_parts_take_less_memory() -> None:
    engine, batch = problem()
    whole, half, one = (peak(engine, batch, Plan(chunk=size)) for size in (4, 2, 1))
    loop = peak(engine, batch, Plan(batched=False, chunk=1))
    assert whole > 1.5 * half > 2 * one
    assert one < 1.2 * loop


@pytest.mark.usefixtures("_captures_pay")
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
