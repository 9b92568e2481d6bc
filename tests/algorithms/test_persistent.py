"""Persistent evolution strategies over training problems, and the rule that they train, against derivations by hand."""

from __future__ import annotations

import copy
from math import log, tanh
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.adapted.optimizer import LearnedOptimizer
from metarun.algorithms.gradient.learned_optimizers import FactoredMLPOptimizer
from metarun.algorithms.gradient.persistent import PersistentEvolution
from metarun.errors import UserError
from metarun.tasks.episode import Spec
from metarun.tasks.optimization.problem import Problem
from tests.composed import composed

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec("optimization", "vector", (1,), 1)
KEYS: dict[str, Any] = {"inner_lr": 0.05, "inner_steps": 5, "test_steps": 4, "unroll": 2, "pairs": 2, "sigma": 0.1,
                        "cap": 6.0, "outer_lr": 1e-30, "decay_over": None, "decay": "linear"}  # fmt: skip


def rule_of(hidden: int = 3) -> FactoredMLPOptimizer:
    rule = FactoredMLPOptimizer(hidden=[hidden], decays=[0.5, 0.9], second=0.95)
    with torch.no_grad():
        for p in rule.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    return rule


def problems() -> list[Problem]:
    line = Problem({"0.weight": torch.randn(1, 3)}, torch.randn(3, 3), torch.randn(3, 1), 3, "relu", 0.7)
    conv = {"0.weight": torch.randn(2, 1, 3, 3), "0.bias": torch.randn(2), "1.weight": torch.randn(3, 8)}
    conv["1.bias"] = torch.randn(3)
    images = Problem(conv, torch.randn(8, 1, 4, 4), torch.randint(3, (8,)), 4, "tanh", log(3))
    return [line, images]


def module_of(problem: Problem) -> nn.Module:
    """The network of one of :func:`problems` as torch's own layers."""
    net: nn.Module
    if len(problem.initial) == 1:
        net = nn.Sequential(nn.Linear(3, 1, bias=False))
        names = ["0.weight"]
    else:
        net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
        names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    with torch.no_grad():
        for p, name in zip(net.parameters(), names, strict=True):
            p.copy_(problem.initial[name])
    return net


def loss_of(net: nn.Module, problem: Problem, step: int) -> Tensor:
    count = len(problem.y) // problem.batch
    chosen = slice(step % count * problem.batch, (step % count + 1) * problem.batch)
    x, y = problem.x[chosen], problem.y[chosen]
    raw = F.mse_loss(net(x), y) if y.is_floating_point() else F.cross_entropy(net(x), y)
    return raw / problem.unit


