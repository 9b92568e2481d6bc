"""ResNet-12 and wide residual networks against their definitions, and inside batched inner loops."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.gradient.learner import GradientLearner
from metarun.config.build import construct
from metarun.config.compose import compose
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.errors import UserError
from metarun.models.conv4 import Conv4
from metarun.models.mlp import MLP
from metarun.models.norm import BatchNorm, set_policy, statistics_from
from metarun.models.resnet12 import DropBlock, ResNet12
from metarun.models.wrn import WRN
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed

RGB = Spec("classification", "image", (3, 84, 84), 5)
CONV4 = composed("model=conv4")["model"]
SMALL = Spec("classification", "image", (3, 22, 18), 3)  # odd sizes after one halving


pytestmark = pytest.mark.usefixtures("float64")


def resnet12(spec: Spec = SMALL, widths: tuple[int, ...] = (4, 5, 6, 7), drop: float = 0.0, reduce: str = "flatten"):
    return ResNet12(spec, widths=widths, drop=drop, block=3, reduce=reduce)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_sizes_are_the_published_ones() -> None:
    """12.4 million (Lee et al. 2019); 36.5 million less CIFAR-10's classifier of 6,410 (Zagoruyko & Komodakis)."""
    with torch.device("meta"):
        big = resnet12(RGB, (64, 160, 320, 640))
        wide = WRN(RGB, depth=28, width=10, drop=0.0)
        conv4 = {w: Conv4(RGB, width=w, depth=4, downsample="pool", halvings=None, reduce="flatten", norm_scale=True)
                 for w in (32, 64, 512, (96, 192, 384, 512))}  # fmt: skip
        assert count(big) == 12_424_320
        assert count(wide) == 36_479_194 - 6_410
        assert big(torch.empty(2, 3, 84, 84)).shape == (2, 640 * 5 * 5)
        assert resnet12(RGB, (64, 160, 320, 640), reduce="mean")(torch.empty(2, 3, 84, 84)).shape == (2, 640)
        assert wide(torch.empty(2, 3, 84, 84)).shape == (2, 640)
        for width, model in conv4.items():
            assert model(torch.empty(2, 3, 84, 84)).shape == (2, (width if isinstance(width, int) else width[-1]) * 25)


def moved(model: nn.Module) -> nn.Module:
    """With factors and offsets of normalisation that are not those it starts with."""
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    set_policy(model, "transductive")
    return model


def norm(x: Tensor, layer: BatchNorm) -> Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def test_resnet12_is_what_the_paper_says() -> None:
    model, x = moved(resnet12()), torch.rand(4, 3, 22, 18)
    y = x
    for block in model.blocks:
        z = y
        for i in range(3):
            z = norm(F.conv2d(z, block.convs[i].weight, padding=1), block.norms[i])
            z = F.leaky_relu(z, 0.1) if i < 2 else z
        y = F.max_pool2d(F.leaky_relu(z + norm(F.conv2d(y, block.beside.weight), block.beside_norm), 0.1), 2)
    assert torch.allclose(model(x), y.flatten(1))
    assert [m.block for m in resnet12(drop=0.1).modules() if isinstance(m, DropBlock)] == [3, 3]


def test_wrn_is_what_the_paper_says() -> None:
    model, x = moved(WRN(SMALL, depth=16, width=2, drop=0.0)), torch.rand(4, 3, 22, 18)
    y = F.conv2d(x, model.stem.weight, padding=1)
    for i, block in enumerate(model.blocks):
        stride = 2 if i in (2, 4) else 1
        z = norm(y, block.norm1).relu()
        y = F.conv2d(z, block.beside.weight, stride=stride) if i in (0, 2, 4) else y
        z = norm(F.conv2d(z, block.conv1.weight, stride=stride, padding=1), block.norm2).relu()
        y = y + F.conv2d(z, block.conv2.weight, padding=1)
    assert len(model.blocks) == 6
    assert torch.allclose(model(x), norm(y, model.norm).relu().mean((2, 3)))


