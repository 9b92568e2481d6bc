"""Runs on episodes of varied size: gradients, resuming, evaluation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import metarun
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.evaluation.calibration import Logits
from metarun.evaluation.evaluator import evaluate
from metarun.tracking.rundir import RunDirectory

WORDS = ["task=vision/glyphs", "task.test_ways=[]", "model.width=4", "runner.device=cpu", "runner.threads=1",
         "runner.plots=false", "runner.test_episodes=6", "runner.val_episodes=4", "runner.meta_batch=3",
         "runner.log_every=1", "tracker.wandb=disabled"]  # fmt: skip
OWN = ["algorithm=protonet", "algorithm.train_way=null", "algorithm.train_query=null", "algorithm.norm=transductive"]
VARIED = "task.episodes=varied"


def test_the_gradient_is_the_mean_of_those_of_the_tasks() -> None:
    experiment = build(compose([*WORDS, *OWN, VARIED]).config)
    learner, task = experiment.algorithm, experiment.task
    assert isinstance(learner, SupervisedAlgorithm)
    groups = [batch for _, batch in task.batches("train", range(3))]
    assert len({batch.support.x.shape for batch in groups}) > 1
    metrics = experiment.engine.gradient(groups)
    found = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
    losses = [learner.outer_loss(task.batch("train", [index]))[0] for index in range(3)]
    mean = torch.stack(losses).mean()
    expected = torch.autograd.grad(mean, [p for p in learner.parameters() if p.grad is not None])
    torch.testing.assert_close(metrics["loss"], mean.detach())
    assert len(found) > 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_run_resumes_exactly_and_states_its_episodes(tmp_path: Path) -> None:
    words = [*WORDS, *OWN, VARIED, "runner.validate_every=2", "runner.test_episodes=2", "runner.meta_batch=2"]
    whole, part = (RunDirectory.create(tmp_path, name, 0) for name in ("whole", "part"))
    summary = build(compose([*words, "runner.iterations=4"]).config).run(whole)
    assert summary["protocol"]["episodes"] == "varied as in Meta-Dataset"
    assert summary["calibration"][""][0]["nll"]["n"] == 2
    assert "step" not in whole.meta()
    build(compose([*words, "runner.iterations=2"]).config).run(part)
    metarun.load(part.path).resume("runner.iterations=4")
    rows = [[json.loads(line) for line in run.metrics.read_text().splitlines()] for run in (whole, part)]
    trained = [[row for row in each if "train/loss" in row] for each in rows]
    assert trained[0] == trained[1]
    assert rows[0][-1] == rows[1][-1]


def test_training_can_stay_balanced_and_evaluation_vary(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "run", 0)
    experiment = build(compose([*WORDS, "algorithm=protonet", "runner.iterations=1", "runner.validate_every=0"]).config)
    experiment.run(run)
    found = metarun.evaluate(run.path, VARIED)
    assert found["protocol"]["way"] == "5 to 50"
    assert found["test"]["accuracy"]["n"] == 6
    half = metarun.evaluate(run.path, VARIED, "runner.eval_batch=1")
    assert half["test"] == found["test"]  # a task does not depend on the others


def test_evaluation_does_not_depend_on_groups() -> None:
    experiment = build(compose([*WORDS, *OWN, VARIED]).config)
    predictions = Logits()
    found = evaluate(experiment.algorithm, experiment.task, "val", 7, batch=5, on_predictions=predictions.add)
    for index in range(7):
        alone = experiment.algorithm.evaluate(experiment.task.batch("val", [index]))
        assert float(found.curves["accuracy"][index, -1]) == float(alone["accuracy"][0, -1])
    temperature = predictions.temperature()
    assert temperature is not None
    assert 0.01 < temperature < 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algorithm=maml"], "has a head of fixed size"),
        (["algorithm=feat", "algorithm.train_query=null"], "as many examples of each class"),
    ],
    ids=["maml", "feat"],
)
def test_learners_that_need_equal_tasks_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build(compose([*WORDS, *words, VARIED]).config)


def test_learners_that_need_the_full_meta_batch_take_one_task() -> None:
    config = compose([*WORDS, "algorithm=protomaml", VARIED]).config
    config["algorithm"]["rule"] = {"_target_": "metarun.algorithms.gradient.rules.Adam", "beta1": 0.0, "beta2": 0.999,
                                   "eps": 1e-8, "carry": True}  # fmt: skip
    with pytest.raises(UserError, match=r"use runner\.meta_batch=1"):
        build(config)
    build({**config, "runner": {**config["runner"], "meta_batch": 1}})
