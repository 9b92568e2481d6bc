"""Few-shot generation: the flow against Bayes' rule and a loop, the set's reader, controls, measures by hand."""

from __future__ import annotations

from itertools import pairwise
from math import exp
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarun.algorithms.generative.copies import Copies
from metarun.algorithms.generative.flow import Flow
from metarun.errors import UserError
from metarun.evaluation.samples import QualityClassifier, halves, nearest, precision_recall, spread
from metarun.models.set_unet import SetUNet
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.tasks.vision.generation import Generation
from tests.tasks.letters import letters

SPEC = Spec("generation", "image", (1, 8, 8), 3)


class Silent(nn.Module):
    """Says nothing of a pixel, and keeps what it is asked."""

    def read(self, sets: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        self.counts = counts
        return (sets.flatten(1) * counts.repeat_interleave(sets[0, 0].numel(), 1),)

    def forward(self, x: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        self.x, self.t, self.context = x, t, context
        return torch.zeros_like(x)


def flow(model: nn.Module, **changes: Any) -> Flow:
    keys: dict[str, Any] = {"steps": 5, "evidence": 50.0, "time_mean": -0.5, "time_std": 0.9, "drop": 0.25,
                            "guidance": 0.0, "train_way": None, "train_shot": None, "train_query": None,
                            "outer_lr": 0.003, "decay_over": None, "decay": "cosine"}  # fmt: skip
    return Flow(model, SPEC, **{**keys, **changes})


def unet(**changes: Any) -> SetUNet:
    torch.manual_seed(0)
    model = SetUNet(SPEC, **{"width": 8, "patch": 1, "upper": 1, "lower": 1, "heads": 2, **changes})
    with torch.no_grad():  # no layer starts at zero here, so that each has its effect
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(tasks: int, way: int, shot: int, query: int) -> TaskBatch:
    def drawn(each: int) -> Labelled:
        classes = torch.arange(way).repeat_interleave(each).expand(tasks, -1)
        return Labelled(classes, torch.rand(tasks, way * each, 1, 8, 8).round(), way)

    return TaskBatch(drawn(shot), drawn(query))


@pytest.mark.usefixtures("float64")
def test_what_a_noisy_pixel_says_of_itself_is_bayes_rule() -> None:
    x, t = torch.tensor([-1.3, 0.2, 0.9]), torch.tensor([0.05, 0.4, 0.7])
    logits = flow(Silent()).logits(x.view(3, 1, 1, 1), t, ())
    for value, time, logit in zip(x.tolist(), t.tolist(), logits.flatten().tolist(), strict=True):
        ink, paper = (NormalDist(sign * time, 1 - time).pdf(value) for sign in (1, -1))
        assert 1 / (1 + exp(-logit)) == pytest.approx(ink / (ink + paper), rel=1e-12)


@pytest.mark.usefixtures("float64")
def test_generation_is_eulers_method_led_away_from_what_is_said_without_a_set() -> None:
    class Says(Silent):
        def forward(self, x: Tensor, t: Tensor, context: tuple[Tensor, ...]) -> Tensor:
            return context[0][:, :1, None, None] + 0.3 * x

    learner = flow(Says(), guidance=1.5, evidence=2.0)
    noise = torch.randn(2, 1, 1, 1)
    made = learner.carried(noise, [(torch.tensor([[0.7], [-0.2]]),), (torch.tensor([[0.1], [0.4]]),)])
    times = [0.0, *(1 / (1 + exp(0.5 - 0.9 * NormalDist().inv_cdf(i / 5))) for i in range(1, 5)), 1.0]
    for image, x, known, unknown in zip(made.flatten().tolist(), noise.flatten().tolist(), (0.7, -0.2), (0.1, 0.4),
                                        strict=True):  # fmt: skip
        for now, then in pairwise(times):
            alone = float(np.clip(2 * now * x / (1 - now) ** 2, -2, 2)) + 0.3 * x
            logit = alone + known + 1.5 * (known - unknown)
            mean = 2 / (1 + exp(-logit)) - 1
            x += (then - now) * (mean - x) / (1 - now)
        assert image == pytest.approx((x + 1) / 2, abs=1e-12)


@pytest.mark.usefixtures("float64")
def test_meta_training_restores_noisy_queries_of_the_class_that_is_shown() -> None:
    model, tasks = Silent(), batch(40, 3, 4, 5)
    learner = flow(model, evidence=0.0)
    loss, _ = learner.outer_loss(tasks)
    assert float(loss) == pytest.approx(np.log(2))  # nothing said: a bit a pixel
    y = 2 * tasks.query.y.flatten(0, 1) - 1
    noise = (model.x - model.t.view(-1, 1, 1, 1) * y) / (1 - model.t.view(-1, 1, 1, 1))
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float(model.t.logit().mean()) == pytest.approx(-0.5, abs=0.15)
    shown = model.counts.sum(1)
    assert torch.equal(model.counts, (torch.arange(4) < shown[:, None]).to(shown.dtype))
    assert {*shown.tolist()} == {0, 1, 2, 3, 4}
    assert float((shown == 0).double().mean()) == pytest.approx(0.25, abs=0.12)
    # Query 7 of task 2 is of class 1, whose support set are images 4 to 7.
    own = 2 * tasks.support.y[2, 4:8].flatten() - 1
    assert torch.equal(model.context[0][2 * 15 + 7], own * model.counts[2 * 3 + 1].repeat_interleave(64))


@pytest.mark.usefixtures("float64")
def test_gradient_is_that_of_finite_differences() -> None:
    learner, tasks = flow(unet()), batch(1, 3, 2, 2)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return learner.outer_loss(tasks)[0]

    direction = [torch.randn_like(p) for p in learner.parameters()]
    gradient = torch.autograd.grad(loss(), list(learner.parameters()))
    along = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for p, d in zip(learner.parameters(), direction, strict=True):
                p.add_(step * d)
            ends.append(float(loss()))
    assert along == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.usefixtures("float64")
def test_a_set_has_no_order_and_what_does_not_count_has_no_effect() -> None:
    model, sets, x, t = unet(), torch.randn(2, 4, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.6])
    counts = torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 0]])
    said = model(x, t, model.read(sets, counts))
    assert torch.allclose(model(x, t, model.read(sets[:, [2, 0, 1]], torch.ones(2, 3))), said)
    assert not torch.allclose(model(x, t, model.read(sets[:, :2], torch.ones(2, 2))), said)
    assert torch.isfinite(model(x, t, model.read(sets, torch.zeros(2, 4)))).all()
    with pytest.raises(UserError, match="even number of tiles"):
        unet(patch=8)