@pytest.mark.parametrize("model", ["resnet12", "wrn"])
@pytest.mark.parametrize("name", ["maml", "anil"])
def test_batched_inner_loops_equal_one_task_after_another(model: str, name: str) -> None:
    section = composed("task=vision/folder", f"algorithm={name}")["algorithm"] | {"inner_steps": 2}
    network = resnet12(widths=(3, 4, 5)) if model == "resnet12" else WRN(SMALL, depth=10, width=1, drop=0.0)
    learner: GradientLearner = construct(section, model=network, spec=SMALL)
    y = torch.arange(3).repeat_interleave(2).expand(2, -1)
    data = TaskBatch(*(Labelled(torch.rand(2, 6, 3, 22, 18), y, 3) for _ in range(2)))
    gradients = []
    for plan in (Plan(), Plan(batched=False, chunk=1)):
        other = copy.deepcopy(learner)
        Engine(other, plan).gradient(data)
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in other.parameters()])
    assert learner.batchable
    assert sum(float(g.abs().sum()) for g in gradients[0]) > 0
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("model", [resnet12(), WRN(SMALL, depth=10, width=1, drop=0.0)], ids=["resnet12", "wrn"])
def test_normalisation_follows_the_policy(model: nn.Module) -> None:
    model = model.double()
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    x, other = torch.rand(6, 3, 22, 18), torch.rand(6, 3, 22, 18)
    set_policy(model, "support")
    with statistics_from(model, 6):
        assert torch.allclose(model(torch.cat([x, other]))[:6], model(x))
    assert not torch.allclose(model(torch.cat([x, other]))[:6], model(x))
    set_policy(model, "running")
    model.eval()
    assert torch.allclose(model(torch.cat([x, other]))[:6], model(x))


def test_dropblock_drops_squares_of_about_the_rate() -> None:
    layer, x = DropBlock(0.1, 3), torch.rand(64, 8, 12, 10) + 1
    y = layer(x)
    lost = y == 0
    assert abs(float(lost.double().mean()) - 0.1) < 0.015  # a little less than .1: squares overlap
    assert torch.allclose(y[~lost], x[~lost] / (1 - lost.double().mean()))
    assert not torch.equal(lost[0, 0], lost[0, 1])
    # Every lost pixel is in some wholly lost 3x3 square: opening the mask changes nothing.
    whole = -F.max_pool2d(-lost.double(), 3, stride=1)
    assert torch.equal(F.max_pool2d(F.pad(whole, [2] * 4), 3, stride=1) > 0, lost)
    assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(3)
    first = layer.train()(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    tiny = DropBlock(0.5, 5)(torch.ones(4000, 1, 2, 2))
    assert abs(float((tiny == 0).double().mean()) - 0.5) < 0.05
    assert ((tiny == 0).flatten(1).sum(1) % 4 == 0).all()  # lost whole


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: construct({**CONV4, "width": [4, 4]}, spec=SMALL),
            r"model.width=\[4, 4\]: has 2 entries, but model.depth=4",
        ),
        (lambda: resnet12(widths=()), r"model.widths=\[\]"),
        (lambda: resnet12(widths=(4,) * 5), r"5 blocks halve a 22x18 image below one pixel; use at most 4"),
        (lambda: resnet12(drop=1.0), "model.drop=1: must be less than 1"),
        (lambda: WRN(SMALL, depth=12, width=1, drop=0.0), "model.depth=12: must be 6 n"),
    ],
)
def test_what_cannot_be_is_said(make, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize("name", ["resnet12", "wrn"])
def test_a_head_that_compares_maps_reads_them(name: str) -> None:
    model = resnet12(reduce="mean") if name == "resnet12" else WRN(SMALL, depth=10, width=1, drop=0.0)
    x = torch.rand(2, 3, 22, 18)
    model.eval()
    torch.testing.assert_close(model.maps(x).mean((2, 3)), model(x))
    words = ["algorithm=relation", "algorithm.head.width=4", "algorithm.head.hidden=4", "algorithm.train_query=2"]
    relation = construct(compose(words).config["algorithm"], model=model, spec=SMALL)
    y = torch.arange(3).expand(1, -1)
    images = Labelled(torch.rand(1, 3, 3, 22, 18), y, 3)
    assert relation.adapt(images)(images.x).shape == (1, 3, 3)


def test_batch_norm_without_its_factor() -> None:
    """MAML's network without convolutions: offsets alone, and the same outputs while factors are 1."""
    spec = Spec("classification", "image", (1, 4, 4), 3)
    torch.manual_seed(0)
    whole = MLP(spec, hidden=[6, 5], activation="relu", batch_norm=True, norm_scale=True, init="torch")
    bare = MLP(spec, hidden=[6, 5], activation="relu", batch_norm=True, norm_scale=False, init="torch")
    names = {name for name, _ in whole.named_parameters()} - {name for name, _ in bare.named_parameters()}
    assert names == {"layers.1.weight", "layers.4.weight"}
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if k not in names})
    x = torch.rand(7, 1, 4, 4)
    assert torch.allclose(whole(x), bare(x))
