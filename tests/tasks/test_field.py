"""Images as fields: what is given are the image's own values; errors in decibel; the network of sines as published."""

from __future__ import annotations

import copy
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.algorithms.supervised import prediction_metrics
from metarun.config.build import construct
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.models.linear import Linear
from metarun.models.siren import Siren
from metarun.tasks.episode import Spec
from metarun.tasks.vision.field import Field, _deviation
from tests.tasks.letters import letters


def field(shot: int | None = None, **changes: Any) -> Field:
    images = letters(12)
    plain: dict[str, Any] = {"least_shot": None, "test_shots": [], "order": "random", "together": 4}
    return Field(3, images=images, shot=shot, **{**plain, **changes})


def numbers(x: Tensor) -> Tensor:
    """Which pixels of a 12 by 12 image, counted row by row, are at ``x`` [..., 2]."""
    return ((x + 1) * 5.5).round().long() @ torch.tensor([12, 1])


def test_a_task_is_an_image_of_its_split() -> None:
    task = field()
    batch = task.batch("test", [0, 1, 2])
    assert batch.support.x.shape == (3, 144, 2)
    assert batch.support.y.shape == (3, 144, 1)
    of_the_split = {bytes(np.asarray(image)) for image in task.images.data.x[task.rows["test"]]}
    for y in batch.query.y:
        assert bytes((255 * y).round().to(torch.uint8).view(1, 12, 12).numpy()) in of_the_split
    assert batch.query.x[0, 0].tolist() == [-1, -1]  # row by row, from the upper left
    assert batch.query.x[0, 1].tolist() == pytest.approx([-1, -1 + 2 / 11])
    again = task.batch("test", [2])
    assert torch.equal(again.query.y[0], batch.query.y[2])
    assert len({*task.rows["train"]} & {*task.rows["test"]}) == 0


def test_given_pixels_are_some_of_the_image() -> None:
    batch = field(20).batch("train", range(4))
    assert batch.support.x.shape == (4, 20, 2)
    for sx, sy, qx, qy in zip(batch.support.x, batch.support.y, batch.query.x, batch.query.y, strict=True):
        where = [int((qx == x).all(1).nonzero()) for x in sx]
        assert len(set(where)) == 20
        assert torch.equal(qy[where], sy)
    with pytest.raises(UserError, match="more than the 144 pixels"):
        field(145)


def test_ordered_pixels_are_the_first_row_by_row() -> None:
    batch = field(17, order="ordered").batch("val", range(3))
    assert torch.equal(numbers(batch.support.x), torch.arange(17).expand(3, -1))
    assert torch.equal(batch.support.y, batch.query.y[:, :17])
    assert torch.equal(numbers(batch.query.x), torch.arange(144).expand(3, -1))
    random = numbers(field(17).batch("val", range(3)).support.x)
    assert len({tuple(row.tolist()) for row in random}) == 3


@pytest.mark.parametrize("order", ["random", "ordered"])
def test_meta_training_queries_some_pixels_beside_the_given_ones(order: str) -> None:
    task = field(30, least_shot=5, order=order)
    shape = task.shape.changed(query=40)
    batch, whole = task.batch("train", range(4), shape), task.batch("train", range(4))
    given, asked = numbers(batch.support.x), numbers(batch.query.x)
    assert torch.equal(given, numbers(whole.support.x))
    assert asked.shape == (4, 40)
    for t in range(4):
        both = [*given[t].tolist(), *asked[t].tolist()]
        assert len(set(both)) == len(both)
        assert torch.equal(batch.query.y[t], whole.query.y[t, asked[t]])
    assert max(asked.flatten().tolist()) > 120  # no part of the image is left out
    assert asked[0].tolist() != sorted(asked[0].tolist())


