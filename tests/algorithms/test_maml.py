"""MAML's meta-gradient in float64, against finite differences and against a loop unrolled by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.gradient.adapts import ParameterSubset
from metarun.algorithms.gradient.learner import GradientLearner
from metarun.algorithms.gradient.losses import TaskLoss
from metarun.algorithms.gradient.outer import Unrolled
from metarun.algorithms.gradient.rules import SGD
from metarun.models.conv4 import Conv4
from metarun.tasks.episode import Labelled, Spec, TaskBatch

WAY, SHOT, LR = 3, 2, 0.3
SPEC = Spec("classification", "image", (1, 8, 8), WAY)


pytestmark = pytest.mark.usefixtures("float64")


class NativeNorm(nn.Module):
    """A user's own module, with torch's batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x))).mean((2, 3))


def conv(downsample: str = "pool") -> nn.Module:
    return Conv4(SPEC, width=3, depth=2, downsample=downsample, halvings=None, reduce="flatten", norm_scale=True)


def maml(
    model: nn.Module,
    steps: int,
    first_order: bool = False,
    norm: str = "transductive",
    adapt_norm: bool = True,
    part: str = "all",
) -> GradientLearner:
    return GradientLearner(
        model, SPEC, adapts=ParameterSubset(part=part, norm=adapt_norm), rule=SGD(), loss=TaskLoss(),
        outer=Unrolled(first_order=first_order), inner_lr=LR, inner_steps=steps, test_steps=steps, norm=norm,
        head_init=None, train_shot=None, train_query=None, outer_lr=1e-3, halve_every=None,
        inner_batch=None, test_batch=None, outer_optimizer="adam", decay_over=None, decay="linear",
    )  # fmt: skip


def batch(tasks: int = 2) -> TaskBatch:
    y = torch.arange(WAY).repeat_interleave(SHOT).expand(tasks, -1)
    return TaskBatch(*(Labelled(torch.randn(tasks, WAY * SHOT, 1, 8, 8), y, WAY) for _ in range(2)))


def meta_gradient(learner: GradientLearner, data: TaskBatch) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.outer_loss(data)[0].backward()
    return {name: p.grad.clone() for name, p in learner.net.named_parameters()}


def by_hand(learner: GradientLearner, data: TaskBatch, downsample: str) -> dict[str, Tensor]:
    """The same gradient, written out: F.conv2d, F.batch_norm, and torch.autograd through every inner step."""
    start = dict(learner.net.named_parameters())

    def forward(p: dict[str, Tensor], x: Tensor) -> Tensor:
        for i in range(2):
            x = F.conv2d(x, p[f"0.blocks.{i}.conv.weight"], stride=1 if downsample == "pool" else 2, padding=1)
            x = F.batch_norm(x, None, None, p[f"0.blocks.{i}.norm.weight"], p[f"0.blocks.{i}.norm.bias"], training=True)
            x = F.relu(x)
            x = F.max_pool2d(x, 2) if downsample == "pool" else x
        return F.linear(x.flatten(1), p["1.weight"], p["1.bias"])

    total = torch.zeros(())
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        p = dict(start)
        for _ in range(learner.inner_steps):
            loss = F.cross_entropy(forward(p, sx), sy)
            inner = [name for name in p if name in learner.adapted_names]
            grads = torch.autograd.grad(loss, [p[n] for n in inner], create_graph=not learner.outer.first_order)
            p = p | {n: p[n] - LR * g for n, g in zip(inner, grads, strict=True)}
        total = total + F.cross_entropy(forward(p, qx), qy)
    gradients = torch.autograd.grad(total / len(data.support.y), list(start.values()))
    return dict(zip(start, gradients, strict=True))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


@pytest.mark.parametrize("adapt_norm", [True, False])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_meta_gradient_equals_the_loop_unrolled_by_hand(
    steps: int, first_order: bool, downsample: str, adapt_norm: bool
) -> None:
    learner, data = maml(conv(downsample), steps, first_order, adapt_norm=adapt_norm), batch()
    assert learner.batchable
    assert relative(flat(meta_gradient(learner, data)), flat(by_hand(learner, data, downsample))) < 1e-12


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_features_are_computed_once_if_the_head_alone_adapts(steps: int, first_order: bool, alone: bool) -> None:
    """The gradient is that of the loop by hand, which computes them in every step."""
    learner, data = maml(conv(), steps, first_order, adapt_norm=False, part="head"), batch()
    learner.batch_tasks = not alone
    calls: list[int] = []
    learner.model.register_forward_hook(lambda *_: calls.append(1))
    found = flat(meta_gradient(learner, data))
    assert relative(found, flat(by_hand(learner, data, "pool"))) < 1e-12
    assert len(calls) == 2 * (len(data.support.y) if alone else 1)  # support and query set


class Own(nn.Sequential):
    """A user's own module, which may do anything."""


@pytest.mark.parametrize(("body", "dear"), [(lambda: nn.Sequential(conv(), nn.Dropout(0.1)), True),
                                            (lambda: nn.Sequential(conv(), nn.Dropout(0.1)).eval(), False),
                                            (lambda: Own(conv()), True)])  # fmt: skip
def test_features_that_may_change_are_computed_in_every_step(body: Callable[[], nn.Module], dear: bool) -> None:
    learner, calls = maml(body(), 3, part="head", adapt_norm=False), []
    learner.model.register_forward_hook(lambda *_: calls.append(1))
    learner.outer_loss(batch())
    assert len(calls) == (4 if dear else 2)


@pytest.mark.parametrize(("native", "norm"), [(False, "transductive"), (False, "support"), (True, "transductive")])
@pytest.mark.parametrize("steps", [1, 2])
def test_meta_gradient_equals_finite_differences(steps: int, native: bool, norm: str) -> None:
    learner, data = maml(NativeNorm() if native else conv(), steps, norm=norm), batch()
    assert learner.batchable
    gradient = meta_gradient(learner, data)
    parameters = dict(learner.net.named_parameters())
    for _ in range(2):
        direction = {name: torch.randn_like(p) for name, p in parameters.items()}
        scale = torch.cat([d.flatten() for d in direction.values()]).norm()
        eps, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                for name, p in parameters.items():
                    p += sign * eps * direction[name] / scale
            values.append(learner.outer_loss(data)[0].item())
            with torch.no_grad():
                for name, p in parameters.items():
                    p -= sign * eps * direction[name] / scale
        numeric = (values[0] - values[1]) / (2 * eps)
        exact = sum(float((gradient[n] * direction[n]).sum()) for n in gradient) / float(scale)
        assert abs(numeric - exact) <= 1e-6 * max(abs(exact), float(flat(gradient).norm()) * 0.1)


def test_first_order_differs_and_batching_over_tasks_does_not() -> None:
    data, learner = batch(), maml(conv(), 2)
    second = flat(meta_gradient(learner, data))
    learner.batch_tasks = False
    assert relative(flat(meta_gradient(learner, data)), second) < 1e-12
    learner.outer.first_order = True
    assert relative(flat(meta_gradient(learner, data)), second) > 1e-3


def test_support_statistics_make_a_query_independent_of_its_company() -> None:
    data = batch()
    for norm, independent in (("support", True), ("transductive", False)):
        learner = maml(conv(), 1, norm=norm).eval()
        with torch.no_grad():
            adapted = learner.adapt(data.support)
            together, alone = adapted(data.query.x)[:, :2], adapted(data.query.x[:, :2])
        assert torch.allclose(together, alone, atol=1e-12) is independent
