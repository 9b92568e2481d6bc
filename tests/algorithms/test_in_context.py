"""In-context learning in float64: what a prediction may depend on, the block by hand, the controls' closed forms."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.algorithms.amortised.in_context import Block, InContext
from metarun.algorithms.amortised.sequence import encode_targets, shuffled
from metarun.config.build import construct
from metarun.models.attention import attend
from metarun.models.linear import Linear
from metarun.models.mlp import MLP
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed

REGRESSION = Spec("regression", "vector", (3,), 2)
CLASSES = Spec("classification", "vector", (3,), 3)


def build(name: str, spec: Spec = REGRESSION, model: nn.Module | None = None, **changes: Any) -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    section = composed(f"algorithm={name}")["algorithm"] | changes
    return construct(section, model=model or Linear(bias=False), spec=spec)


def transformer(spec: Spec = REGRESSION, **changes: Any) -> InContext:
    return build("in_context", spec, **{"width": 8, "layers": 2, "heads": 2, **changes})


def regression(count: int = 5, asked: int = 2) -> TaskBatch:
    torch.manual_seed(1)
    sx, sy, qx, qy = (torch.randn(2, n, d) for n, d in ((count, 3), (count, 2), (asked, 3), (asked, 2)))
    return TaskBatch(Labelled(sx, sy), Labelled(qx, qy))


def classes() -> TaskBatch:
    torch.manual_seed(1)
    y = torch.arange(3).repeat_interleave(2).expand(2, -1)
    return TaskBatch(Labelled(torch.randn(2, 6, 3), y, 3), Labelled(torch.randn(2, 6, 3), y, 3))


def test_attention_against_a_loop() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    seen = torch.rand(3, 5) < 0.5
    seen[:, 0] = True
    for mask in (None, seen):
        got = attend(q, k, v, 2, mask)
        for t in range(2):
            for n in range(3):
                for part in (slice(0, 4), slice(4, 8)):
                    among = [m for m in range(5) if mask is None or mask[n, m]]
                    weights = [(q[t, n, part] @ k[t, m, part] / sqrt(4)).exp() for m in among]
                    want = sum(w * v[t, m, part] for w, m in zip(weights, among, strict=True)) / sum(weights)
                    assert torch.allclose(got[t, n, part], want, rtol=1e-12)


def test_a_block_by_hand() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    block, tokens = Block(8, 2), torch.randn(1, 4, 8)
    seen = torch.ones(4, 4, dtype=torch.bool).tril()
    normal = lambda t: (t - t.mean(-1, keepdim=True)) / (t.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()  # noqa: E731
    q, k, v = (normal(tokens) @ block.attention.weight.mT + block.attention.bias).split(8, -1)
    mixed = tokens + attend(q, k, v, 2, seen) @ block.out.weight.mT + block.out.bias
    up = normal(mixed) @ block.units[0].weight.mT + block.units[0].bias
    up = up * 0.5 * (1 + torch.erf(up / sqrt(2)))
    assert torch.allclose(block(tokens, seen), mixed + up @ block.units[2].weight.mT + block.units[2].bias, rtol=1e-10)


def changed_rows(before: Tensor, after: Tensor) -> list[int]:
    """Which of the predictions [1, M, D] differ."""
    return [m for m in range(before.shape[1]) if not torch.equal(before[:, m], after[:, m])]


def test_a_prediction_depends_on_the_pairs_before_it_alone() -> None:
    """A change of pair j's label moves the answers to later questions and no other; another question moves none."""
    learner, data = transformer(), regression()
    x = torch.cat([data.support.x, data.query.x], 1)
    before = torch.tensor([0, 1, 2, 3, 4, 5, 5])
    first = learner.read(data.support.x, data.support.y, x, before)
    for j in range(5):
        y = data.support.y.clone()
        y[:, j] += 1
        assert changed_rows(first, learner.read(data.support.x, y, x, before)) == list(range(j + 1, 7))
        moved = data.support.x.clone()
        moved[:, j] += 1
        assert changed_rows(first, learner.read(moved, data.support.y, x, before)) == list(range(j + 1, 7))
        other = x.clone()
        other[:, j] += 1
        assert changed_rows(first, learner.read(data.support.x, data.support.y, other, before)) == [j]


def test_every_context_length_is_asked_in_training_as_in_evaluation() -> None:
    """The outer loss is the mean over lengths of what an adapted learner that saw only so many pairs gets wrong."""
    learner, data = transformer(), regression()
    adapted = list(learner.adaptations(data.support))
    assert len(adapted) == 6
    errors = [
        (adapted[k](data.support.x[:, k : k + 1]) - data.support.y[:, k : k + 1]).square().mean() for k in range(5)
    ]
    errors += [(adapted[5](data.query.x[:, k : k + 1]) - data.query.y[:, k : k + 1]).square().mean() for k in range(2)]
    assert learner.outer_loss(data)[0].item() == pytest.approx((sum(errors) / 7).item(), rel=1e-10)
    assert learner.evaluate(data)["mse"].shape == (2, 6)


def test_classes_are_read_in_a_random_order_as_one_hot() -> None:
    learner, data = transformer(CLASSES), classes()
    seen: list[Tensor] = []
    learner.labels.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    metrics = learner.evaluate(data)
    assert metrics["accuracy"].shape == (2, 1)
    assert torch.equal(seen[0].sum(-1), torch.ones(2, 6))
    assert torch.equal(seen[0].sum(1), torch.full((2, 3), 2.0))
    order = seen[0].argmax(-1)
    assert not torch.equal(order, data.support.y)
    assert not torch.equal(order[0], order[1])
    assert learner.accepts(None)
    mixed = shuffled(data.support)
    for t in range(2):
        pairs = {(*x.tolist(), int(y)) for x, y in zip(data.support.x[t], data.support.y[t], strict=True)}
        assert pairs == {(*x.tolist(), int(y)) for x, y in zip(mixed.x[t], mixed.y[t], strict=True)}
    assert torch.equal(
        encode_targets(CLASSES, torch.tensor([[2, 0]]), torch.float64), torch.tensor([[[0.0, 0, 1], [1, 0, 0]]])
    )


