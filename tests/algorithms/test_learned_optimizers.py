"""Learned optimizers, fresh starts and truncated windows, against independent derivations in float64."""

from __future__ import annotations

import copy
from itertools import islice
from math import exp, log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_gradient import ADAPTED, LR, NORMS, RULES, TASKS, apart, batch, body, build, outer_gradient, perturb
from test_gradient import unrolled_by_hand as unrolled_by_hand_of_maml
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithms.gradient.learned_optimizers import LSTMCell, log_and_sign
from metarun.algorithms.gradient.learner import GradientLearner
from metarun.errors import UserError
from metarun.tasks.episode import TaskBatch
from metarun.tasks.regression.quadratics import Quadratics

LEARNED = ["l2l", "l2l_mlp"]


pytestmark = pytest.mark.usefixtures("float64")


# The rules themselves.


def test_the_lstm_cell_is_torchs_own_with_a_raised_forget_gate() -> None:
    cell, torchs = LSTMCell(3, 5), nn.LSTMCell(3, 5)
    with torch.no_grad():
        weights, offsets = cell.gates.weight.split([3, 5], 1), cell.gates.bias.clone()
        offsets[5:10] += 1
        torchs.weight_ih.copy_(weights[0])
        torchs.weight_hh.copy_(weights[1])
        torchs.bias_ih.copy_(offsets)
        torchs.bias_hh.zero_()
    x, h, c = torch.randn(7, 3), torch.randn(7, 5), torch.randn(7, 5)
    for got, expected in zip(cell(x, h, c), torchs(x, (h, c)), strict=True):
        assert torch.allclose(got, expected, rtol=1e-12, atol=0)


