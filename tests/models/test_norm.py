"""Normalisation that a convolution before it takes in, against the two one after the other, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarun.config.build import construct
from metarun.errors import UserError
from metarun.kernels import norm as norm_kernel
from metarun.kernels.fusion import fuse_layers
from metarun.kernels.mode import TaskBatched
from metarun.models.norm import BatchNorm, set_policy, statistics_from
from metarun.tasks.episode import Spec
from metarun.types import NormPolicy
from tests.composed import composed

pytestmark = pytest.mark.usefixtures("float64")


class Layer(nn.Module):
    def __init__(self, conv: nn.Module, norm: BatchNorm) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm.after(self.conv, x)


def layer(stride: int = 1, padding: int = 1, scale: bool = True, shift: bool = True) -> Layer:
    norm = BatchNorm(20, scale=scale, shift=shift)
    made = Layer(nn.Conv2d(2, 20, 3, stride=stride, padding=padding, bias=False), norm)
    for p in norm.parameters():
        nn.init.normal_(p)  # factors of either sign
    return made


@pytest.mark.parametrize(
    "form",
    [{}, {"stride": 2}, {"padding": 0}, {"scale": False}, {"shift": False}, {"scale": False, "shift": False}],
    ids=str,
)
@pytest.mark.parametrize("rows", [None, 3], ids=["of all", "of the first"])
def test_value_and_two_derivatives_of_many_tasks(form: dict[str, Any], rows: int | None) -> None:
    whole = layer(**form)
    whole.norm.policy, whole.norm.rows = "transductive", rows
    x = torch.rand(4, 5, 2, 7, 6)
    base = {n: p.detach() for n, p in whole.named_parameters()}
    parameters = {n: p + 0.1 * torch.randn(4, *p.shape) for n, p in base.items()}
    weights = torch.randn(whole(x[0]).shape)

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return (functional_call(whole, p, x) * weights).sin().sum()

    def second(p: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return grad(lambda q: sum(g.square().sum() for g in grad(loss)(q, x).values()))(p)

    for f in (loss, grad(loss), second):
        whole.norm.rows = rows
        with fuse_layers(True), TaskBatched():
            found = vmap(f)(parameters, x)
        whole.norm.rows = rows or len(x[0])  # in elementary operations: torch's own lack derivatives without a factor
        for task in range(len(x)):
            expected = f({n: p[task] for n, p in parameters.items()}, x[task])
            torch.testing.assert_close(
                {"": found[task]} if f is loss else {n: t[task] for n, t in found.items()},
                {"": expected} if f is loss else expected,
            )


def test_running_statistics_are_moved_as_torch_moves_them() -> None:
    plain = layer()
    fused = copy.deepcopy(plain)
    x = torch.rand(5, 2, 7, 6)
    with fuse_layers(True):
        torch.testing.assert_close(fused(x), plain.norm(plain.conv(x)))
    torch.testing.assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()))
    assert not torch.equal(plain.norm.running_mean, torch.zeros(20))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 20, 3, padding=1),
        nn.Conv2d(2, 20, 3, padding="same", bias=False),
        nn.Conv2d(2, 20, 3, groups=2, bias=False),
        nn.Conv2d(2, 20, 3, dilation=2, bias=False),
        nn.Conv2d(2, 20, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(3, 20, 3, bias=False),
        nn.Sequential(nn.Conv2d(2, 20, 3, bias=False)),
    ],
    ids=str,
)
def test_other_layers_are_left_as_they_are(conv: nn.Module) -> None:
    assert not BatchNorm(20).can_fuse(conv)


def test_layers_that_somebody_looks_into_are_left_as_they_are() -> None:
    whole = layer()
    assert whole.norm.can_fuse(whole.conv)
    for part in (whole.conv, whole.norm):
        with part.register_forward_hook(lambda module, inputs, y: None):
            assert not whole.norm.can_fuse(whole.conv)


def test_at_test_running_statistics_are_used() -> None:
    whole = layer().eval()
    assert not whole.norm.can_fuse(whole.conv)
    whole.norm.policy = "transductive"
    assert whole.norm.can_fuse(whole.conv)


@pytest.mark.parametrize("own", [True, False], ids=["metarun's", "torch's"])
def test_frozen_statistics_are_those_that_the_model_came_with(own: bool) -> None:
    layer = nn.Sequential(BatchNorm(3) if own else nn.BatchNorm1d(3))
    for _ in range(3):  # pretraining
        layer(2 + 3 * torch.randn(8, 3))
    set_policy(layer, "frozen")
    layer = copy.deepcopy(layer)
    norm, x = layer[0], torch.randn(5, 3)
    kept = {name: value.clone() for name, value in layer.named_buffers()}
    for mode in (True, False):
        layer.train(mode)
        expected = (x - kept["0.running_mean"]) / (kept["0.running_var"] + 1e-5).sqrt()
        torch.testing.assert_close(layer(x), expected)
        assert all(torch.equal(value, kept[name]) for name, value in layer.named_buffers())
    if own:
        assert not norm.can_fuse(nn.Conv2d(1, 3, 1, bias=False))


def test_an_inner_loop_keeps_the_statistics_of_a_pretrained_model(caplog: pytest.LogCaptureFixture) -> None:
    """Its gradient is that of the network in evaluation mode, and it says what transductive statistics drop."""
    caplog.set_level("INFO", "metarun")
    torch.manual_seed(0)
    spec = Spec("classification", "vector", (4,), 3)

    def pretrained() -> nn.Module:
        torch.manual_seed(1)
        body = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU())
        for _ in range(3):
            body(1 + 2 * torch.randn(16, 4))
        return body

    def learner(norm: str) -> Any:
        section = composed("task=vision/folder", "algorithm=maml")["algorithm"]
        return construct(section | {"norm": norm, "inner_lr": 0.1}, model=pretrained(), spec=spec)

    assert "leaves out the statistics of 1 batch norm layers" not in caplog.text
    learner("transductive")
    assert "leaves out the statistics of 1 batch norm layers of a pretrained model" in caplog.text
    found = learner("frozen").train()
    y = torch.arange(3).repeat(2)
    x = torch.randn(6, 4)
    parameters = found.meta_learned()
    gradients = found.inner_gradient(parameters, parameters, x, y)
    plain = copy.deepcopy(found.net).eval()
    F.cross_entropy(plain(x), y).backward()
    assert set(gradients) == {"0.0.weight", "0.0.bias", "1.weight", "1.bias"}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain.get_parameter(name).grad)


def normalised(x: Tensor, by: Tensor) -> Tensor:
    return (x - by.mean(0)) / (by.var(0, correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize("own", [True, False], ids=["metarun's", "torch's"])
@pytest.mark.parametrize("policy", ["running", "transductive", "support"])
def test_what_each_policy_normalises_by(policy: NormPolicy, own: bool) -> None:
    seen, asked = 2 + 3 * torch.randn(8, 3), torch.randn(5, 3)
    layer = nn.Sequential(BatchNorm(3) if own else nn.BatchNorm1d(3))
    if policy == "support" and not own:
        with pytest.raises(UserError, match="does not work with torch's own batch norm"):
            set_policy(layer, policy)
        return
    set_policy(layer, policy)
    buffers = {name: value.clone() for name, value in layer.named_buffers()}
    torch.testing.assert_close(layer(seen), normalised(seen, seen))  # in training by the batch, whatever the policy
    layer.eval()
    if policy == "running":
        mean, variance = 0.1 * seen.mean(0), 0.9 + 0.1 * seen.var(0)
        torch.testing.assert_close(layer(asked), (asked - mean) / (variance + 1e-5).sqrt())
    else:
        torch.testing.assert_close(layer(asked), normalised(asked, asked))
        assert all(torch.equal(value, buffers[name]) for name, value in layer.named_buffers())
    if own:
        with statistics_from(layer, 2):
            torch.testing.assert_close(layer(asked), normalised(asked, asked[:2]))
        if policy != "running":
            torch.testing.assert_close(layer(asked), normalised(asked, asked))  # and not after the block


@pytest.mark.parametrize("shape", [(96, 8, 14, 14), (3, 8, 5, 5)], ids=["in blocks", "at once"])
@pytest.mark.parametrize("policy", ["running", "transductive"])
def test_channels_last_images_are_normalised_as_contiguous_ones(
    shape: tuple[int, ...], policy: NormPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, running statistics and two derivatives, against torch's kernel for contiguous images, in float64."""
    monkeypatch.setattr(norm_kernel, "BLOCK", 1000)
    ours, torchs = BatchNorm(8), nn.BatchNorm2d(8, track_running_stats=policy == "running")
    ours.policy = policy
    for p in ours.parameters():
        nn.init.normal_(p)
    torchs.load_state_dict(ours.state_dict(), strict=False)
    x, u = 5 + torch.randn(shape), torch.randn(shape)

    def derivatives(layer: nn.Module, x: Tensor) -> list[Tensor]:
        x.requires_grad_()
        y = layer(x)
        inputs = [x, *layer.parameters()]
        first = torch.autograd.grad((y * u).sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(first[0].pow(2).sum(), inputs)
        return [y, *first, *second]

    found = derivatives(ours, x.clone(memory_format=torch.channels_last))
    expected = derivatives(torchs, x.clone(memory_format=torch.contiguous_format))
    for each, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(each, reference, rtol=1e-9, atol=1e-9)
    if policy == "running":
        torch.testing.assert_close(ours.running_mean, torchs.running_mean)
        torch.testing.assert_close(ours.running_var, torchs.running_var)
