"""Evolution strategies, plain and persistent, against independent derivations in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_gradient import LR, NORMS, STEPS, TASKS, apart, batch, body, build, outer_gradient, perturb
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithms.gradient.learner import GradientLearner
from metarun.algorithms.gradient.parameters import Parameters
from metarun.algorithms.gradient.pieces import AdaptedParameters, InnerLoss, Rule, State
from metarun.config.build import build as built
from metarun.config.compose import compose
from metarun.errors import Interrupted, UserError
from metarun.models.linear import Linear
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.regression.quadratics import Quadratics
from metarun.tracking.rundir import RunDirectory

EVOLUTION = "metarun.algorithms.gradient.evolution.Evolution"
TRUNCATED = "metarun.algorithms.gradient.truncated.TruncatedBackprop"


pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("adapts", ["all", "prototypes"])
@pytest.mark.parametrize("norm", NORMS)
def test_an_estimate_against_pairs_of_particles_walked_by_hand(norm: str, adapts: str) -> None:
    """MAML by evolution: each task met by theta + e and theta - e, with the e that the same seed draws."""
    if adapts == "prototypes":
        section = {"adapts": {"_target_": "metarun.algorithms.gradient.adapts.Prototypes", "norm": False}}
        learner = perturb(build("es", body(norm), outer__sigma=0.1, **section))
    else:
        learner = perturb(build("es", body(norm), outer__sigma=0.1))
    data = batch()
    meta = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    torch.manual_seed(4)
    noise = {n: 0.1 * torch.randn(TASKS, *p.shape) for n, p in meta.items()}
    torch.manual_seed(4)
    got = outer_gradient(learner, data)

    def loss(net: nn.Module, t: int) -> float:
        sx, sy, qx, qy = data.support.x[t], data.support.y[t], data.query.x[t], data.query.y[t]
        phi = {n: net.get_parameter(n).detach() for n in learner.adapted_names}
        if adapts == "prototypes":
            c = torch.stack([net[0](sx)[sy == k].mean(0) for k in range(3)])  # type: ignore[index]
            phi |= {"1.weight": 2 * c.detach(), "1.bias": -(c**2).sum(1).detach()}
        for _ in range(STEPS):
            phi = {n: p.requires_grad_() for n, p in phi.items()}
            g = torch.autograd.grad(F.cross_entropy(functional_call(net, phi, (sx,)), sy), list(phi.values()))
            phi = {n: (p - LR * d).detach() for (n, p), d in zip(phi.items(), g, strict=True)}
        return F.cross_entropy(functional_call(net, phi, (qx,)), qy).item()

    by_hand = {n: torch.zeros_like(p) for n, p in learner.named_parameters()}
    for t in range(TASKS):
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(learner)
            with torch.no_grad():
                for n in meta:
                    moved.get_parameter(n).add_(sign * noise[n][t])
            values.append(loss(moved.net, t))
        for n in meta:
            by_hand[n] += noise[n][t] * (values[0] - values[1]) / (2 * 0.1**2) / TASKS
    assert apart(got, by_hand) < 1e-9


def test_estimates_converge_to_the_gradient_of_the_unrolled_loss() -> None:
    """A learned start and learned rates, many draws for one task, sigma small: within five standard errors."""
    spec = Spec("regression", "vector", (2,), 1)
    one = TaskBatch(*(Labelled(torch.randn(1, 5, 2), torch.randn(1, 5, 1)) for _ in range(2)))
    many = one.map(lambda v: v.expand(500, *v.shape[1:]))
    rule = {"_target_": "metarun.algorithms.gradient.rules.MetaSGD"}
    learner = perturb(build("es", Linear(bias=True), spec, outer__sigma=1e-3, rule=rule, inner_lr=0.1))
    exact = build("metasgd", Linear(bias=True), spec, inner_lr=0.1)
    exact.load_state_dict({n: v for n, v in learner.state_dict().items() if "extra" not in n})
    check_unbiased([outer_gradient(learner, many) for _ in range(60)], outer_gradient(exact, one))


def check_unbiased(estimates: list[dict[str, Tensor]], exact: dict[str, Tensor]) -> None:
    drawn = torch.stack([torch.cat([g.flatten() for g in e.values()]) for e in estimates])
    expected = torch.cat([exact[n].flatten() for n in estimates[0]])
    error = drawn.std(0) / sqrt(len(drawn))
    assert float((error / expected.abs().mean()).max()) < 0.1  # the test can tell
    assert ((drawn.mean(0) - expected).abs() < 5 * error).all(), (drawn.mean(0), expected, error)


# Influence balancing (Tallec & Ollivier 2017; the example of the persistent estimator's paper, section 5.1): the
# state s <- A s + theta v of a chain whose end alone is metrics. At first theta seems to move it the wrong way.

LENGTH, POSITIVE, WALK = 12, 5, 60
CHAIN = 0.5 * (torch.eye(LENGTH, dtype=torch.float64) + torch.diag(torch.ones(LENGTH - 1, dtype=torch.float64), 1))
FORCE = torch.cat([torch.ones(POSITIVE), -torch.ones(LENGTH - POSITIVE)]).double()


class Chain(AdaptedParameters):
    """The state, from 1."""

    def attach(self, net: nn.Sequential, spec: Spec) -> list[str]:
        net.requires_grad_(False)
        return ["1.weight"]

    def initial(self, learner: GradientLearner, support: Labelled) -> tuple[Parameters, Any]:
        return {"1.weight": torch.ones(len(support.y), 1, LENGTH)}, 0


class HalfSquare(InnerLoss):
    """Its gradient is the state itself, which the rule is not shown otherwise."""

    def forward(self, prediction: Tensor, x: Tensor, y: Tensor, parameters: Parameters, initial: Parameters) -> Tensor:
        return parameters["1.weight"].square().sum() / 2


class Pushed(Rule):
    """s + u = A s + theta v."""

    def prepare(self, parameters: Parameters, lr: float, steps: int) -> None:
        self.theta = nn.Parameter(torch.tensor(lr))

    def update(self, gradients: Parameters, state: State, step: int) -> tuple[Parameters, State]:
        (s,) = gradients.values()
        return {"1.weight": s @ CHAIN.T - s + self.theta * FORCE}, state


def chain(outer: dict[str, Any]) -> GradientLearner:
    pieces = {
        "adapts": {"_target_": f"{__name__}.Chain"},
        "rule": {"_target_": f"{__name__}.Pushed"},
        "loss": {"_target_": f"{__name__}.HalfSquare"},
    }
    spec = Spec("regression", "vector", (LENGTH,), 1)
    return build("pes", Linear(bias=False), spec, **pieces, outer=outer, inner_steps=WALK, inner_lr=0.5)


def end_of_chain(tasks: int) -> TaskBatch:
    """What judges (s_0 - 1)^2."""
    x = torch.zeros(tasks, 1, LENGTH)
    x[..., 0] = 1
    examples = Labelled(x, torch.ones(tasks, 1, 1))
    return TaskBatch(examples, examples)


def over_a_trajectory(learner: GradientLearner, data: TaskBatch) -> dict[str, Tensor]:
    """The sum of the windows' gradients at one theta."""
    total = outer_gradient(learner, data)
    while learner.outer.kept is not None:
        total = {n: total[n] + g for n, g in outer_gradient(learner, data).items()}
    return {"rule.theta": total["rule.theta"]}