def test_log_and_sign_is_the_papers_formula() -> None:
    for p in (10.0, 5.0):
        for g in (-3.0, -exp(-p) * 1.01, -exp(-p) * 0.99, -1e-12, 0.0, 1e-9, 0.5, 100.0):
            expected = [log(abs(g)) / p, g / abs(g)] if abs(g) >= exp(-p) else [-1.0, exp(p) * g]
            assert log_and_sign(torch.tensor([g]), p)[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_mlp_optimizer_sees_a_losss_scale_by_one_input_alone() -> None:
    rule, moments = build("l2l_mlp", body()).rule, torch.randn(12, 5)
    small, large = (rule.inputs(scale * moments, 30) for scale in (1e-3, 10.0))
    assert small.shape == (12, 9)
    differ = (small - large).abs().amax(0) > 1e-9
    assert differ.tolist() == [False] * 5 + [True] + [False] * 3
    assert float((large - small)[0, 5]) == pytest.approx(log(1e4))


def test_the_mlp_optimizer_with_given_weights_is_a_mixture_of_momenta() -> None:
    learner, data = build("l2l_mlp", body(), rule__decays=[0.5, 0.9], inner_lr=0.1), batch()
    with torch.no_grad():
        learner.rule.layers[-1].weight.zero_()  # type: ignore[index,union-attr]
        learner.rule.layers[-1].bias.copy_(torch.tensor([0.2, -1.0, 0.5]))  # type: ignore[index,union-attr]
    steps_taken = learner.trajectory(data.support, 4, None)
    phi, means = {n: p[1] for n, p in next(steps_taken).parameters.items()}, dict.fromkeys((0.5, 0.9), 0.0)
    for now in steps_taken:
        phi = {n: p.detach().requires_grad_() for n, p in phi.items()}
        loss = F.cross_entropy(functional_call(learner.net, phi, (data.support.x[1],)), data.support.y[1])
        g = torch.cat([d.flatten() for d in torch.autograd.grad(loss, list(phi.values()))])
        means = {d: d * m + (1 - d) * g for d, m in means.items()}
        move = -0.1 / 3 * (exp(0.2) * g + exp(-1.0) * means[0.5] + exp(0.5) * means[0.9])
        parts = move.split([p.numel() for p in phi.values()])
        phi = {n: p + part.view_as(p) for (n, p), part in zip(phi.items(), parts, strict=True)}
        for n, p in phi.items():
            assert torch.allclose(now.parameters[n][1], p, rtol=1e-10, atol=1e-13), n


@pytest.mark.parametrize("name", ["Momentum", "RMSprop", "Adam"])
def test_rules_move_as_torchs_optimizers(name: str) -> None:
    keys: dict[str, dict[str, Any]] = {
        "Momentum": {"momentum": 0.9},
        "RMSprop": {"decay": 0.9, "eps": 1e-8},
        "Adam": {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "carry": False},
    }
    learner = build("scratch", body(), rule={"_target_": f"{RULES}.{name}", **keys[name]}, inner_lr=0.05)
    data = batch()
    steps_taken = learner.trajectory(data.support, 5, None)
    start = next(steps_taken).parameters
    net = copy.deepcopy(learner.net).requires_grad_()
    with torch.no_grad():
        for n, p in net.named_parameters():
            p.copy_(start[n][1])
    optimizer = {
        "Momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.9, eps=1e-8),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.9, 0.99), eps=1e-8),
    }[name](net.parameters())
    for now in steps_taken:
        optimizer.zero_grad()
        F.cross_entropy(net(data.support.x[1]), data.support.y[1]).backward()
        optimizer.step()
        for n, p in net.named_parameters():
            assert torch.allclose(now.parameters[n][1], p, rtol=1e-9, atol=1e-12), n


def test_second_order_through_rmsprop_against_a_loop_unrolled_by_hand() -> None:
    rule = {"_target_": f"{RULES}.RMSprop", "decay": 0.8, "eps": 1e-3}
    learner, data = perturb(build("maml", body("batch"), rule=rule)), batch()
    past: list[dict[str, Tensor]] = []

    def move(phi: dict[str, Tensor], g: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        past[:] = [*past[:step], g]
        changes = {}
        for n in g:
            v = sum(0.2 * 0.8 ** (step - k) * past[k][n] ** 2 for k in range(step + 1))
            changes[n] = -LR * g[n] / ((v + 1e-300) ** 0.5 + 1e-3)  # which has a slope where all of g is exactly 0
        return changes

    # Batch norm cancels the convolution's offset: its gradient is rounding, whose root has no derivative to speak of.
    names = [n for n in learner.adapted_names if n != "0.0.bias"]
    got, by_hand = outer_gradient(learner, data), unrolled_by_hand_of_maml(learner, data, ADAPTED["maml"], move)
    assert apart({n: got[f"net.{n}"] for n in names}, {n: by_hand[f"net.{n}"] for n in names}) < 1e-9


# RandomInit starts.


def start(learner: GradientLearner, data: TaskBatch) -> dict[str, Tensor]:
    """The adapting parameters of all tasks before the first step."""
    return next(learner.trajectory(data.support, 0, None)).parameters


def test_every_task_starts_from_a_point_of_its_own_that_the_seed_decides() -> None:
    learner, data = build("scratch", body("batch")), batch()
    assert not any(p.requires_grad for p in learner.parameters())

    def drawn(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return start(learner, data)

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert (
        [*first] == learner.adapted_names == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight", "1.bias"]
    )
    for name, p in first.items():
        kept = name.startswith("0.1")
        assert torch.equal(p, again[name])
        assert torch.equal(p[0], p[1]) is kept is torch.equal(p, other[name])
    assert torch.equal(first["0.1.weight"], torch.ones(TASKS, 3))


def test_starting_points_have_the_asked_or_the_models_own_distribution() -> None:
    tasks = TaskBatch(
        *(part.map(lambda v: v[:1].expand(400, *v.shape[1:])) for part in (batch().support, batch().query))
    )
    given = start(build("scratch", body(), adapts__std=0.2), tasks)
    assert float(given["1.weight"].std()) == pytest.approx(0.2, rel=0.02)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 50), nn.Tanh())
    with torch.no_grad():
        model[1].bias.fill_(0.25)  # type: ignore[operator,union-attr]
        model[1].weight.uniform_(-3, 1)
    own = start(build("scratch", model, adapts__std=None), tasks)
    assert (own["0.1.bias"] == 0.25).all()
    assert set(own["0.1.weight"].unique().tolist()) <= set(model[1].weight.flatten().tolist())
    assert float(own["0.1.weight"].mean()) == pytest.approx(float(model[1].weight.detach().mean()), abs=0.01)
    assert not torch.equal(own["0.1.weight"][0], own["0.1.weight"][1])


# The outer gradient.


def objective(learner: GradientLearner, data: TaskBatch, steps: int) -> Tensor:
    """The sum over the inner loop of the query loss, from the same random starts whenever it is called."""
    torch.manual_seed(5)
    steps_taken = islice(learner.trajectory(data.support, steps, learner.inner_batch), 1, None)
    return torch.stack([learner.query_loss(now.parameters, now.dims, data)[0] for now in steps_taken]).sum()


def gradient_at(learner: GradientLearner, data: TaskBatch) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return outer_gradient(learner, data)


@pytest.mark.parametrize("norm", [*NORMS, "support"])
@pytest.mark.parametrize("name", LEARNED)
def test_the_untruncated_gradient_equals_finite_differences(name: str, norm: str) -> None:
    changes = {"outer__unroll": None, "outer__first_order": False, "adapts__std": 0.3, "inner_batch": 4}
    policy = "support" if norm == "support" else "transductive"
    learner = perturb(build(name, body("batch" if norm == "support" else norm), norm=policy, **changes))
    data = batch()
    gradient = gradient_at(learner, data)
    learned = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    assert all(n.startswith("rule.") for n in learned)
    for _ in range(2):
        direction = {n: torch.randn_like(p) for n, p in learned.items()}
        exact = sum(float((gradient[n] * direction[n]).sum()) for n in learned)
        values = []
        for eps in (1e-6, -1e-6):
            with torch.no_grad():
                for n, p in learned.items():
                    p += eps * direction[n]
                values.append(float(objective(learner, data, learner.inner_steps)))
                for n, p in learned.items():
                    p -= eps * direction[n]
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(exact, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("first_order", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_windows_against_a_loop_unrolled_by_hand(norm: str, first_order: bool) -> None:
    """LSTM optimizer, 5 inner steps in windows of 2: each window's gradient; then a new meta-batch."""
    changes = {"inner_steps": 5, "outer__unroll": 2, "outer__first_order": first_order, "adapts__std": 0.3}
    learner, data = perturb(build("l2l", body(norm), **changes)), batch()
    rule = learner.rule
    meta = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    torch.manual_seed(3)
    begin = start(learner, data)
    torch.manual_seed(3)

    def lstm(g: Tensor, state: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = torch.stack([(g.abs() + 0).clamp(min=exp(-10)).log() / 10, (g * exp(10)).clamp(-1, 1)], 1)
        for layer, cell in enumerate(rule.cells):
            h, c = state[layer]
            i, f, n, o = (torch.cat([x, h], 1) @ cell.gates.weight.T + cell.gates.bias).chunk(4, 1)
            c = (f + 1).sigmoid() * c + i.sigmoid() * n.tanh()
            state[layer] = (o.sigmoid() * c.tanh(), c)
            x = state[layer][0]
        return LR * (x @ rule.output.weight.T + rule.output.bias)[:, 0]

    walks = []
    for t in range(TASKS):
        phi = {n: p[t].detach().clone() for n, p in begin.items()}
        size = sum(p.numel() for p in phi.values())
        walks.append((phi, [(torch.zeros(size, 20), torch.zeros(size, 20)) for _ in range(2)]))
    for window in (2, 2, 1):
        got = outer_gradient(learner, batch() if window != 2 else data)  # later meta-batches are not yet met
        total = torch.zeros(())
        for t, (phi, state) in enumerate(walks):
            (sx, sy), (qx, qy) = ((part.x[t], part.y[t]) for part in (data.support, data.query))
            phi = {n: p.detach().requires_grad_() for n, p in phi.items()}
            state[:] = [(h.detach(), c.detach()) for h, c in state]
            for _ in range(window):
                loss = F.cross_entropy(functional_call(learner.net, phi, (sx,)), sy)
                g = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
                flat = torch.cat([x.flatten() for x in g])
                move = lstm(flat.detach() if first_order else flat, state).split([p.numel() for p in phi.values()])
                phi = {n: p + m.view_as(p) for (n, p), m in zip(phi.items(), move, strict=True)}
                total = total + F.cross_entropy(functional_call(learner.net, phi, (qx,)), qy) / TASKS
            walks[t] = (phi, state)
        by_hand = dict(zip(meta, torch.autograd.grad(total, list(meta.values())), strict=True))
        # The offset that batch norm cancels has a gradient of rounding, to which exp(10) gives a little weight.
        assert apart({n: got[n] for n in meta}, by_hand) < 1e-9
    assert learner.outer.kept is None
    got = gradient_at(learner, batch())
    assert learner.outer.kept is not None
    assert any(v.any() for v in got.values())


@pytest.mark.parametrize("name", LEARNED)
def test_windows_go_on_exactly_after_a_restore_and_move_with_the_module(name: str) -> None:
    def stepped(learner: GradientLearner, iteration: int) -> None:
        torch.manual_seed(iteration)
        learner.meta_step(batch(), iteration)

    learner, again = (build(name, body("batch"), inner_steps=6, outer__unroll=2) for _ in range(2))
    stepped(learner, 0)
    torch.save(learner.checkpoint(), "state.pt")
    again.restore(torch.load("state.pt", weights_only=True))
    for iteration in (1, 2, 3):
        stepped(learner, iteration)
        stepped(again, iteration)
        assert (learner.outer.kept is None) is (iteration == 2)
    assert all(torch.equal(p, q) for p, q in zip(learner.parameters(), again.parameters(), strict=True))
    kept = learner.to("meta").outer.kept
    assert kept is not None
    assert kept["support"][0].device.type == "meta"


def test_what_cannot_be_windowed_is_refused() -> None:
    with pytest.raises(UserError, match="inner_steps=0"):
        build("l2l", body(), inner_steps=0)
    adam = {"_target_": f"{RULES}.Adam", "beta1": 0.0, "beta2": 0.99, "eps": 1e-8, "carry": True}
    with pytest.raises(UserError, match=r"rule.carry=true"):
        build("l2l", body(), rule=adam)


# They learn.


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_learns_to_optimize_quadratics(name: str) -> None:
    """In seconds: better on new quadratics, after 20 steps, than descent at the best of many rates."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    task = Quadratics(0, shot=5, size=5, distribution="uniform")
    from metarun.models.linear import Linear

    def error(learner: GradientLearner) -> float:
        torch.manual_seed(0)
        return float(learner.evaluate(task.batch("test", range(100)))["mse"][:, -1].log10().mean())

    steps = {"test_steps": 20, "spec": task.spec}
    rates = [0.01 * 1.5**i for i in range(12)]
    descent = min(error(build("scratch", Linear(bias=False), inner_lr=lr, **steps)) for lr in rates)
    learner = build(name, Linear(bias=False), inner_steps=20, outer__unroll=10, inner_lr=0.1, outer_lr=0.01,
                    decay_over=200, **steps)  # fmt: skip
    before = error(learner)
    for i in range(200):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(16 * i, 16 * i + 16)), i)
    assert error(learner) < min(before, descent) - 0.05, (before, descent, error(learner))
