"""Images as fields: what is given are the image's own values; errors in decibel; the network of sines as published."""

from __future__ import annotations

import copy
from math import sqrt

import numpy as np
import pytest
import torch

from metarun.algorithms.base import judge
from metarun.errors import UserError
from metarun.models.siren import Siren
from metarun.tasks.base import Spec
from metarun.tasks.vision.field import Field
from metarun.tasks.vision.glyphs import Glyphs


def field(shot: int | None = None) -> Field:
    images = Glyphs(0, way=5, shot=1, query=1, test_ways=[], size=12, val=0.1, test=0.2, split_seed=0, augment=0)
    return Field(3, images=images, shot=shot)


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


def test_a_copy_moved_elsewhere_leaves_the_task_alone() -> None:
    task = field()
    copy.copy(task).to(torch.device("meta"))
    assert not task.batch("train", [0]).query.y.is_meta


def test_decibel() -> None:
    spec = Spec("regression", "vector", (2,), 1, peak=2.0)
    judged = judge(spec, torch.full((1, 5, 1), 0.2), torch.zeros(1, 5, 1))
    assert float(judged["psnr"]) == pytest.approx(20)  # a tenth of the peak
    assert "psnr" not in judge(Spec("regression", "vector", (2,), 1), torch.zeros(1, 5, 1), torch.zeros(1, 5, 1))


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