def test_the_persistent_estimator_is_unbiased_where_truncation_is_not() -> None:
    data = end_of_chain(1)
    whole = {"_target_": TRUNCATED, "unroll": None, "log": False, "first_order": False}
    exact = over_a_trajectory(chain(whole), data)

    s, ds, by_hand = torch.ones(LENGTH), torch.zeros(LENGTH), 0.0
    for _ in range(WALK):  # forward mode, as the recurrence says it
        s, ds = CHAIN @ s + 0.5 * FORCE, CHAIN @ ds + FORCE
        by_hand += 2 * float((s[0] - 1) * ds[0])
    assert exact["rule.theta"].item() == pytest.approx(by_hand, rel=1e-12)

    truncated = over_a_trajectory(chain({**whole, "unroll": 4}), data)
    assert truncated["rule.theta"].item() * by_hand < 0  # it even has the wrong sign

    evolution = {"_target_": EVOLUTION, "sigma": 0.1, "unroll": 4, "log": False, "along": True}
    learner, many = chain(evolution), end_of_chain(1500)
    estimates = [over_a_trajectory(learner, many) for _ in range(6)]
    check_unbiased(estimates, exact)  # L is quadratic in theta: smoothing does not change its gradient

    def forgetful(data: TaskBatch) -> Tensor:
        """Without the perturbations of earlier windows: evolution strategies truncated."""
        total = outer_gradient(learner, data)["rule.theta"]
        while learner.outer.kept is not None:
            learner.outer.kept["drift"] = {n: torch.zeros_like(e) for n, e in learner.outer.kept["drift"].items()}
            total = total + outer_gradient(learner, data)["rule.theta"]
        return total

    drawn = torch.stack([forgetful(many) for _ in range(4)])
    assert float(drawn.mean() - exact["rule.theta"]) ** 2 > 25 * float(drawn.var()) / len(drawn)


