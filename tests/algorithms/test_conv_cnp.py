"""Convolutional processes in float64 against sums over points written out, and their equivariance to shifts."""

from __future__ import annotations

from math import exp, log, pi
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.amortised.conv_cnp import ConvCNP
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models.grid import SetConvolution, UNet
from metarun.models.linear import Linear
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed

SMALL = {"domain": [0.0, 2.0], "density": 4, "channels": [5], "hidden": 4, "kernel": 3, "min_std": 0.05}


def learner(inputs: int, outputs: int = 2, **changes: Any) -> ConvCNP:
    section = composed("algorithm=convcnp")["algorithm"] | SMALL | changes
    process = construct(section, model=Linear(bias=False), spec=Spec("regression", "vector", (inputs,), outputs))
    for p in process.parameters():  # biases too, and scales of different channels
        p.data += 0.3 * torch.randn_like(p)
    return process


def batch(inputs: int) -> TaskBatch:
    parts = (Labelled(2 * torch.rand(2, n, inputs), torch.randn(2, n, 2)) for n in (4, 3))
    return TaskBatch(*parts)


def weight(layer: SetConvolution, channel: int, x: Tensor, point: tuple[float, ...]) -> float:
    squares = sum((a - b) ** 2 for a, b in zip(x.tolist(), point, strict=True))
    return exp(-squares / (2 * exp(layer.log_length[channel].item()) ** 2))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("inputs", [1, 2])
def test_predictions_and_loss_by_hand(inputs: int) -> None:
    process, data = learner(inputs), batch(inputs)
    line = process.grid.tolist()
    points = [(a,) for a in line] if inputs == 1 else [(a, b) for a in line for b in line]
    totals = []
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        found = []
        for point in points:
            density = sum(weight(process.encode, 0, x, point) for x in sx)
            signals = [
                sum(y[d].item() * weight(process.encode, 1 + d, x, point) for x, y in zip(sx, sy, strict=True))
                for d in range(2)
            ]
            found.append(torch.tensor([density, *(s / (density + 1e-8) for s in signals)]))
        hidden = torch.stack([torch.sigmoid(process.encode.linear(f)) for f in found], 1)
        channels = process.cnn(hidden.view(-1, *[len(line)] * inputs)[None])[0].flatten(1)
        total = 0.0
        for x, y in zip(qx, qy, strict=True):
            mean, raw = (
                head.linear(
                    torch.stack(
                        [
                            sum(channels[c, i] * weight(head, c, x, point) for i, point in enumerate(points))
                            / (1 if inputs == 1 else sum(weight(head, c, x[:1], (a,)) for a in line))
                            for c in range(4)
                        ]
                    )
                )
                for head in (process.mean, process.std)
            )
            for d in range(2):
                std = 0.05 + log(1 + exp(raw[d].item()))
                total += (y[d].item() - mean[d].item()) ** 2 / (2 * std**2) + 0.5 * log(2 * pi * std**2)
        totals.append(total)
    loss, metrics = process.outer_loss(data)
    assert loss.item() == pytest.approx(sum(totals) / 2, rel=1e-10)
    assert metrics["nll"].item() == pytest.approx(sum(totals) / 6, rel=1e-10)
    found_by_test = process.evaluate(data)
    assert found_by_test["nll_sum"][:, 0].tolist() == pytest.approx(totals, rel=1e-10)
    assert found_by_test["nll"][:, 0].tolist() == pytest.approx([t / 3 for t in totals], rel=1e-10)