def test_it_learns_to_make_more_of_what_it_is_shown() -> None:
    torch.manual_seed(0)
    bars = torch.zeros(16, 1, 8, 8)  # eight classes of rows, eight of columns
    for i in range(8):
        bars[i, :, i] = 1
        bars[8 + i, :, :, i] = 1
    spec = Spec("generation", "image", (1, 8, 8), 4)
    learner = flow(SetUNet(spec, width=8, patch=1, upper=1, lower=1, heads=2), drop=0.1, outer_lr=0.01)
    for iteration in range(80):
        drawn = torch.randperm(16)[:4]
        one = Labelled(torch.arange(4)[None], bars[drawn][None], 4)
        more = Labelled(torch.arange(4).repeat(8)[None], bars[drawn].repeat(8, 1, 1, 1)[None], 4)
        learner.meta_step(TaskBatch(one, more), iteration)
    classes = torch.arange(16).repeat_interleave(5)[None]
    with torch.no_grad():
        made = learner.adapt(Labelled(torch.arange(16)[None], bars[None], 16))(classes)[0]
    guess = torch.cdist(made.flatten(1), bars.flatten(1)).argmin(1)
    assert float((guess == classes[0]).float().mean()) > 0.8


def test_copies_are_of_their_own_class_and_noise_has_their_ink() -> None:
    torch.manual_seed(0)
    support = batch(2, 3, 4, 1).support
    order = torch.randperm(12)
    support = Labelled(support.x[:, order], support.y[:, order], 3)  # sorted or not
    classes = torch.tensor([[2, 0, 1, 2, 2, 0], [1, 1, 1, 0, 2, 2]])
    made = Copies(Silent(), SPEC, warp=0, smooth=False, scatter=0).adapt(support)(classes)
    noise = Copies(Silent(), SPEC, warp=0, smooth=False, scatter=1).adapt(support)(classes)
    warped = Copies(Silent(), SPEC, warp=0.2, smooth=False, scatter=0).adapt(support)(classes)
    for task in range(2):
        for sample, scattered, moved, label in zip(
            made[task], noise[task], warped[task], classes[task].tolist(), strict=True
        ):
            own = support.y[task, support.x[task] == label]
            assert any(torch.equal(sample, image) for image in own)
            assert not any(torch.equal(scattered, image) for image in own)
            assert int(scattered.sum()) in own.sum((1, 2, 3)).int().tolist()
            assert min(float((moved - image).abs().mean()) for image in own) > 0
            assert {*moved.flatten().tolist()} == {0, 1}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("neighbours", "recall"), [(1, 0.5), (2, 0.75)])
