"""Every gradient-based method, as its YAML puts it together, against independent derivations in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithms.gradient.inner_loop import minibatches
from metarun.algorithms.gradient.learner import GradientLearner
from metarun.algorithms.solve import neumann_series
from metarun.algorithms.supervised import prediction_metrics
from metarun.config.build import construct
from metarun.config.catalogue import catalogue
from metarun.errors import UserError
from metarun.models.lowrank import LowRankLayer
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.tasks.regression.sinusoid import Sinusoid
from tests.composed import composed
from tests.slow import slow_but

WAY, SHOT, TASKS, LR, STEPS = 3, 2, 2, 0.3, 2
SPEC = Spec("classification", "image", (1, 6, 6), WAY)
NORMS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "batch": lambda: BatchNorm(3),
    "layer": lambda: nn.LayerNorm([3, 4, 4]),
    "native": lambda: nn.BatchNorm2d(3),
}
RULES = "metarun.algorithms.gradient.rules"
Move = Callable[[dict[str, Tensor], dict[str, Tensor], int], dict[str, Tensor]]


pytestmark = pytest.mark.usefixtures("float64")


def body(norm: str = "none") -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), NORMS[norm](), nn.Tanh(), nn.Flatten())


class Odd(nn.Module):
    """A user's own module: a weight used twice under two names, torch's batch norm in a list, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList([nn.BatchNorm1d(6)])
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norms[0](self.first(x.flatten(0, 2))) * self.temperature)
        return torch.tanh(self.second(x)).view(-1, 36)


def build(name: str, model: nn.Module, spec: Spec = SPEC, **changes: Any) -> GradientLearner:
    """The learner of conf/algorithm/<name>.yaml with other values; ``outer__first_order`` is outer.first_order."""
    section = composed("task=vision/folder", f"algorithm={name}")["algorithm"]
    for key, value in {"inner_lr": LR, "inner_steps": STEPS, "test_steps": STEPS, **changes}.items():
        inner, _, leaf = key.rpartition("__")
        (section[inner] if inner else section)[leaf] = value
    return construct(section, model=model, spec=spec)


def batch() -> TaskBatch:
    y = torch.arange(WAY).repeat_interleave(SHOT).expand(TASKS, -1)
    return TaskBatch(*(Labelled(torch.randn(TASKS, WAY * SHOT, 1, 6, 6), y, WAY) for _ in range(2)))


def perturb(learner: GradientLearner) -> GradientLearner:
    """Away from the symmetric values (ones, zeros, equal rates) that a wrong gradient might not show at."""
    with torch.no_grad():
        for p in learner.parameters():
            p += 0.1 * torch.randn_like(p) * (p.abs().mean() + 0.1)
    return learner


def outer_gradient(learner: GradientLearner, data: TaskBatch) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.outer_loss(data)[0].backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in learner.named_parameters()}