def test_projection_turns_a_share_of_meta_train_tasks_and_no_other() -> None:
    learner = transformer(project=0.5)
    x = torch.randn(400, 4, 3)
    torch.manual_seed(0)
    turned = learner._projected(x)
    same = [torch.equal(a, b) for a, b in zip(x, turned, strict=True)]
    assert 160 < sum(same) < 240
    # One matrix a task: what is linear in x stays so.
    one = next(t for t, s in zip(range(400), same, strict=True) if not s)
    matrix = torch.linalg.solve(x[one, :3], turned[one, :3])
    assert torch.allclose(x[one, 3] @ matrix, turned[one, 3])
    data = regression()
    torch.manual_seed(3)
    first = learner.evaluate(data)["mse"]
    assert torch.equal(learner.evaluate(data)["mse"], first)
    assert learner.outer_loss(data)[0] != transformer().outer_loss(data)[0]


def linear_task(count: int, noise: float) -> tuple[Tensor, Tensor]:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(2)
    x = torch.randn(2, count, 3)
    return x, x @ torch.randn(2, 3, 2) + noise * torch.randn(2, count, 2)


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_ridge_is_the_posterior_mean(count: int) -> None:
    """Of the joint normal of (targets, y*): cov(y*, targets) cov(targets)^-1 targets, with w ~ N(0, I)."""
    x, y = linear_task(count, 0.5)
    query = torch.randn(2, 4, 3)
    got = build("ridge", penalty=0.25).fit(x, y)(query)
    for t in range(2):
        want = query[t] @ x[t].T @ torch.linalg.inv(x[t] @ x[t].T + 0.25 * torch.eye(count)) @ y[t]
        assert torch.allclose(got[t], want, rtol=1e-9, atol=1e-12)


def test_least_squares_and_averaging_and_neighbours_by_hand() -> None:
    x, y = linear_task(7, 0.5)
    query = torch.randn(2, 4, 3)
    for t in range(2):
        w = torch.linalg.inv(x[t].T @ x[t]) @ x[t].T @ y[t]
        assert torch.allclose(build("least_squares").fit(x, y)(query)[t], query[t] @ w)
        mean = sum(x[t, i][:, None] * y[t, i] for i in range(7)) / 7
        assert torch.allclose(build("averaging").fit(x, y)(query)[t], query[t] @ mean)
        got = build("nearest_neighbour", neighbours=2).fit(x, y)(query)
        for m in range(4):
            nearest = sorted(range(7), key=lambda i: float((x[t, i] - query[t, m]).norm()))[:2]
            assert torch.allclose(got[t, m], (y[t, nearest[0]] + y[t, nearest[1]]) / 2)
    few, of = linear_task(2, 0.0)  # underdetermined: through all points, w in their span
    fit = build("least_squares").fit(few, of)
    assert torch.allclose(fit(few), of)
    beside = torch.linalg.cross(few[:, 0], few[:, 1])[:, None]
    assert torch.allclose(fit(beside), torch.zeros(2, 1, 2), atol=1e-12)
    for name in ("least_squares", "averaging", "nearest_neighbour", "lasso", "ridge"):
        assert build(name).fit(few[:, :0], of[:, :0])(query).abs().max() == 0


@pytest.mark.parametrize("count", [2, 7])
def test_lasso_is_at_its_optimum(count: int) -> None:
    """The subgradient: x' (y - x w) / N is the penalty times the sign of w, and within it where w is 0."""
    x, y = linear_task(count, 0.1)
    w = build("lasso", penalty=0.3, iterations=3000).fit(x, y)(torch.eye(3).expand(2, 3, 3))
    slope = x.mT @ (y - x @ w) / count
    zero = w == 0
    assert 0 < int(zero.sum()) < w.numel()
    assert torch.allclose(slope[~zero], 0.3 * w[~zero].sign(), atol=1e-8)
    assert slope[zero].abs().max() <= 0.3 + 1e-8


def test_controls_learn_nothing() -> None:
    torch.set_default_dtype(torch.float64)
    control = build(
        "ridge", model=MLP(REGRESSION, hidden=[4], activation="relu", batch_norm=False, norm_scale=True, init="torch")
    )
    before = {name: value.clone() for name, value in control.state_dict().items()}
    metrics = control.meta_step(regression(), 0)
    assert set(metrics) == {"loss"}
    assert all(torch.equal(value, before[name]) for name, value in control.state_dict().items())
    assert control.evaluate(regression())["mse"].shape == (2, 6)


def test_learns_linear_functions() -> None:
    """In seconds: half the error of predicting 0, from 8 examples of a line through the origin."""
    words = ["task=regression/functions", "task.size=2", "task.shot=8", "task.noise=0.1", "algorithm.width=32"]
    config = composed(*words, "algorithm.layers=2", "algorithm.outer_lr=0.006", "algorithm.decay_over=200")
    task = construct(config["task"], seed=0)
    torch.manual_seed(0)
    learner = construct(config["algorithm"], model=Linear(bias=False), spec=task.spec)
    for i in range(200):
        learner.meta_step(task.batch("train", range(32 * i, 32 * i + 32), learner.train_shape(task.shape)), i)
    mse = learner.evaluate(task.batch("test", range(500)))["mse"].mean(0)
    assert mse[8] < 0.5 * mse[0]
    assert mse[0] == pytest.approx(2.0, abs=0.4)