def test_reading_a_plane_starts_as_large_as_reading_a_line() -> None:
    """A sum over the plane would be five times as large: as the sum of a Gaussian of two grid points over a line."""
    size = {}
    for inputs in (1, 2):
        torch.manual_seed(0)
        section = composed("algorithm=convcnp")["algorithm"] | {"domain": [0.0, 2.0], "density": 14, "margin": 1.0}
        process = construct(section, model=Linear(bias=False), spec=Spec("regression", "vector", (inputs,), 2))
        channels = torch.ones(1, 8, *[len(process.grid)] * inputs)
        mean, _ = process._read(channels, torch.full((1, 1, inputs), 1.0))
        size[inputs] = (mean / process.mean.linear.weight.sum(1)).mean().item()
    assert size[2] == pytest.approx(size[1], rel=1e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("inputs", [1, 2])
def test_predictions_move_with_the_context(inputs: int) -> None:
    process = learner(inputs, domain=[-8.0, 8.0], margin=0.0)
    for layer in (process.encode, process.mean, process.std):
        layer.log_length.data.clamp_(max=log(0.3))  # short enough to leave the edges alone
    step = float(process.grid[1] - process.grid[0])
    data = batch(inputs)
    assert process.cnn(torch.sigmoid(process.encode(process._on_grid(data.support), dim=1))).std() > 0.01
    here = process.predictive(data.support)(data.query.x)
    moved = Labelled(data.support.x + 3 * step, data.support.y)
    there = process.predictive(moved)(data.query.x + 3 * step)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in zip(here, there, strict=True))
    elsewhere = process.predictive(moved)(data.query.x)
    assert not torch.allclose(here[0], elsewhere[0], atol=1e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("inputs", [1, 2])
def test_a_u_net_by_hand(inputs: int) -> None:
    """Three halvings of 8 points, by torch's own functions; channels as in the paper's XL network."""
    net = UNet(3, 3, 5, inputs)
    assert [layer.out_channels for layer in net.down] == [3, 6, 6]
    assert [layer.out_channels for layer in UNet(8, 6, 5, 1).down] == [8, 16, 16, 32, 32, 64]
    x = torch.randn(2, 3, *[8] * inputs)
    down, up = (F.conv1d, F.conv_transpose1d) if inputs == 1 else (F.conv2d, F.conv_transpose2d)

    def lower(h: Tensor, layer: Any) -> Tensor:
        return down(h, layer.weight, layer.bias, stride=2, padding=2).relu()

    def higher(h: Tensor, layer: Any) -> Tensor:
        return up(h, layer.weight, layer.bias, stride=2, padding=2, output_padding=1).relu()

    a = lower(x, net.down[0])
    b = lower(a, net.down[1])
    c = lower(b, net.down[2])
    d = torch.cat([b, higher(c, net.up[0])], 1)
    e = torch.cat([a, higher(d, net.up[1])], 1)
    assert torch.equal(net(x), torch.cat([x, higher(e, net.up[2])], 1))


def test_a_u_net_s_grid_is_a_multiple_of_its_halvings() -> None:
    process = learner(1, halvings=3)
    assert len(process.grid) == 16  # 2.2 units of 4 points are 9
    process.predictive(batch(1).support)(torch.rand(2, 3, 1))
    with pytest.raises(UserError, match=r"algorithm.halvings=11: at most 10"):
        learner(1, halvings=11)


def test_what_does_not_fit_a_grid_is_refused() -> None:
    with pytest.raises(UserError, match=r"one or two coordinates, and model and task give 3 features"):
        learner(3)
    with pytest.raises(UserError, match=r"algorithm.domain=\[1.0, 1.0\]: two numbers"):
        learner(1, domain=[1.0, 1.0])
    with pytest.raises(UserError, match=r"algorithm.kernel=4: the size must be odd"):
        learner(1, kernel=4)


def test_learns_curves() -> None:
    """In seconds: a lower likelihood loss than the best that ignores the context, 1.42."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    config = composed("task=regression/gp", "task.length=[0.8,0.8]", "task.scale=[1.0,1.0]", "task.query=10",
                      "task.shot=9", "algorithm=convcnp", "algorithm.density=8", "algorithm.outer_lr=0.01")  # fmt: skip
    task = construct(config["task"], seed=0)
    process = construct(config["algorithm"], model=Linear(bias=False), spec=task.spec)
    for i in range(90):
        process.meta_step(task.batch("train", range(16 * i, 16 * i + 16)), i)
    nll = torch.cat([process.evaluate(task.batch("test", range(16 * i, 16 * i + 16)))["nll"] for i in range(10)])
    assert nll.mean() < 1.0
