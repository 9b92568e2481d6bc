"""An experiment in plain Python, without any configuration file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import metarun
from metarun.adapted.stored import load
from metarun.algorithms.gradient.adapts import ParameterSubset
from metarun.algorithms.gradient.learner import GradientLearner
from metarun.algorithms.gradient.losses import TaskLoss
from metarun.algorithms.gradient.outer import Unrolled
from metarun.algorithms.gradient.rules import SGD
from metarun.algorithms.metric.learner import EmbeddingLearner
from metarun.algorithms.metric.protonet import Prototypes
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.evaluation.calibration import Logits
from metarun.evaluation.evaluator import evaluate
from metarun.models.mlp import MLP
from metarun.tasks.base import Task
from metarun.tasks.regression.sinusoid import Sinusoid
from metarun.tracking.rundir import RunDirectory
from metarun.tracking.settings import Tracker
from metarun.training import checkpoint, setup
from metarun.training.experiment import Experiment
from metarun.training.settings import Runner


def test_a_run_from_python(tmp_path: Path) -> None:
    task = Sinusoid(0, shot=5, query=5, test_shots=[], frequency=[1.0, 1.0])
    model = MLP(task.spec, hidden=[8], activation="relu", batch_norm=False, norm_scale=True, init="torch")
    algorithm = GradientLearner(
        model, task.spec, adapts=ParameterSubset(part="all", norm=False), rule=SGD(), loss=TaskLoss(),
        outer=Unrolled(first_order=False), inner_lr=0.01, inner_steps=1, inner_batch=None, test_steps=2,
        test_batch=None, norm="transductive", head_init=None, train_shot=None, train_query=None,
        outer_optimizer="adam", outer_lr=0.01, halve_every=None, decay_over=None, decay="linear",
    )  # fmt: skip
    runner = Runner(
        iterations=30, minutes=None, patience=None, meta_batch=4, max_grad_norm=None, weight_decay=None, device="cpu",
        devices=1, threads=1, tune_above=None, chunk=None,
        precision="float32", validate_every=10, val_episodes=8,
        test_episodes=8, eval_batch=4, log_every=10, checkpoint_seconds=60, select="best", plots=False,
        init_from=None, directory=str(tmp_path),
    )  # fmt: skip
    tracker = Tracker(
        sinks=[], wandb="disabled", project="x", entity=None, group=None, tags=[], notes=None, checkpoint=False,
        init_timeout=1, finish_timeout=1,
    )  # fmt: skip
    summary = Experiment(task, algorithm, runner, tracker, seed=0, name="notebook").run()
    assert summary["test"]["mse"]["n"] == 8
    (stored,) = tmp_path.glob("notebook/*_s0/summary.json")
    assert json.loads(stored.read_text()) == summary


def test_a_classifier_is_calibrated_on_validation_tasks_and_keeps_the_temperature(tmp_path: Path) -> None:
    words = ["task=vision/glyphs", "algorithm=protonet", "model.width=4", "task.test_ways=[3]", "algorithm.train_way=3",
             "runner.iterations=2", "runner.validate_every=1", "runner.val_episodes=4", "runner.test_episodes=6",
             "runner.meta_batch=2", "runner.device=cpu", "runner.plots=false", "tracker.wandb=disabled"]  # fmt: skip
    experiment = build(compose(words).config)
    directory = RunDirectory.create(tmp_path, "run", 0)
    summary, run = experiment.run(directory), directory.path
    for suffix in ("", "_3way"):
        plain, fitted = summary["calibration"][suffix]
        assert plain["nll"]["mean"] == pytest.approx(summary["test"][f"loss{suffix}"]["mean"], rel=1e-5)
        assert plain["nll"]["ci95"] == pytest.approx(summary["test"][f"loss{suffix}"]["ci95"], rel=1e-4)
        assert fitted["temperature"] != plain["temperature"] == 1
    assert "ece" not in (run / "metrics.jsonl").read_text()
    assert isinstance(experiment.algorithm, SupervisedAlgorithm)
    assert experiment.algorithm.on_predictions is None
    learner = metarun.load(run).learner
    assert learner.algorithm.temperature == fitted["temperature"]
    images = torch.randint(0, 256, (4, 28, 28), dtype=torch.uint8)
    adapted = learner.adapt(list(images), ["a", "a", "b", "b"])
    cooled = adapted.predict(images).probabilities
    adapted.temperature = 1.0
    logits = adapted.predict(images).probabilities.log()
    torch.testing.assert_close(cooled, (logits / fitted["temperature"]).softmax(-1), rtol=1e-4, atol=1e-6)
    adapted.temperature = fitted["temperature"]
    adapted.save(tmp_path, RunDirectory(run).config())
    torch.testing.assert_close(load(tmp_path).predict(images).probabilities, cooled)


def test_a_classifier_that_is_not_trained_is_calibrated_too(tmp_path: Path) -> None:
    words = ["task=vision/glyphs", "algorithm=protonet", "model.width=4", "task.test_ways=[]", "runner.iterations=0",
             "runner.val_episodes=8", "runner.test_episodes=4", "runner.device=cpu", "runner.threads=1",
             "runner.plots=false", "tracker.wandb=disabled"]  # fmt: skip
    experiment = build(compose(words).config)
    directory = RunDirectory.create(tmp_path, "run", 0)
    plain, fitted = experiment.run(directory)["calibration"][""]
    assert (plain["temperature"], "val/" in directory.metrics.read_text()) == (1, False)
    predictions = Logits()
    evaluate(experiment.algorithm, experiment.task, "val", 8, batch=20, on_predictions=predictions.add)
    assert fitted["temperature"] == pytest.approx(predictions.temperature())
    assert metarun.load(directory.path).learner.algorithm.temperature == fitted["temperature"]
    never = build(compose([*words, "runner.validate_every=0"]).config).run(RunDirectory.create(tmp_path, "never", 0))
    assert [each["temperature"] for each in never["calibration"][""]] == [1]


@pytest.mark.parametrize(
    "words",
    [
        ["task=rl/bandit", "algorithm=ucb"],
        ["task=rl/mdp", "algorithm=random"],
        ["task=regression/functions", "algorithm=ridge"],
        ["task=nlp/formal_languages", "algorithm=ngram", "task.shot=2", "task.query=1"],
    ],
    ids=lambda words: words[1],
)
def test_what_has_nothing_to_learn_is_evaluated_at_once(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner = [
        "runner.iterations=2", "runner.test_episodes=4", "runner.plots=false", f"runner.directory={tmp_path}",
        "runner.threads=1", "tracker.wandb=disabled", "name=baseline",
    ]  # fmt: skip
    run = build(compose([*words, *runner]).config)
    with caplog.at_level("INFO", "metarun"):
        summary = run.run()
    assert (summary["iterations"], summary["test"][run.task.metric]["n"]) == (0, 4)
    (said,) = [r.getMessage() for r in caplog.records if "no meta-parameters" in r.getMessage()]
    assert "no meta-parameters to train; it is evaluated at once, as with runner.iterations=0" in said
    rows = next(tmp_path.glob("baseline/*/metrics.jsonl")).read_text().splitlines()
    assert len(rows) == 1  # of the test


def test_a_search_judges_what_has_nothing_to_learn_by_one_validation(tmp_path: Path) -> None:
    runner = ["runner.test_episodes=0", "runner.val_episodes=4", f"runner.directory={tmp_path}", "runner.threads=1"]
    run = build(compose(["task=rl/bandit", "algorithm=ucb", *runner, "tracker.wandb=disabled", "name=trial"]).config)
    rows: list[Any] = []
    run.on_validation = rows.append
    run.run()
    assert [row["iteration"] for row in rows] == [0]
    assert "val/return" in rows[0]


@pytest.mark.parametrize(
    "words",
    [
        ["task=regression/sinusoid"],
        ["task=vision/glyphs", "algorithm=baseline", "model.width=4", "task.test_ways=[]"],
        pytest.param(["task=nlp/formal_languages"], marks=pytest.mark.slow),
        ["task=rl/bandit"],
    ],
)
def test_test_tasks_are_not_touched_before_the_end(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poisoned: drawing any before meta-training is over and a learner has been chosen ends the run."""
    small = {"iterations": 3, "meta_batch": 2, "validate_every": 1, "val_episodes": 2, "test_episodes": 2}
    runner = [f"runner.{key}={value}" for key, value in small.items()]
    config = compose([*words, *runner, f"runner.directory={tmp_path}", "tracker.wandb=disabled", "name=poisoned"])
    experiment = build(config.config)
    family, drawn, tests = type(experiment.task), [], []
    batch, test = family.batch, Experiment.test

    def guarded(self: Task, split: str, *rest: Any) -> Any:
        drawn.append(split)
        assert split != "test" or tests, f"a test task was drawn after {len(drawn) - 1} others"
        return batch(self, split, *rest)

    def last(self: Experiment, split: Any = "test", *rest: Any) -> Any:
        assert drawn.count("val") >= 3, "validation comes first"
        tests.append(split)
        return test(self, split, *rest)

    monkeypatch.setattr(family, "batch", guarded)
    monkeypatch.setattr(Experiment, "test", last)
    experiment.run()
    assert tests == ["test"]
    assert drawn.index("test") > max(i for i, split in enumerate(drawn) if split == "val")