def test_the_estimate_against_particles_trained_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three outer steps: trainings of 5 and of 3 steps, in windows of 2, 2, 1 and of 2, 1 and then anew."""
    learner, data = PersistentEvolution(nn.Identity(), SPEC, rule=rule_of(), **KEYS), problems()
    lengths = iter([5, 3, 4])
    begin = learner.begin
    monkeypatch.setattr(learner, "begin", lambda problem: {**begin(problem), "steps": next(lengths)})
    shapes = {name: p.shape for name, p in learner.rule.named_parameters()}
    draws: list[dict[str, Tensor]] = []
    randn = torch.randn

    def recorded(*size: int, **options: Any) -> Tensor:
        drawn = randn(*size, **options)
        if not draws or len(draws[-1]) == len(shapes):
            draws.append({})
        draws[-1][[*shapes][len(draws[-1])]] = drawn
        return drawn

    monkeypatch.setattr(torch, "randn", recorded)
    gradients, losses = [], []
    for i in range(3):
        losses.append(learner.meta_step(data, i)["loss"].item())
        gradients.append({name: p.grad.clone() for name, p in learner.rule.named_parameters() if p.grad is not None})
    monkeypatch.undo()

    windows = [[range(2), range(2, 4), range(4, 5)], [range(2), range(2, 3), range(2)]]
    by_hand = [{name: torch.zeros(shape) for name, shape in shapes.items()} for _ in range(3)]
    means: list[list[float]] = [[], [], []]
    for t, problem in enumerate(data):
        for pair in range(2):
            drift = {name: torch.zeros(shape) for name, shape in shapes.items()}
            nets = [module_of(problem), module_of(problem)]
            states: list[Any] = [None, None]
            for outer, steps in enumerate(windows[t]):
                if steps.start == 0:
                    drift = {name: torch.zeros(shape) for name, shape in shapes.items()}
                    nets, states = [module_of(problem), module_of(problem)], [None, None]
                e = {name: 0.1 * drawn[pair] for name, drawn in draws[2 * outer + t].items()}
                drift = {name: drift[name] + e[name] for name in e}
                ends = []
                for side, sign in enumerate((1, -1)):
                    rule = copy.deepcopy(learner.rule)
                    with torch.no_grad():
                        for name, p in rule.named_parameters():
                            p += sign * e[name]
                    total = 0.0
                    for step in steps:
                        loss = loss_of(nets[side], problem, step)
                        found = dict(nets[side].named_parameters())
                        g = dict(zip(found, torch.autograd.grad(loss, [*found.values()]), strict=True))
                        state = rule.init(found) if states[side] is None else states[side]
                        with torch.no_grad():
                            changes, states[side] = rule.update(g, state, step)
                            for name, p in found.items():
                                p += changes[name]
                        total += min(loss.item(), 6.0) / len(steps)
                    ends.append(total)
                means[outer] += ends
                for name in e:
                    by_hand[outer][name] += drift[name] * (ends[0] - ends[1]) / (2 * 0.1**2) / 4
    assert losses == pytest.approx([sum(each) / 8 for each in means], rel=1e-10)
    for got, expected in zip(gradients, by_hand, strict=True):
        for name, value in expected.items():
            assert value.abs().max() > 0
            assert torch.allclose(got[name], value, rtol=1e-8, atol=1e-12), name


def test_a_particle_that_diverges_counts_as_the_cap() -> None:
    learner = PersistentEvolution(nn.Identity(), SPEC, rule=rule_of(), **{**KEYS, "inner_lr": 1e200})
    for i in range(4):
        metrics = learner.meta_step(problems(), i)
        assert 0 < metrics["loss"].item() <= 6.0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.rule.parameters())


def test_evaluation_takes_the_steps_of_the_exported_optimizer() -> None:
    learner, data = PersistentEvolution(nn.Identity(), SPEC, rule=rule_of(), **{**KEYS, "test_steps": 40}), problems()
    curves = learner.evaluate(data)["loss"]
    assert curves.shape == (2, 41)
    for problem, curve in zip(data, curves, strict=True):
        net = module_of(problem)
        optimizer = LearnedOptimizer(net.parameters(), learner.rule)
        for step, expected in enumerate(curve.tolist()):
            optimizer.zero_grad()
            loss = loss_of(net, problem, step)
            loss.backward()
            optimizer.step()
            assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert curve[-1] != curve[0]


def test_a_rule_that_fits_one_network_alone_is_refused() -> None:
    from metarun.algorithms.gradient.rules import LSLR, Adam

    for rule in (LSLR(), Adam(beta1=0.9, beta2=0.9, eps=1e-8, carry=False)):
        with pytest.raises(UserError, match=type(rule).__name__):
            PersistentEvolution(nn.Identity(), SPEC, rule=rule, **KEYS)


# The rule.

TENSORS = {"conv": (2, 3, 2, 1), "matrix": (3, 4), "vector": (5,), "scalar": ()}


def test_the_untrained_rule_is_adam() -> None:
    section = composed("task=optimization/networks")["algorithm"]["rule"]
    rule = FactoredMLPOptimizer(**{key: value for key, value in section.items() if key != "_target_"})
    rule.prepare({}, 0.01, 10)
    ours = [nn.Parameter(torch.randn(shape)) for shape in TENSORS.values()]
    torchs = [nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = LearnedOptimizer(ours, rule), torch.optim.Adam(torchs, lr=0.01, betas=(0.9, rule.second))
    for _ in range(30):
        for p, q in zip(ours, torchs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, torchs, strict=True):
        assert torch.allclose(p, q, rtol=1e-7, atol=1e-10)


def test_the_rule_by_hand() -> None:
    """Every input of every entry, from its definition, over four steps."""
    torch.manual_seed(2)
    rule = rule_of()
    rule.prepare({}, 0.1, 10)
    parameters = {name: torch.randn(shape) for name, shape in TENSORS.items()}
    history = [{name: torch.randn(shape) for name, shape in TENSORS.items()} for _ in range(4)]
    state = rule.init(parameters)
    for step, g in enumerate(history):
        with torch.no_grad():
            changes, state = rule.update(g, state, step)
        for name, p in parameters.items():
            assert torch.allclose(changes[name], change_by_hand(rule, p, [h[name] for h in history], step), rtol=1e-5)


def average(values: list[Tensor], decay: float) -> Tensor:
    """The exponential moving average of ``values`` from 0, without its bias."""
    weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0) / sum(weights)


def change_by_hand(rule: FactoredMLPOptimizer, p: Tensor, gradients: list[Tensor], step: int) -> Tensor:
    rows = p.shape[0] if p.dim() else 1
    seen = [g.reshape(rows, -1) for g in gradients[: step + 1]]
    first = [seen[-1], average(seen, 0.5), average(seen, 0.9)]
    second = average([g**2 for g in seen], 0.95)
    row = average([(g**2).mean(1, keepdim=True) for g in seen], 0.95)
    column = average([(g**2).mean(0, keepdim=True) for g in seen], 0.95)
    factored = row @ column / row.mean()
    entry = [*first, *(m / second.sqrt() for m in first), *(m / factored.sqrt() for m in first)]
    sizes = [x.square().mean().sqrt() for x in entry]
    tensor = [log(sizes[1] / sizes[0]), log(sizes[2] / sizes[0]), log(max(p.square().mean().sqrt(), 1e-3))]
    tensor += [log(p.numel()) / 4, log(rows) / 4, p.dim(), *(tanh(step / t) for t in (10, 100, 1000))]
    change = torch.empty_like(seen[-1])
    for i in range(rows):
        for j in range(change.shape[1]):
            sign = entry[5][i, j].sign()
            inputs = [
                *(float(sign * x[i, j] / size) for x, size in zip(entry, sizes, strict=True)),
                *map(float, tensor),
            ]
            hidden = torch.tanh(rule.layers[0].weight @ torch.tensor(inputs) + rule.layers[0].bias)
            b, c = rule.layers[2].weight @ hidden + rule.layers[2].bias
            change[i, j] = (-0.1 * c.exp() * (entry[5][i, j] + sign * b)).detach()
    return change.reshape(p.shape)


def test_an_entry_of_opposite_gradients_has_opposite_updates() -> None:
    rule = rule_of()
    rule.prepare({}, 0.1, 10)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0])
    states = [rule.init({"p": torch.ones(5)}) for _ in range(2)]
    with torch.no_grad():
        for step in range(3):
            g = torch.randn(5)
            one, states[0] = rule.update({"p": g}, states[0], step)
            other, states[1] = rule.update({"p": signs * g}, states[1], step)
            assert torch.allclose(one["p"], signs * other["p"], rtol=1e-9)


def test_the_rule_sees_no_scale_of_the_loss() -> None:
    rule = rule_of()
    rule.prepare({}, 0.1, 10)
    parameters = {name: torch.randn(shape) for name, shape in TENSORS.items()}
    g = {name: torch.randn(shape) for name, shape in TENSORS.items()}
    with torch.no_grad():
        one, other = (rule.update({n: s * v for n, v in g.items()}, rule.init(parameters), 0)[0] for s in (1, 1e4))
    for name in g:
        assert torch.allclose(one[name], other[name], rtol=1e-6)