@pytest.mark.parametrize("norm", NORMS)
def test_persistent_particles_against_a_walk_by_hand(norm: str) -> None:
    """MLP optimizer, 5 steps in windows of 2, theta changing in between: losses, sums of perturbations, restarts."""
    settings = {"outer__sigma": 0.05, "outer__unroll": 2, "inner_steps": 5, "adapts__std": 0.3}
    learner, data, later = perturb(build("pes", body(norm), **settings)), batch(), batch()
    meta = {n: p for n, p in learner.named_parameters() if p.requires_grad}
    particles: list[tuple[GradientLearner, Any]] = []
    summed = {n: torch.zeros(TASKS, *p.shape) for n, p in meta.items()}
    for window, (first, count) in enumerate(((0, 2), (2, 2), (4, 1))):
        torch.manual_seed(window)
        noise = {n: 0.05 * torch.randn(TASKS, *p.shape) for n, p in meta.items()}
        if not window:
            shared = {n: p.expand(TASKS, *p.shape) for n, p in meta.items()}
            start = learner.outer.begin(learner, shared, data.support)  # type: ignore[operator]  # one for each pair
            particles = [({n: p[t] for n, p in start.items()}, None) for _ in (1, -1) for t in range(TASKS)]
        summed = {n: s + noise[n] for n, s in summed.items()}
        losses = []
        for i, (phi, state) in enumerate(particles):
            moved, (t, sign) = copy.deepcopy(learner), (i % TASKS, 1 - 2 * (i // TASKS))
            with torch.no_grad():
                for n in meta:
                    moved.get_parameter(n).add_(sign * noise[n][t])
            total = 0.0
            for step in range(first, first + count):
                phi = {n: p.detach().requires_grad_() for n, p in phi.items()}
                loss = F.cross_entropy(functional_call(moved.net, phi, (data.support.x[t],)), data.support.y[t])
                g = dict(zip(phi, torch.autograd.grad(loss, list(phi.values())), strict=True))
                with torch.no_grad():
                    change, state = moved.rule.update(g, moved.rule.init(phi) if state is None else state, step)
                    phi = {n: p + change[n] for n, p in phi.items()}
                    total += F.cross_entropy(
                        functional_call(moved.net, phi, (data.query.x[t],)), data.query.y[t]
                    ).item()
            particles[i] = (phi, state)
            losses.append(total)
        slope = [(losses[t] - losses[TASKS + t]) / (2 * 0.05**2) / TASKS for t in range(TASKS)]
        by_hand = {n: sum(slope[t] * summed[n][t] for t in range(TASKS)) for n in meta}
        torch.manual_seed(window)
        got = outer_gradient(learner, later if window else data)  # later meta-batches are not yet met
        assert apart({n: got[n] for n in meta}, by_hand) < 1e-6  # type: ignore[arg-type]
        with torch.no_grad():
            for n, p in meta.items():
                p -= 0.01 * got[n]
    assert learner.outer.kept is None


def test_a_pair_that_diverges_does_not_spoil_the_others() -> None:
    """Evolution of a descent's rate: one task's slope is so steep that its losses overflow."""
    spec, rule = Spec("regression", "vector", (2,), 1), {"_target_": "metarun.algorithms.gradient.rules.LSLR"}
    settings = {"rule": rule, "inner_lr": 0.1, "inner_steps": 3, "outer__unroll": 1, "outer__sigma": 0.01}
    learner = build("pes", Linear(bias=False), spec, **settings)
    x = torch.randn(2, 4, 2)
    x[1] *= 1e140
    tasks = Labelled(x, torch.randn(2, 4, 1))
    for _ in range(3):
        loss, metrics = learner.outer_loss(TaskBatch(tasks, tasks))
        loss.backward()
        assert all(value.isfinite() for value in metrics.values())
    gradient = learner.rule.rates.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()


def test_particles_go_on_exactly_after_a_restore() -> None:
    def stepped(learner: GradientLearner, iteration: int) -> None:
        torch.manual_seed(iteration)
        learner.meta_step(batch(), iteration)

    learner, again = (build("pes", body("batch"), inner_steps=6, outer__unroll=2) for _ in range(2))
    for iteration in (0, 1):
        stepped(learner, iteration)
    torch.save(learner.checkpoint(), "state.pt")
    again.restore(torch.load("state.pt", weights_only=True))
    for iteration in (2, 3, 4):
        stepped(learner, iteration)
        stepped(again, iteration)
    assert all(torch.equal(p, q) for p, q in zip(learner.parameters(), again.parameters(), strict=True))


class Stopped(Quadratics):
    """Stops the run at one of its meta-batches."""

    stop_at: int | None = None
    drawn = 0

    def batch(self, split: Any, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        if split == "train" and self.device.type != "meta":
            Stopped.drawn += 1
            if self.drawn == self.stop_at:
                import signal

                signal.raise_signal(signal.SIGTERM)
        return super().batch(split, indices, shape)


@pytest.mark.parametrize("name", ["l2l", "pes"])
def test_a_run_stopped_amid_its_particles_walk_ends_as_the_undisturbed_one(name: str, tmp_path: Path) -> None:
    words = ["task=regression/quadratics", f"algorithm={name}", "algorithm.inner_steps=6", "algorithm.outer.unroll=2",
             "algorithm.test_steps=3", "runner.iterations=9", "runner.meta_batch=2", "runner.validate_every=4",
             "runner.val_episodes=3", "runner.test_episodes=2", "runner.plots=false", "tracker.wandb=disabled",
             "name=x", "runner.threads=1"]  # fmt: skip
    config = compose(words).config
    config["task"]["_target_"] = f"{__name__}.Stopped"

    def run(directory: RunDirectory, stop_at: int | None = None) -> None:
        Stopped.stop_at, Stopped.drawn = stop_at, 0
        if stop_at is None:
            built(config).run(directory)
        else:
            with pytest.raises(Interrupted):
                built(config).run(directory)

    whole, parted = (RunDirectory.create(tmp_path, kind, 0) for kind in ("whole", "parted"))
    run(whole)
    run(parted, stop_at=5)  # two windows into the second walk
    run(parted)
    ends = [torch.load(d.path / "checkpoints" / "last.pt", weights_only=True)["algorithm"] for d in (whole, parted)]
    ours, theirs = (end["parameters"] for end in ends)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours if not n.endswith("extra_state"))
    assert whole.metrics.read_bytes() == parted.metrics.read_bytes()


def test_nothing_to_perturb_is_refused() -> None:
    outer = {"_target_": EVOLUTION, "sigma": 0.1, "unroll": None, "log": False, "along": False}
    with pytest.raises(UserError, match="need a meta-parameter"):
        build("scratch", body(), outer=outer, inner_steps=2)


# They learn.


def test_evolution_learns_an_initialisation() -> None:
    """Linear functions around a common one: the start comes to lie there."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    spec, centre = Spec("regression", "vector", (5,), 1), torch.randn(5, 1)

    def draw(tasks: int) -> TaskBatch:
        slope = centre + 0.1 * torch.randn(tasks, 5, 1)
        return TaskBatch(*(Labelled(x, x @ slope) for x in torch.randn(2, tasks, 3, 5)))

    learner, test = build("es", Linear(bias=True), spec, inner_lr=0.05, outer_lr=0.08), draw(200)

    def error() -> float:
        return float(learner.evaluate(test)["mse"][:, -1].mean())

    before = error()
    for i in range(80):
        torch.manual_seed(i)
        learner.meta_step(draw(16), i)
    assert error() < 0.1 * before, (before, error())


@pytest.mark.slow
def test_persistent_evolution_learns_an_optimizer() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    task = Quadratics(0, shot=5, size=5, distribution="uniform")
    learner = build("pes", Linear(bias=False), task.spec, inner_steps=20, test_steps=20, outer__unroll=5, inner_lr=0.1,
                    rule__hidden=[8], outer__log=True, outer_lr=0.01, decay_over=100)  # fmt: skip

    def error() -> float:
        torch.manual_seed(0)
        return float(learner.evaluate(task.batch("test", range(100)))["mse"][:, -1].log10().mean())

    start = float(learner.evaluate(task.batch("test", range(100)))["mse"][:, 0].log10().mean())
    for i in range(100):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(32 * i, 32 * i + 32)), i)
    assert error() < start - 0.5, (start, error())