def test_numbers_of_given_pixels_vary_in_meta_training_alone() -> None:
    task = field(9, least_shot=3, test_shots=[2, 9, 50])
    counts = [task.batch("train", [4 * k]).support.y.shape[1] for k in range(350)]
    assert set(counts) == set(range(3, 10))
    assert max(abs(counts.count(n) - 50) for n in range(3, 10)) < 5 * 6.5  # binomial
    assert [task.batch("train", [i]).support.y.shape[1] for i in range(40)] == [n for n in counts[:10] for _ in "1234"]
    with pytest.raises(UserError, match=r"task.together=4: tasks 0 to 39 of one batch have different numbers"):
        task.batch("train", range(40))
    shots = {name: task.batch("test", range(40), shape).support.y.shape[1] for name, shape in task.variants().items()}
    assert shots == {"": 9, "_2px": 2, "_50px": 50}
    few, many = (numbers(task.batch("test", [7], task.variants()[name]).support.x) for name in ("_2px", "_50px"))
    assert torch.equal(few, many[:, :2])  # what is given with more pixels is more of the same


def test_impossible_numbers_of_pixels_are_refused() -> None:
    for changes in ({"least_shot": 31}, {"test_shots": [145]}):
        with pytest.raises(
            UserError,
            match=r"task.least_shot=31 is more than the largest number of support pixels, 30|more than the 144 pixels",
        ):
            field(30, **changes)
    with pytest.raises(UserError, match="30 support and 115 query pixels are more than the 144"):
        field(30).check("train", field(30).shape.changed(query=115))


def test_the_picture_shows_what_is_given_and_the_deviation_of_a_mixture(float64: None) -> None:
    task = field(30, test_shots=[10])
    config = compose(
        ["task=vision/completion", "algorithm.width=8", "algorithm.latent=4", "algorithm.samples=5"]
    ).config
    learner = construct(config["algorithm"], model=Linear(bias=False), spec=task.spec)
    figure = task.picture(learner)
    columns = [ax.get_title() for ax in figure.axes[:7]]
    assert columns == ["10 pixels", "mean", "deviation", "30 pixels", "mean", "deviation", "image"]
    shown = [np.asarray(figure.axes[i].get_images()[0].get_array()) for i in (0, 3, 6)]
    for picture, count in zip(shown[:2], (10, 30), strict=True):
        bare = (picture != np.float32((0.16, 0.27, 0.55))).reshape(144, 3)
        assert bare.any(1).sum() == count
        assert np.array_equal(picture.reshape(144, 3)[bare.any(1), 0], shown[2].reshape(144)[bare.any(1)])

    means, stds = torch.randn(5, 2, 3, 1), torch.rand(5, 2, 3, 1)
    found = _deviation(SimpleNamespace(gaussians=lambda x: (means, stds)), torch.zeros(2, 3, 2))
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2, 3, 1, 5)),
        torch.distributions.Normal(means.movedim(0, -1), stds.movedim(0, -1)),
    )
    assert torch.allclose(found, mixture.stddev, rtol=1e-12)


def test_a_copy_moved_elsewhere_leaves_the_task_alone() -> None:
    task = field()
    copy.copy(task).to(torch.device("meta"))
    assert not task.batch("train", [0]).query.y.is_meta


def test_decibel() -> None:
    spec = Spec("regression", "vector", (2,), 1, peak=2.0)
    metrics = prediction_metrics(spec, torch.full((1, 5, 1), 0.2), torch.zeros(1, 5, 1))
    assert float(metrics["psnr"]) == pytest.approx(20)  # a tenth of the peak
    assert "psnr" not in prediction_metrics(
        Spec("regression", "vector", (2,), 1), torch.zeros(1, 5, 1), torch.zeros(1, 5, 1)
    )


def test_the_network_of_sines() -> None:
    torch.manual_seed(0)
    net = Siren(Spec("regression", "vector", (2,), 1), width=256, depth=4, first=30.0, rest=20.0)
    assert float(net.layers[0].weight.abs().max()) == pytest.approx(1 / 2, rel=0.02)
    assert float(net.layers[2].weight.abs().max()) == pytest.approx(sqrt(6 / 256) / 20, rel=0.01)
    x = 2 * torch.rand(2000, 2) - 1
    by_hand = x
    for layer, w in zip(net.layers, (30, 20, 20, 20), strict=True):
        by_hand = (w * (by_hand @ layer.weight.T + layer.bias)).sin()
    assert torch.allclose(net(x), by_hand, atol=1e-5)
    assert float(net(x).std()) == pytest.approx(sqrt(1 / 2), abs=0.05)  # arcsine-distributed at every depth
