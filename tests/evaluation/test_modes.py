"""Learners learn in training mode and are evaluated in evaluation mode: batch statistics and dropout do not leak."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.adapted import AdaptedLearner
from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import construct
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.tasks.inputs import Inputs
from metarun.tasks.rl.bandit import Bandit
from metarun.tasks.rl.navigation import Navigation
from tests.composed import composed

CLASSES = Spec("classification", "vector", (4,), 3, train_classes=3)
CURVES = Spec("regression", "vector", (4,), 1)
IMAGES = Spec(
    "generation",
    "image",
    (1, 8, 8),
    2,
    evaluate_samples=lambda learner, batch: {"sum": learner(batch.query.x).sum((1, 2, 3, 4))},
)
BANDIT = Bandit(0, arms=2, pulls=3, rewards="bernoulli")
NAVIGATION = Navigation(0, actions="scaled", reward="distance", horizon=4, episodes=2, test_goals="drawn")


def examples(spec: Spec, count: int) -> Labelled:
    x, classes = torch.randn(2, 3 * count, 4), torch.arange(3).repeat_interleave(count).expand(2, -1)
    return Labelled(x, classes, 3) if spec.kind == "classification" else Labelled(x, x[..., :1])


def images(count: int) -> Labelled:
    return Labelled(torch.arange(2).repeat_interleave(count).expand(2, -1), torch.rand(2, 2 * count, 1, 8, 8), 2)


def batch(spec: Spec) -> Any:
    if spec.kind == "control":
        return (BANDIT if spec.discrete_actions else NAVIGATION).batch("val", range(4))
    part = images if spec.kind == "generation" else lambda count: examples(spec, count)
    return TaskBatch(part(2), part(3))


def learner(algorithm: str, spec: Spec, *words: str) -> Any:
    config = composed(f"algorithm={algorithm}", *words)
    if spec.kind in ("control", "generation"):
        model = construct(config["model"], spec=spec)
    else:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    return construct(config["algorithm"], model=model, spec=spec)


CONTROL = ["algorithm.rollouts=2", "algorithm.test_rollouts=2"]
LEARNERS = {
    "protonet": (CLASSES, ["algorithm.train_way=null"]),
    "maml": (CLASSES, []),
    "simpleshot": (CLASSES, []),
    "cnp": (CURVES, []),
    "rl2": (BANDIT.spec, ["model=gru_policy", "model.hidden=4", "algorithm.minibatches=1", *CONTROL]),
    "promp": (NAVIGATION.spec, ["model=mlp_policy", *CONTROL]),
    "flow": (IMAGES, ["model=set_unet", "model.width=8", "model.patch=1", "algorithm.steps=2"]),
}


@contextmanager
def modes(algorithm: Algorithm) -> Iterator[set[bool]]:
    """The modes in which parts of ``algorithm`` are called within the block: ``True`` for training."""
    seen: set[bool] = set()
    hooks = [part.register_forward_pre_hook(lambda m, _: seen.add(m.training)) for part in algorithm.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_learn_in_training_and_are_evaluated_in_evaluation_mode(name: str) -> None:
    spec, words = LEARNERS[name]
    algorithm = learner(name, spec, *words)
    for _ in range(2):  # evaluation leaves the next step as it was
        with modes(algorithm) as seen:
            algorithm.meta_step(batch(spec), 0)
        assert seen == {True}
        state = {key: value.clone() for key, value in algorithm.state_dict().items()}
        with modes(algorithm) as seen:
            algorithm.evaluate(batch(spec))
        assert seen == {False}
        assert all(torch.equal(value, state[key]) for key, value in algorithm.state_dict().items())


@pytest.mark.parametrize("name", ["protonet", "maml", "cnp"])
def test_a_learner_adapted_to_new_data_is_in_evaluation_mode(name: str) -> None:
    spec, words = LEARNERS[name]
    algorithm: SupervisedAlgorithm = learner(name, spec, *words)
    algorithm.meta_step(batch(spec), 0)
    support = examples(spec, 2)
    one = Labelled(support.x[:1], support.y[:1], support.way)
    with modes(algorithm) as seen:
        adapted = AdaptedLearner(algorithm, Inputs(spec), one, ["a", "b", "c"] if support.way else [])
        adapted.predict(torch.randn(5, 4).tolist())
        adapted.leave_one_out()
    assert seen == {False}


def test_dropout_is_off_in_evaluation() -> None:
    spec, words = LEARNERS["protonet"]
    algorithm, data = learner("protonet", spec, *words), batch(CLASSES)
    found: list[Tensor] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(algorithm.evaluate(data)["loss"])
    assert torch.equal(*found)