def unrolled_by_hand(learner: GradientLearner, data: TaskBatch, names: list[str], move: Move) -> dict[str, Tensor]:
    """The outer gradient by torch.autograd through one task after another; ``move`` gives phi_k+1 - phi_k."""
    meta = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    total = torch.zeros(())
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        phi = {n: dict(learner.net.named_parameters())[n] for n in names}
        for step in range(learner.inner_steps):
            loss = F.cross_entropy(functional_call(learner.net, phi, (sx,)), sy)
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            changes = move(phi, dict(zip(phi, gradients, strict=True)), step)
            phi = {n: p + changes[n] for n, p in phi.items()}
        total = total + F.cross_entropy(functional_call(learner.net, phi, (qx,)), qy) / TASKS
    gradients = torch.autograd.grad(total, list(meta.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(meta.items(), gradients, strict=True)}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative distance of two gradients."""
    assert a.keys() == b.keys()
    x, y = (torch.cat([g[n].flatten() for n in a]) for g in (a, b))
    return float((x - y).norm() / y.norm())


def finite_difference(learner: GradientLearner, data: TaskBatch, direction: dict[str, Tensor]) -> float:
    """The derivative of the adapted learners' query loss along ``direction``, through the whole inner loop."""
    values = []
    for eps in (1e-5, -1e-5):
        with torch.no_grad():
            for n, p in learner.named_parameters():
                p += eps * direction[n]
            torch.manual_seed(7)
            *_, adapted = learner.adaptations(data.support, learner.inner_steps)
            values.append(prediction_metrics(SPEC, adapted(data.query.x), data.query.y)["loss"].mean().item())
            for n, p in learner.named_parameters():
                p -= eps * direction[n]
    return (values[0] - values[1]) / 2e-5


def plain(phi: dict[str, Tensor], g: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    return {n: -LR * g[n] for n in g}


EXACT = ["maml", "anil", "boil", "metasgd", "metacurvature", "lslr", "cavia", "protomaml", "lowrank", "warpgrad"]
"""Methods whose outer gradient is the query loss's own."""
EXACT_NORMS = [*NORMS, "support", "odd"]


@pytest.mark.parametrize(("name", "norm"), slow_but(
    [(name, EXACT_NORMS[(i + j) % 6]) for i, name in enumerate(EXACT) for j in (1, 4)], product(EXACT, EXACT_NORMS)
))  # fmt: skip
def test_outer_gradient_equals_finite_differences(name: str, norm: str) -> None:
    model = Odd() if norm == "odd" else body("batch" if norm == "support" else norm)
    learner, data = perturb(build(name, model, norm="support" if norm == "support" else "transductive")), batch()
    assert learner.batchable
    gradient = outer_gradient(learner, data)
    learner.batch_tasks = False
    assert apart(gradient, outer_gradient(learner, data)) < 1e-11
    learner.batch_tasks = True
    direction = {n: torch.randn_like(p) for n, p in learner.named_parameters()}
    exact = sum(float((gradient[n] * direction[n]).sum()) for n in gradient)
    assert finite_difference(learner, data, direction) == pytest.approx(exact, rel=1e-5, abs=1e-7)


ADAPTED = {"maml": ["0.0.weight", "0.0.bias", "1.weight", "1.bias"], "anil": ["1.weight", "1.bias"],
           "boil": ["0.0.weight", "0.0.bias"]}  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ADAPTED)
def test_what_adapts_against_a_loop_unrolled_by_hand(name: str, norm: str) -> None:
    learner, data = perturb(build(name, body(norm))), batch()
    assert apart(outer_gradient(learner, data), unrolled_by_hand(learner, data, ADAPTED[name], plain)) < 1e-12


def test_meta_sgd_against_a_loop_unrolled_by_hand() -> None:
    learner, data = perturb(build("metasgd", body("batch"))), batch()
    alpha = dict(zip(learner.adapted_names, learner.rule.rates, strict=True))

    def move(phi: dict[str, Tensor], g: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {n: -alpha[n] * g[n] for n in g}

    by_hand = unrolled_by_hand(learner, data, ADAPTED["maml"], move)
    assert min(float(by_hand[f"rule.rates.{i}"].norm()) for i in range(4)) > 0
    assert apart(outer_gradient(learner, data), by_hand) < 1e-12


@pytest.mark.parametrize("whole_up_to", [2048, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_curvature_against_its_matrix_written_out_in_a_loop_unrolled_by_hand(norm: str, whole_up_to: int) -> None:
    """The factors' Kronecker product as one matrix on all of a tensor's gradient; some factors are diagonals."""
    learner = perturb(build("metacurvature", body(norm), rule__whole_up_to=whole_up_to, inner_lr=0.1))
    data, of, factors = batch(), dict[str, list[Tensor]](), iter(learner.rule.factors)
    for name, count in zip(ADAPTED["maml"], (3, 1, 2, 1), strict=True):
        of[name] = [next(factors) for _ in range(count)]
    assert {n: [tuple(m.shape) for m in of[n]] for n in of} == {
        "0.0.weight": [(3, 3), (1, 1), (9, 9) if whole_up_to > 8 else (9,)],
        "0.0.bias": [(3,)],
        "1.weight": [(3, 3), (48, 48) if whole_up_to > 8 else (48,)],
        "1.bias": [(3,)],
    }

    def move(phi: dict[str, Tensor], g: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        changes = {}
        for n in g:
            whole = torch.ones(1, 1)
            for m in of[n]:
                whole = torch.kron(whole, m if m.dim() == 2 else m.diag())
            changes[n] = (-0.1 * whole @ g[n].flatten()).view_as(g[n])
        return changes

    by_hand = unrolled_by_hand(learner, data, ADAPTED["maml"], move)
    assert min(float(g.norm()) for n, g in by_hand.items() if n.startswith("rule")) > 0 or norm in ("batch", "native")
    assert apart(outer_gradient(learner, data), by_hand) < 1e-12


def test_curvature_starts_as_plain_descent() -> None:
    data, model = batch(), body("batch")
    torch.manual_seed(0)
    curved = build("metacurvature", copy.deepcopy(model), inner_lr=0.1, inner_steps=2)
    torch.manual_seed(0)
    plain = build("maml", copy.deepcopy(model), inner_lr=0.1, inner_steps=2)
    got = outer_gradient(curved, data)
    assert apart({n: g for n, g in got.items() if n.startswith("net")}, outer_gradient(plain, data)) < 1e-12


def test_rates_per_layer_and_step_against_a_loop_unrolled_by_hand() -> None:
    learner, data = perturb(build("lslr", body("batch"))), batch()

    def move(phi: dict[str, Tensor], g: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {n: -learner.rule.rates[step, ADAPTED["maml"].index(n)] * g[n] for n in g}

    by_hand = unrolled_by_hand(learner, data, ADAPTED["maml"], move)
    assert by_hand["rule.rates"].shape == (STEPS, 4)
    assert float(by_hand["rule.rates"].abs().min()) > 0
    assert apart(outer_gradient(learner, data), by_hand) < 1e-12
    *_, one_more = learner.adaptations(data.support, STEPS + 1)
    assert one_more(data.query.x).isfinite().all()


def test_momentum_against_a_loop_unrolled_by_hand() -> None:
    learner, data = (
        perturb(build("maml", body("batch"), rule={"_target_": f"{RULES}.Momentum", "momentum": 0.9}, inner_steps=3)),
        batch(),
    )
    past: list[dict[str, Tensor]] = []

    def move(phi: dict[str, Tensor], g: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        past[:] = [*past[:step], g]
        return {n: -LR * sum(0.9 ** (step - k) * past[k][n] for k in range(step + 1)) for n in g}

    assert apart(outer_gradient(learner, data), unrolled_by_hand(learner, data, ADAPTED["maml"], move)) < 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_context_against_a_loop_unrolled_by_hand(norm: str) -> None:
    """FiLM after the convolution's normalisation, written out for the context of one task after another."""
    learner, data = perturb(build("cavia", body(norm), adapts__layer="1", adapts__size=2)), batch()
    names = [n for n, _ in learner.named_parameters()]
    assert learner.adapted_names == ["0.1.1.context"]
    first, after, (normalise, film) = learner.net[0][0], learner.net[0][2:], learner.net[0][1]  # type: ignore[index]

    def forward(c: Tensor, x: Tensor) -> Tensor:
        y = normalise(first(x))
        y = y * (1 + film.scale.weight @ c)[None, :, None, None] + (film.shift.weight @ c)[None, :, None, None]
        return learner.net[1](after(y))

    total = torch.zeros(())
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        c = torch.zeros(2, requires_grad=True)
        for _ in range(STEPS):
            c = c - LR * torch.autograd.grad(F.cross_entropy(forward(c, sx), sy), c, create_graph=True)[0]
        total = total + F.cross_entropy(forward(c, qx), qy) / TASKS
    gradients = torch.autograd.grad(total, list(learner.parameters()))
    assert apart(outer_gradient(learner, data), dict(zip(names, gradients, strict=True))) < 1e-12


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_low_rank_additions_against_whole_weights_in_a_loop_unrolled_by_hand(norm: str, learned: bool) -> None:
    """The plain network with weights W + B A put together, B from 0."""
    bare, data = body(norm), batch()
    torch.manual_seed(1)
    learner = perturb(build("lowrank", bare, adapts__rank=2, adapts__learned=learned))
    weights = [("0.0", (3, 1, 3, 3)), ("1", (3, 48))]
    assert learner.adapted_names == [f"{n}.{part}.weight" for n, _ in weights for part in ("down", "up")]
    net = nn.Sequential(body(norm), nn.Linear(48, WAY))
    own = {n.replace(".layer.", "."): p for n, p in learner.net.named_parameters() if "down" not in n}
    starts = {n: learner.net.get_submodule(n).down.weight for n, _ in weights}
    meta = {f"net.{n}": p for n, p in learner.net.named_parameters()}
    assert sum("down" in n for n in meta) == (2 if learned else 0)

    def loss(phi: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        added = {}
        for (n, shape), a, b in zip(weights, phi[::2], phi[1::2], strict=True):
            added[f"{n}.weight"] = own[f"{n}.weight"] + (b.view(3, 2) @ a.view(2, -1)).view(shape)
        return F.cross_entropy(functional_call(net, own | added, (x,)), y)

    total = torch.zeros(())
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        phi = [start for n, _ in weights for start in (starts[n].clone().requires_grad_(), torch.zeros(3, 2))]
        phi[1::2] = [b.requires_grad_() for b in phi[1::2]]
        for _ in range(STEPS):
            gradients = torch.autograd.grad(loss(phi, sx, sy), phi, create_graph=True)
            phi = [p - LR * g for p, g in zip(phi, gradients, strict=True)]
        total = total + loss(phi, qx, qy) / TASKS
    by_hand = dict(zip(meta, torch.autograd.grad(total, list(meta.values())), strict=True))
    assert apart(outer_gradient(learner, data), by_hand) < 1e-12


@pytest.mark.parametrize("layer", [
    lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="reflect"),
    lambda: nn.Conv1d(4, 6, 5, dilation=2, padding="same", bias=False),
    lambda: nn.Linear(7, 6),
])  # fmt: skip
def test_a_low_rank_addition_is_one_to_the_weight(layer: Callable[[], nn.Module]) -> None:
    added = LowRankLayer(layer(), 2)
    plain, groups = added.layer, getattr(added.layer, "groups", 1)
    x = torch.randn(5, 7) if isinstance(plain, nn.Linear) else torch.randn(5, 4, *[9] * (plain.weight.dim() - 2))
    assert torch.equal(added(x), plain(x))
    nn.init.normal_(added.up.weight)
    b, a = added.up.weight.view(groups, 6 // groups, 2), added.down.weight.view(groups, 2, -1)
    whole = plain.weight + (b @ a).view_as(plain.weight)
    assert not torch.allclose(added(x), plain(x))
    assert torch.allclose(added(x), functional_call(plain, {"weight": whole}, (x,)))
    assert torch.equal(added.weight, whole)
    assert added.bias is plain.bias


def test_a_layer_used_in_two_places_gets_a_low_rank_addition_in_each() -> None:
    twice = nn.Linear(36, 36)
    learner = perturb(build("lowrank", nn.Sequential(nn.Flatten(), twice, nn.Tanh(), twice, nn.Tanh())))
    assert len(learner.adapted_names) == 6
    assert learner.model[1].layer is learner.model[3].layer  # type: ignore[index,union-attr]
    data = batch()
    gradient, direction = outer_gradient(learner, data), {n: torch.randn_like(p) for n, p in learner.named_parameters()}
    exact = sum(float((gradient[n] * direction[n]).sum()) for n in gradient)
    assert finite_difference(learner, data, direction) == pytest.approx(exact, rel=1e-5, abs=1e-7)


def warped_forward(learner: GradientLearner, phi: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network of :func:`body` with a warp layer behind its convolution, written out."""
    (_, warp), norm = learner.net[0][0], learner.net[0][1]  # type: ignore[index]
    x = F.conv2d(x, phi["0.0.0.weight"], phi["0.0.0.bias"])
    x = norm(F.conv2d(x, warp.weight, padding=1))
    return F.linear(torch.tanh(x).flatten(1), phi["1.weight"], phi["1.bias"])


WARPED = ["0.0.0.weight", "0.0.0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("norm", NORMS)
def test_warp_layers_against_a_loop_unrolled_by_hand(norm: str) -> None:
    learner, data = perturb(build("warpgrad", body(norm))), batch()
    assert learner.adapted_names == WARPED
    total = torch.zeros(())
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        phi = {n: learner.net.get_parameter(n) for n in WARPED}
        for _ in range(STEPS):
            loss = F.cross_entropy(warped_forward(learner, phi, sx), sy)
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {n: p - LR * g for (n, p), g in zip(phi.items(), gradients, strict=True)}
        total = total + F.cross_entropy(warped_forward(learner, phi, qx), qy) / TASKS
    meta = dict(learner.named_parameters())
    by_hand = dict(zip(meta, torch.autograd.grad(total, list(meta.values())), strict=True))
    assert float(by_hand["net.0.0.1.weight"].norm()) > 0
    assert apart(outer_gradient(learner, data), by_hand) < 1e-12


STEPWISE = {"_target_": "metarun.algorithms.gradient.stepwise.Stepwise"}


@pytest.mark.parametrize("norm", NORMS)
def test_outer_gradient_of_single_steps_against_steps_taken_by_hand(norm: str) -> None:
    """The inner loop first, without a graph; then from each of its points one step, differentiated."""
    learner, data = perturb(build("warpgrad_steps", body(norm))), batch()
    meta = dict(learner.named_parameters())
    by_hand = {n: torch.zeros_like(p) for n, p in meta.items()}
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        phi = {n: learner.net.get_parameter(n).detach() for n in WARPED}
        for _ in range(STEPS):
            phi = {n: p.requires_grad_() for n, p in phi.items()}
            loss = F.cross_entropy(warped_forward(learner, phi, sx), sy)
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            moved = {n: p - LR * g for (n, p), g in zip(phi.items(), gradients, strict=True)}
            loss = F.cross_entropy(warped_forward(learner, moved, qx), qy) / (STEPS * TASKS)
            by = {f"net.{n}": p for n, p in phi.items()}
            by |= {n: p for n, p in meta.items() if n not in by}
            for n, g in zip(by, torch.autograd.grad(loss, list(by.values())), strict=True):
                by_hand[n] = by_hand[n] + g
            phi = {n: p.detach() for n, p in moved.items()}
    assert float(by_hand["net.0.0.1.weight"].norm()) > 0
    assert apart(outer_gradient(learner, data), by_hand) < 1e-12


def test_outer_gradient_of_single_steps_is_the_unrolled_one_of_one_step() -> None:
    data, model = batch(), body("batch")
    for adapts in ADAPTS.values():
        both = []
        for outer in (STEPWISE, OUTER["unrolled"]):
            torch.manual_seed(0)
            changes = {"adapts": adapts, "outer": outer, "rule": EVERY_RULE["momentum"], "inner_steps": 1}
            both.append(outer_gradient(build("maml", copy.deepcopy(model), **changes), data))
        assert apart(*both) < 1e-12


@pytest.mark.parametrize("after", [None, ["2"], ["0.0", "0", "3"]])
def test_warp_layers_start_as_the_identity_wherever_they_are(after: list[str] | None) -> None:
    """Of convolutions, blocks, layers within blocks, and vectors: the learner starts as MAML."""
    data, model = batch(), nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 3), BatchNorm(3)), nn.Tanh(), nn.Conv2d(3, 4, 3),
                                         nn.Flatten(), nn.Linear(16, 5), nn.Tanh())  # fmt: skip
    torch.manual_seed(0)
    warped = build("warpgrad", copy.deepcopy(model), inner_steps=2, adapts__after=after)
    torch.manual_seed(0)
    plain = build("maml", copy.deepcopy(model), inner_steps=2)
    assert len(warped.adapted_names) == len(plain.adapted_names) == 8
    warps = len(list(warped.parameters())) - len(list(plain.parameters()))
    assert warps == (3 if after is None else len(after))
    got, expected = outer_gradient(warped, data), outer_gradient(plain, data)
    adapted = [[g[f"net.{n}"] for n in each.adapted_names] for each, g in ((warped, got), (plain, expected))]
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(*adapted, strict=True))


@pytest.mark.parametrize(("changes", "says"), [
    ({"adapts__kernel": 2}, "kernel=2 has no middle"),
    ({"adapts__after": ["7"]}, "after=7: the model has no such layer"),
    ({"adapts__after": []}, "no layer to warp"),
    ({"adapts__after": [""]}, "not the model"),
])  # fmt: skip
def test_where_no_warp_layer_can_be_is_said(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build("warpgrad", body(), **changes)


@pytest.mark.parametrize("norm", NORMS)
def test_prototypes_as_head_against_a_loop_unrolled_by_hand(norm: str) -> None:
    learner, data = perturb(build("protomaml", body(norm), inner_lr=0.05)), batch()
    embed, total = learner.net[0], torch.zeros(())
    meta = {f"net.0.{n}": p for n, p in embed.named_parameters()}
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        c = torch.stack([embed(sx)[sy == k].mean(0) for k in range(WAY)])
        assert torch.allclose(  # the start is a prototypical network, up to what is the same for all classes
            F.linear(embed(qx), 2 * c, -(c**2).sum(1)).softmax(1), (-(torch.cdist(embed(qx), c) ** 2)).softmax(1)
        )
        # Copies: the inner gradient by the body is taken at a given head, not through the prototypes.
        phi = [embed[0].weight.clone(), embed[0].bias.clone(), 2 * c, -(c**2).sum(1)]  # type: ignore[index]

        def loss(phi: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            features = functional_call(embed, {"0.weight": phi[0], "0.bias": phi[1]}, (x,))
            return F.cross_entropy(F.linear(features, phi[2], phi[3]), y)

        for _ in range(STEPS):
            gradients = torch.autograd.grad(loss(phi, sx, sy), phi, create_graph=True)
            phi = [p - 0.05 * g for p, g in zip(phi, gradients, strict=True)]
        total = total + loss(phi, qx, qy) / TASKS
    by_hand = dict(zip(meta, torch.autograd.grad(total, list(meta.values())), strict=True))
    got = outer_gradient(learner, data)
    assert not got.pop("net.1.weight").any()
    assert not got.pop("net.1.bias").any()
    assert apart(got, by_hand) < 1e-12


def test_context_added_to_the_first_layer_is_context_beside_the_input() -> None:
    spec = Spec("regression", "vector", (4,), 1)
    learner = build("cavia", nn.Sequential(nn.Linear(4, 3)), spec, adapts={
        "_target_": "metarun.algorithms.gradient.adapts.Context", "size": 2, "layer": "0", "scale": False})  # fmt: skip
    (linear, film), x, c = learner.model[0], torch.randn(5, 4), torch.randn(2)  # type: ignore[index]
    beside = F.linear(torch.cat([x, c.expand(5, 2)], 1), torch.cat([linear.weight, film.shift.weight], 1), linear.bias)
    assert torch.allclose(learner.predict({"0.0.1.context": c}, x), learner.net[1](beside))


SOLVERS: dict[str, dict[str, Any]] = {
    "cg": {"outer__solver": "cg", "outer__iterations": 40},
    "neumann": {"outer__solver": "neumann", "outer__iterations": 400, "outer__step": 0.1},
}


@pytest.mark.parametrize("solver", slow_but(["cg"], SOLVERS))
@pytest.mark.parametrize("norm", NORMS)
def test_implicit_gradient_against_the_hessian_written_out(norm: str, solver: str) -> None:
    """5 (H + (5 + damping) I)^-1 g with H a whole matrix, at whatever phi the inner loop ends."""
    damping = 0.5 if norm == "none" else 0.0
    changes = {**SOLVERS[solver], "outer__damping": damping, "loss__strength": 5.0, "inner_lr": 0.1}
    learner, data = perturb(build("imaml", body(norm), **changes)), batch()
    theta = {n: learner.net.get_parameter(n).detach() for n in ADAPTED["maml"]}
    sizes = [p.numel() for p in theta.values()]
    expected = torch.zeros(sum(sizes))
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):

        def loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
            parts = zip(theta.items(), vector.split(sizes), strict=True)
            return F.cross_entropy(functional_call(learner.net, {n: v.view_as(p) for (n, p), v in parts}, (x,)), y)

        start = torch.cat([p.flatten() for p in theta.values()])
        phi = start.clone().requires_grad_()
        for _ in range(STEPS):
            g = torch.autograd.grad(loss(phi, sx, sy), phi)[0]
            phi = (phi - 0.1 * (g + 5 * (phi - start))).detach().requires_grad_()
        hessian = torch.autograd.functional.hessian(lambda v, x=sx, y=sy: loss(v, x, y), phi, vectorize=True)
        g = torch.autograd.grad(loss(phi, qx, qy), phi)[0]
        expected += torch.linalg.solve((1 + damping / 5) * torch.eye(len(phi)) + hessian / 5, g) / TASKS
    got = outer_gradient(learner, data)
    assert float((torch.cat([got[f"net.{n}"].flatten() for n in theta]) - expected).norm() / expected.norm()) < 1e-8


def test_neumann_series_is_its_sum_and_converges_to_the_solution() -> None:
    a, b = torch.randn(5, 5), torch.randn(5)
    a = a @ a.T / 5 + torch.eye(5)
    step = float(1 / torch.linalg.eigvalsh(a).max())
    summed = step * sum(torch.linalg.matrix_power(torch.eye(5) - step * a, j) @ b for j in range(4))
    assert torch.allclose(neumann_series(lambda v: a @ v, b, 3, step), summed, rtol=0, atol=1e-14)
    errors = [
        float((neumann_series(lambda v: a @ v, b, n, step) - torch.linalg.solve(a, b)).norm()) for n in (1, 5, 25, 400)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-13


@pytest.mark.parametrize("solver", slow_but(["cg"], SOLVERS))
def test_implicit_gradient_converges_to_the_unrolled_one_where_the_inner_problem_is_convex(solver: str) -> None:
    """A linear head alone adapts, pulled to its start: the body's direct gradient, and the head's through the pull."""
    data, model = batch(), body()
    changes = {"adapts__part": "head", "loss__strength": 1.0, "inner_lr": 0.4, **SOLVERS[solver]}
    outer = {"_target_": "metarun.algorithms.gradient.outer.Unrolled", "first_order": False}
    others = {key: value for key, value in changes.items() if not key.startswith("outer__")}
    torch.manual_seed(0)
    unrolled = outer_gradient(build("imaml", copy.deepcopy(model), **others, outer=outer, inner_steps=80), data)
    errors = []
    for steps in (2, 8, 20, 60):
        torch.manual_seed(0)
        implicit = build("imaml", copy.deepcopy(model), **changes, inner_steps=steps)
        errors.append(apart(outer_gradient(implicit, data), unrolled))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-3
    assert errors[-1] < 1e-9


@pytest.mark.parametrize("norm", NORMS)
def test_first_order_takes_inner_gradients_as_constants(norm: str) -> None:
    learner, data = perturb(build("fomaml", body(norm))), batch()

    def constant(phi: dict[str, Tensor], g: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {n: -LR * g[n].detach() for n in g}

    by_hand = unrolled_by_hand(learner, data, ADAPTED["maml"], constant)
    assert apart(outer_gradient(learner, data), by_hand) < 1e-12


@pytest.mark.parametrize(("norm", "carry"), slow_but(
    [("none", True), ("batch", False), ("native", True), ("layer", False)], product(NORMS, [True, False])
))  # fmt: skip
def test_reptile_against_torchs_adam_on_one_task_after_another(norm: str, carry: bool) -> None:
    changes = {"rule__carry": carry, "outer_lr": 0.5, "decay_over": 4, "inner_lr": 0.01, "inner_batch": None}
    learner = perturb(build("reptile", body(norm), **changes))
    net = copy.deepcopy(learner.net)
    adam = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.0, 0.999), eps=1e-8)
    for iteration in range(2):
        data = batch()
        learner.meta_step(data, iteration)
        learner.evaluate(data)  # leaves the moments as they are
        theta = [p.detach().clone() for p in net.parameters()]
        moved = [torch.zeros_like(p) for p in theta]
        for x, y in data.support.tasks():
            if not carry:
                adam = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.0, 0.999), eps=1e-8)
            with torch.no_grad():
                for p, t in zip(net.parameters(), theta, strict=True):
                    p.copy_(t)
            for _ in range(STEPS):
                adam.zero_grad()
                F.cross_entropy(net(x), y).backward()
                adam.step()
            moved = [m + (p.detach() - t) / TASKS for m, p, t in zip(moved, net.parameters(), theta, strict=True)]
        with torch.no_grad():
            for p, t, m in zip(net.parameters(), theta, moved, strict=True):
                p.copy_(t + 0.5 * (1 - iteration / 4) * m)
    expected = dict(net.named_parameters())
    # Where batch norm cancels a bias, its gradient is rounding, which Adam's division blows up.
    names = [n for n in expected if not (n == "0.0.bias" and norm in ("batch", "native"))]
    for name in names:
        assert torch.allclose(learner.net.get_parameter(name), expected[name], rtol=0, atol=1e-10), name


def test_second_order_through_adam_against_a_loop_unrolled_by_hand() -> None:
    rule = {"_target_": f"{RULES}.Adam", "beta1": 0.9, "beta2": 0.99, "eps": 1e-3, "carry": False}
    learner, data = perturb(build("maml", body(), rule=rule, inner_steps=3)), batch()
    past: list[dict[str, Tensor]] = []

    def move(phi: dict[str, Tensor], g: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        past[:] = [*past[:step], g]
        changes, t = {}, step + 1
        for n in g:
            m = sum((1 - 0.9) * 0.9 ** (step - k) * past[k][n] for k in range(t)) / (1 - 0.9**t)
            v = sum((1 - 0.99) * 0.99 ** (step - k) * past[k][n] ** 2 for k in range(t)) / (1 - 0.99**t)
            changes[n] = -LR * m / (v**0.5 + 1e-3)
        return changes

    assert apart(outer_gradient(learner, data), unrolled_by_hand(learner, data, ADAPTED["maml"], move)) < 1e-12
    dead = build("maml", nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.ReLU()), rule=rule)
    with torch.no_grad():
        dead.model[1].bias.fill_(-100.0)  # type: ignore[index]
    assert all(g.isfinite().all() for g in outer_gradient(dead, data).values())


def test_minibatches_use_the_support_set_up_before_they_repeat() -> None:
    support = Labelled(torch.arange(6.0).expand(3, 6), torch.arange(6).expand(3, 6))
    drawn = [x for x, y in minibatches(support, 6, 4) if torch.equal(x, y.double())]
    assert [x.shape for x in drawn] == [(3, 4)] * 6
    for task in torch.cat(drawn, 1).view(3, 4, 6):
        assert all(sorted(epoch.tolist()) == list(range(6)) for epoch in task)
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert all(torch.equal(x, support.x) for x, _ in minibatches(support, 2, 6))


@pytest.mark.parametrize("norm", ["batch", "layer", "native"])
def test_normalisation_alone_adapts(norm: str) -> None:
    learner, data = perturb(build("maml", body(norm), adapts__part="norm")), batch()
    by_hand = unrolled_by_hand(learner, data, ["0.1.weight", "0.1.bias"], plain)
    assert apart(outer_gradient(learner, data), by_hand) < 1e-12


class OwnFunction(nn.Module):
    """A user's own module that calls normalisation as a function: no layer of it can be seen from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.randn(36, 8)), nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.layer_norm(x.flatten(1) @ self.weight, [8], self.factor))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_vmap_over_torchs_own_normalisation_is_wrong_and_is_not_used(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It differs from the loop by far more than rounding; finite differences side with the loop."""
    model = body("native") if norm == "batch" else OwnFunction()
    learner, data = perturb(build("maml", model, adapts__norm=True)), batch()
    assert learner.batchable
    kernels = outer_gradient(learner, data)
    learner.batch_tasks = False
    loop = outer_gradient(learner, data)
    learner.batch_tasks = True
    with monkeypatch.context() as without:
        without.setattr("metarun.kernels.mode.REPLACED", {})
        vmapped = outer_gradient(learner, data)
    assert apart(kernels, loop) < 1e-11
    assert apart(vmapped, loop) > 1e-4
    direction = {n: vmapped[n] - loop[n] for n in loop}
    along = {k: sum(float((g[n] * direction[n]).sum()) for n in g) for k, g in (("loop", loop), ("vmap", vmapped))}
    numeric = finite_difference(learner, data, direction)
    assert abs(along["loop"] - numeric) < 1e-3 * abs(along["vmap"] - numeric)


G = "metarun.algorithms.gradient"
ADAPTS: dict[str, dict[str, Any]] = {
    "all": {"_target_": f"{G}.adapts.ParameterSubset", "part": "all", "norm": True},
    "head": {"_target_": f"{G}.adapts.ParameterSubset", "part": "head", "norm": False},
    "norm": {"_target_": f"{G}.adapts.ParameterSubset", "part": "norm", "norm": True},
    "context": {"_target_": f"{G}.adapts.Context", "size": 3, "layer": None, "scale": True},
    "low rank": {"_target_": f"{G}.lowrank.LowRank", "rank": 2, "learned": True},
    "warped": {"_target_": f"{G}.warp.Warped", "after": None, "kernel": 3, "norm": False},
    "prototypes": {"_target_": f"{G}.adapts.Prototypes", "norm": False},
    "fresh": {"_target_": f"{G}.random_init.RandomInit", "part": "body", "norm": False, "std": 0.3},
    "step norm": {
        "_target_": f"{G}.multistep.StepNorm",
        "adapts": {"_target_": f"{G}.adapts.Prototypes", "norm": False},
    },
}
EVERY_RULE: dict[str, dict[str, Any]] = {
    "sgd": {"_target_": f"{RULES}.SGD"},
    "metasgd": {"_target_": f"{RULES}.MetaSGD"},
    "lslr": {"_target_": f"{RULES}.LSLR"},
    "curvature": {"_target_": f"{G}.curvature.MetaCurvature", "whole_up_to": 40},
    "momentum": {"_target_": f"{RULES}.Momentum", "momentum": 0.9},
    "adam": {"_target_": f"{RULES}.Adam", "beta1": 0.9, "beta2": 0.99, "eps": 1.0, "carry": False},
    "lasting adam": {"_target_": f"{RULES}.Adam", "beta1": 0.9, "beta2": 0.99, "eps": 1.0, "carry": True},
    "rmsprop": {"_target_": f"{RULES}.RMSprop", "decay": 0.9, "eps": 1.0},
    "lstm": {"_target_": f"{G}.learned_optimizers.LSTMOptimizer", "hidden": [4, 3], "log_range": 5.0},
    "mlp": {"_target_": f"{G}.learned_optimizers.MLPOptimizer", "hidden": [4, 3], "decays": [0.5, 0.9]},
}
OUTER: dict[str, dict[str, Any]] = {
    "unrolled": {"_target_": f"{G}.outer.Unrolled", "first_order": False},
    "first order": {"_target_": f"{G}.outer.Unrolled", "first_order": True},
    "single steps": STEPWISE,
    "difference": {"_target_": f"{G}.outer.ReptileGradient"},
    "implicit": {"_target_": f"{G}.outer.Implicit", "solver": "cg", "iterations": 3, "damping": 0.0, "step": 0.1},
    "neumann": {"_target_": f"{G}.outer.Implicit", "solver": "neumann", "iterations": 3, "damping": 0.0, "step": 0.1},
    "windows": {"_target_": f"{G}.truncated.TruncatedBackprop", "unroll": 2, "log": True, "first_order": False},
    "multi-step": {"_target_": f"{G}.multistep.MultiStep", "anneal_over": 5, "first_order_for": 0},
    "evolution": {"_target_": f"{G}.evolution.Evolution", "sigma": 0.1, "unroll": 2, "log": False, "along": True},
}
REFUSED = {
    ("context", "difference"): "adapt from meta-learned values",
    ("fresh", "difference"): "adapt from meta-learned values",
    ("lasting adam", "single steps"): "no state to carry on",
    ("lasting adam", "multi-step"): "need all tasks at once",
    ("lasting adam", "windows"): "keep a rule's state themselves",
    ("lasting adam", "evolution"): "keep a rule's state themselves",
}


COMBINED = [*product(ADAPTS, EVERY_RULE, range(4))]


@pytest.mark.parametrize(("adapts", "rule", "part"), slow_but(
    [each for each in COMBINED if each[2] == 0 and ([*ADAPTS].index(each[0]) + [*EVERY_RULE].index(each[1])) % 3 == 0],
    COMBINED,
))  # fmt: skip
def test_every_combination_of_pieces_steps_and_unrolled_ones_are_exact(adapts: str, rule: str, part: int) -> None:
    """The first part has every pair of pieces, and unrolls all that adapts by every rule."""
    place = [*ADAPTS].index(adapts) + [*EVERY_RULE].index(rule)
    data, loss = batch(), {"_target_": f"{G}.losses.Proximal", "strength": 0.5}
    for number, (outer, section) in enumerate(OUTER.items()):
        if part != (0 if outer == "unrolled" or (place + number) % 8 == 0 else (place + number) % 3 + 1):
            continue
        changes = {"adapts": ADAPTS[adapts], "rule": EVERY_RULE[rule], "outer": section, "loss": loss, "inner_lr": 0.1}
        changes["inner_steps"] = 3 if outer in ("windows", "evolution") else STEPS  # a whole and a broken window
        if why := REFUSED.get((adapts, outer)) or REFUSED.get((rule, outer)):
            with pytest.raises(UserError, match=why):
                build("maml", body("batch"), **changes)
            continue
        learner = perturb(build("maml", body("batch"), **changes))
        if outer == "unrolled" and rule != "lasting adam":  # an LSTM that reads logarithms is strongly curved
            torch.manual_seed(7)
            gradient = outer_gradient(learner, data)
            direction = {n: torch.randn_like(p) for n, p in learner.named_parameters()}
            exact = sum(float((gradient[n] * direction[n]).sum()) for n in gradient)
            assert finite_difference(learner, data, direction) == pytest.approx(
                exact, rel=1e-3 if rule == "lstm" else 1e-5, abs=1e-7
            )
        before = [p.clone() for p in learner.parameters()]
        assert all(v.isfinite() for v in learner.meta_step(data, 0).values())
        after = list(learner.parameters())
        assert all(p.isfinite().all() for p in after)
        assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


ELSEWHERE = ["l2l", "l2l_mlp", "scratch", "ml3", "es", "pes"]
"""Tested in test_learned_optimizers.py, test_learned_loss.py and test_evolution.py, but for what all share."""
MULTISTEP = ["mamlpp"]
"""Their exactness is in test_multistep.py."""
METHODS = [e.name for e in catalogue("algorithm") if str(e.section["_target_"]).endswith(".GradientLearner")]


def test_every_method_is_walked() -> None:
    assert {*EXACT, "fomaml", "pretrain", "reptile", "imaml", "warpgrad_steps", *MULTISTEP, *ELSEWHERE} == {*METHODS}
    assert {*LEARN_CLUSTERS, *LEARN_SINUSOIDS, *ELSEWHERE} == {*METHODS} - {"pretrain"}


OF_EACH_KIND = [
    *("maml", "cavia", "lowrank", "warpgrad_steps", "protomaml", "metacurvature", "imaml", "reptile", "mamlpp"),
    *("l2l", "pes", "ml3"),
]


@pytest.mark.parametrize("name", slow_but(OF_EACH_KIND, METHODS))
def test_a_users_odd_module_steps_is_restored_and_runs_on_the_meta_device(name: str) -> None:
    def step(learner: GradientLearner, iteration: int) -> None:
        torch.manual_seed(iteration)
        learner.meta_step(batch(), iteration)

    learner, again = build(name, Odd()), build(name, Odd())
    step(learner, 0)
    again.restore(copy.deepcopy(learner.checkpoint()))
    for each in (learner, again):
        step(each, 1)
    for key, value in learner.state_dict().items():
        assert value is None or torch.equal(value, again.state_dict()[key]), key
    assert learner.evaluate(batch())["loss"].isfinite().all()
    dry = copy.deepcopy(learner).to("meta")
    assert all(v.device.type == "meta" for v in dry.meta_step(batch().map(lambda x: x.to("meta")), 0).values())


# Each method learns, in seconds.


def clusters(tasks: range) -> TaskBatch:
    """Every task has classes of its own, which differ in four of 36 numbers only; the rest is strong noise."""
    noise = torch.Generator().manual_seed(tasks.start)
    y = torch.arange(WAY).repeat_interleave(SHOT).expand(len(tasks), -1)
    centres = 2 * torch.randn(len(tasks), WAY, 4, generator=noise)

    def draw() -> Labelled:
        x = 2 * torch.randn(len(tasks), WAY * SHOT, 36, generator=noise)
        x[..., :4] = x[..., :4] / 4 + centres.repeat_interleave(SHOT, 1)
        return Labelled(x.view(len(tasks), WAY * SHOT, 1, 6, 6), y, WAY)

    return TaskBatch(draw(), draw())


def learned_clusters(name: str, steps: int = 100, **changes: Any) -> tuple[float, float]:
    """Accuracy on new tasks before and after ``steps`` outer steps."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    learner = build(name, model, **{"outer_lr": 0.01, **changes})

    def accuracy() -> float:
        return float(learner.evaluate(clusters(range(10**6, 10**6 + 100)))["accuracy"][:, -1].mean())

    before = accuracy()
    for i in range(steps):
        torch.manual_seed(i)
        learner.meta_step(clusters(range(8 * i, 8 * i + 8)), i)
    return before, accuracy()


LEARN_CLUSTERS: dict[str, dict[str, Any]] = {
    "maml": {},
    "fomaml": {},
    "anil": {},
    "boil": {"inner_lr": 0.1, "inner_steps": 5, "test_steps": 5},
    "metasgd": {},
    "cavia": {},
    "protomaml": {"inner_lr": 0.05},
    "imaml": {"inner_lr": 0.3, "inner_steps": 8, "test_steps": 8, "loss__strength": 1.0, "outer_lr": 0.03, "steps": 50},
    "lslr": {},
    "metacurvature": {},
    "lowrank": {},
    "warpgrad": {},
    "warpgrad_steps": {},
    "mamlpp": {"outer__anneal_over": 50, "outer__first_order_for": 20, "decay_over": 100},
}


@pytest.mark.slow
def test_learns_clusters_by_neumann_series() -> None:
    changes = LEARN_CLUSTERS["imaml"] | {"outer__solver": "neumann", "outer__iterations": 20, "outer__step": 0.1}
    before, after = learned_clusters("imaml", **changes)
    assert after > before + 0.15, (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARN_CLUSTERS)
def test_learns_clusters(name: str) -> None:
    before, after = learned_clusters(name, **LEARN_CLUSTERS[name])
    assert after > before + 0.15, (before, after)


LEARN_SINUSOIDS: dict[str, tuple[int, dict[str, Any]]] = {
    "maml": (200, {"inner_lr": 0.01}),
    "cavia": (
        100,
        {
            "adapts__layer": "0",
            "adapts__size": 4,
            "adapts__scale": False,
            "inner_steps": 1,
            "test_steps": 1,
            "inner_lr": 1.0,
        },
    ),
    "reptile": (80, {"inner_lr": 0.02, "inner_steps": 5, "test_steps": 10, "outer_lr": 1.0, "decay_over": 80}),
}


@pytest.mark.parametrize("name", slow_but(["cavia"], LEARN_SINUSOIDS))
def test_learns_sinusoids(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    task = Sinusoid(0, shot=10, query=10, test_shots=[], frequency=[1.0, 1.0])
    steps, changes = LEARN_SINUSOIDS[name]
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    learner = build(name, model, task.spec, **{"outer_lr": 0.01, **changes})

    def error() -> float:
        return float(learner.evaluate(task.batch("val", range(30)))["mse"][:, -1].mean())

    before = error()
    for i in range(steps):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(5 * i, 5 * i + 5)), i)
    assert error() < 0.6 * before, (before, error())