def test_without_iterations_features_are_centred_by_the_mean_of_the_training_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "OBSERVED_BATCHES", 2)
    words = ["task=vision/glyphs", "task.test_ways=[]", "algorithm=simpleshot", "model.width=4",
             "algorithm.train_way=5", "task.query=2", "runner.iterations=0", "runner.test_episodes=2",
             "runner.meta_batch=2", "runner.device=cpu", "runner.validate_every=0", "runner.plots=false",
             "runner.threads=1", "tracker.wandb=disabled"]  # fmt: skip
    experiment = build(compose(words).config)
    run = RunDirectory.create(tmp_path, "run", 0)
    experiment.run(run)
    learner, task = experiment.algorithm, experiment.task
    assert isinstance(learner, EmbeddingLearner)
    assert isinstance(learner.head, Prototypes)
    with torch.no_grad():
        batches = [task.batch("train", [2 * i, 2 * i + 1], learner.train_shape(task.shape)) for i in range(2)]
        mean = torch.stack([learner.embed(batch.support.x).flatten(0, 1).mean(0) for batch in batches]).mean(0)
    assert mean.abs().max() > 0.01
    torch.testing.assert_close(learner.head.running_mean, mean)
    last = run.path / "checkpoints" / "last.pt"
    assert metarun.evaluate(run.path, "runner.test_episodes=2")["test"]["accuracy"]["n"] == 2
    # Runs of earlier versions centred by zero. Their learners are refused, and training begins with no mean.
    state = checkpoint.load(last, torch.device("cpu"))
    state["algorithm"]["parameters"]["head.running_count"].zero_()
    checkpoint.save(last, state)
    with pytest.raises(UserError, match="kept no mean of the training features"):
        metarun.evaluate(run.path)
    with pytest.raises(UserError, match="kept no mean of the training features"):
        _ = metarun.load(run.path).learner
    trained = build(compose([*words, "runner.iterations=1"]).config).run(RunDirectory.create(tmp_path, "trained", 0))
    resumed = metarun.load(run.path).resume("runner.iterations=1").summary
    assert resumed["test"] == trained["test"]


def test_untrained_normalisation_layers_are_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["task=vision/glyphs", "algorithm=protonet", "model.width=4", "task.test_ways=[]", "runner.iterations=0",
             "runner.test_episodes=2", "runner.device=cpu", "runner.plots=false", "runner.threads=1",
             "tracker.wandb=disabled"]  # fmt: skip
    for norm, said in (("running", True), ("transductive", False)):
        caplog.clear()
        build(compose([*words, f"algorithm.norm={norm}"]).config).run(RunDirectory.create(tmp_path, norm, 0))
        assert any("initial statistics" in record.getMessage() for record in caplog.records) == said
