"""Detection of unknown queries against definitions written out, and in the results of learners."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from metarun.algorithms.metric.learner import EmbeddingLearner
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.algorithms.unknown import auroc, detection_metrics, false_positive_rate
from metarun.cli import main
from metarun.config.build import build
from metarun.config.compose import compose


def scores(known: int, unknown: int) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    pair = (torch.randn(3, known, generator=noise) + 1, torch.randn(3, unknown, generator=noise))
    return tuple((4 * each).round() / 4 for each in pair)  # type: ignore[return-value]  # with ties


@pytest.mark.parametrize(("known", "unknown"), [(40, 30), (1, 1), (19, 7), (21, 200)])
def test_measures_are_their_definitions(known: int, unknown: int) -> None:
    a, b = scores(known, unknown)
    areas, rates = auroc(a, b), false_positive_rate(a, b)
    for t in range(3):
        pairs = [(x > y) + (x == y) / 2 for x in a[t].tolist() for y in b[t].tolist()]
        assert float(areas[t]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
        accepting = [s for s in a[t].tolist() if sum(x >= s for x in a[t].tolist()) >= 0.95 * known]
        passed = sum(y >= max(accepting) for y in b[t].tolist())
        assert float(rates[t]) == pytest.approx(passed / unknown)


def test_limits_and_values_that_are_not_finite() -> None:
    high, low = torch.full((1, 4), 2.0), torch.zeros(1, 5)
    assert (float(auroc(high, low)), float(false_positive_rate(high, low))) == (1, 0)
    assert (float(auroc(low, high)), float(false_positive_rate(low, high))) == (0, 1)
    assert (float(auroc(high, high)), float(false_positive_rate(high, high))) == (0.5, 1)
    bad = torch.tensor([[1.0, math.nan]])
    assert auroc(bad, low).isnan()
    assert false_positive_rate(high, bad).isnan()


def test_scores_are_their_definitions() -> None:
    noise = torch.Generator().manual_seed(1)
    known, unknown = (2 * torch.randn(2, n, 3, generator=noise) for n in (9, 5))
    far = (torch.rand(2, 9, generator=noise), torch.rand(2, 5, generator=noise))
    found = detection_metrics(known, unknown, far)
    probability = [(each.exp() / each.exp().sum(-1, keepdim=True)).max(-1).values for each in (known, unknown)]
    energy = [each.exp().sum(-1).log() for each in (known, unknown)]
    for name, pair in (("probability", probability), ("energy", energy), ("distance", [-each for each in far])):
        torch.testing.assert_close(found[f"auroc_{name}"], auroc(*pair))
        torch.testing.assert_close(found[f"fpr95_{name}"], false_positive_rate(*pair))
    assert not any("distance" in name for name in detection_metrics(known, unknown, None))


GLYPHS = ["task=vision/glyphs", "task.test_ways=[]", "task.query=4", "model.width=4", "runner.device=cpu"]


@pytest.mark.parametrize(
    ("words", "prototypes"),
    [
        (["algorithm=protonet"], True),
        (["algorithm=protonet", "algorithm.head.distance=cosine", "algorithm.norm=transductive"], True),
        (["algorithm=feat", "algorithm.train_query=4"], True),
        (["algorithm=r2d2"], False),
        (["algorithm=maml", "algorithm.test_steps=2"], False),
    ],
    ids=["protonet", "cosine", "feat", "r2d2", "maml"],
)
def test_a_learner_is_measured_on_unknown_queries_and_its_accuracy_on_known_ones(
    words: list[str], prototypes: bool
) -> None:
    experiment = build(compose([*GLYPHS, *words, "task.unknown=2"]).config)
    learner, task = experiment.algorithm, experiment.task
    assert isinstance(learner, SupervisedAlgorithm)
    batch = task.batch("test", [0, 1, 2])
    assert batch.unknown.shape[1] == 2 * 4
    assert learner.train_shape(task.shape).unknown == 0  # type: ignore[union-attr]
    seen: list[tuple[int, ...]] = []
    learner.on_predictions = lambda logits, y: seen.append(tuple(logits.shape))
    found = learner.evaluate(batch)
    assert seen == [(3, 5 * 4, 5)]  # calibration is that of known queries
    names = ["probability", "energy", *(["distance"] if prototypes else [])]
    assert {name for name in found if "auroc" in name or "fpr95" in name} == {
        f"{measure}_{name}" for measure in ("auroc", "fpr95") for name in names
    }
    assert all(0 <= float(value) <= 1 for name in found if "auroc" in name for value in found[name].flatten())
    learner.on_predictions = None
    plain = learner.evaluate(task.batch("test", [0, 1, 2], build(compose([*GLYPHS, *words]).config).task.shape))
    assert not any("auroc" in name for name in plain)
    if "algorithm.norm=transductive" not in words and "algorithm=maml" not in words:  # those see the whole query set
        torch.testing.assert_close(found["accuracy"], plain["accuracy"])
        torch.testing.assert_close(found["loss"], plain["loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["running", "transductive"])
def test_distances_are_those_to_the_nearest_prototype(norm: str) -> None:
    experiment = build(compose([*GLYPHS, "algorithm=protonet", f"algorithm.norm={norm}"]).config)
    learner = experiment.algorithm
    assert isinstance(learner, EmbeddingLearner)
    batch = experiment.task.batch("test", [0, 1])
    learner.eval()
    with torch.no_grad():
        distance = learner.prototype_distance(batch.support)
        assert distance is not None
        found = distance(batch.query.x)
        for t in range(2):
            s, q = learner.together(batch.support.x[t : t + 1], batch.query.x[t : t + 1])
            expected = torch.cdist(q[0], s[0]).square().amin(1)  # of one shot, prototypes are the support set
            torch.testing.assert_close(found[t], expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


def test_a_run_and_its_evaluation_state_the_detection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["runner.iterations=1", "runner.validate_every=0", "runner.test_episodes=4", "runner.plots=false",
             "runner.threads=1", "runner.meta_batch=1", "tracker.wandb=disabled"]  # fmt: skip
    assert main([*GLYPHS, *quick, "algorithm=protonet", "algorithm.train_way=5", "name=run",
                 f"runner.directory={tmp_path}"]) == 0  # fmt: skip
    (run,) = tmp_path.glob("run/*")
    capsys.readouterr()
    assert main(["eval", str(run), "task.unknown=3"]) == 0
    printed = capsys.readouterr().out
    assert "auroc_distance" in printed
    assert "unknown=3" in printed
    (stored,) = run.glob("evaluations/*.json")
    test = json.loads(stored.read_text())["test"]
    assert test["auroc_energy"].keys() == {"mean", "ci95", "n"}
    assert "unknown" not in json.loads((run / "summary.json").read_text())["protocol"]