def test_precision_and_recall_by_hand(neighbours: int, recall: float) -> None:
    """On a line: radii of the real points are 1, 1, 1, 8 (2, 1, 2, 9 to the second), of the others 1, 1, 1, 14.5.

    Of 3, 4, 5 and 19.5 all but the last lie in a ball around a real point; 2 (on an edge) and 10, and with the second
    neighbour 1 too, lie in a ball of the others.
    """
    line = torch.tensor([3.0, 4.0])  # of length 5, and so that no rounding decides what is on an edge
    real, made = (torch.tensor(v)[:, None] * line for v in ([0.0, 1, 2, 10], [3.0, 4, 5, 19.5]))
    got = precision_recall(torch.stack([real, made]), torch.stack([made, real]), neighbours)
    assert got[0].tolist() == [0.75, recall]
    assert got[1].tolist() == [recall, 0.75]
    with pytest.raises(UserError, match="neighbours=4: must be less"):
        precision_recall(real[None], made[None], 4)


@pytest.mark.usefixtures("float64")
def test_diversity_and_novelty_by_hand() -> None:
    samples = Labelled(torch.tensor([[0, 0, 0, 1, 1]]), torch.tensor([[0.0, 1, 3, 10, 14]])[..., None], 2)
    assert float(spread(samples)) == pytest.approx((1 + 2 + 3 + 4) / 4)
    support = Labelled(torch.tensor([[1, 0, 0]]), torch.tensor([[0.0, 2, -1]])[..., None], 2)
    assert float(nearest(samples, support)) == pytest.approx((1 + 1 + 1 + 10 + 14) / 5)


def classifier(**changes: Any) -> QualityClassifier:
    small = {"width": 4, "episodes": 2, "way": 5, "shot": 1, "query": 2, "lr": 0.01, "neighbours": 2}
    return QualityClassifier(**{**small, **changes})


def task(**changes: Any) -> Generation:
    images = letters(28)
    return Generation(0, **{"images": images, "judge": classifier(), "way": 4, "shot": 2, "query": 6, "test_shots": [1],
                            **changes})  # fmt: skip


def test_a_task_gives_labels_and_asks_for_images() -> None:
    episode = task().batch("test", [3, 4])
    assert episode.support.x.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2
    assert episode.support.y.shape == (2, 8, 1, 28, 28)
    assert 0 <= float(episode.query.y.min()) < float(episode.query.y.max()) <= 1
    known, held_out = halves(episode.query)
    assert known.x.tolist() == held_out.x.tolist() == [[c for c in range(4) for _ in range(3)]] * 2
    assert torch.equal(torch.cat([known.y[:, :3], held_out.y[:, :3]], 1), episode.query.y[:, :6])
    assert [shape.shot for shape in task().variants().values() if shape] == [2, 1]
    with pytest.raises(UserError, match="query=5: half"):
        task(query=5)


def test_real_images_and_copies_are_judged_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = task()
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))  # after the letters have been rendered, or found
    episode = family.batch("test", [0, 1])
    _, held_out = halves(episode.query)
    perfect = family.evaluator(lambda classes: held_out.y, episode)
    names = ("accuracy", "precision", "recall", "diversity", "novelty")
    assert all(torch.equal(perfect[name], perfect[f"real_{name}"]) for name in names)
    copied = family.evaluator(Copies(Silent(), SPEC, warp=0, smooth=False, scatter=0).adapt(episode.support), episode)
    assert copied["novelty"].tolist() == [0, 0]
    assert float(copied["real_novelty"].min()) > 0


def test_a_judge_depends_on_the_data_alone_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other, x = task(), task(judge=classifier(lr=0.02)), torch.rand(1, 3, 1, 28, 28)
    again, third = (Generation(seed, images=first.images, judge=classifier(), way=4, shot=2, query=6, test_shots=[])
                    for seed in (7, 8))  # fmt: skip
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "one"))
    torch.manual_seed(5)
    features = first.evaluator.features(x)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))  # the run's random numbers go on as though there were none
    assert not torch.equal(other.evaluator.features(x), features)
    monkeypatch.setattr(QualityClassifier, "_train", None)
    assert torch.equal(again.evaluator.features(x), features)  # from the cache, or this would fail
    monkeypatch.undo()
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "two"))
    assert torch.equal(third.evaluator.features(x), features)  # trained anew, to the bit
