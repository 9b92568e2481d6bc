"""Learners of control: their estimators and gradients against direct formulas, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metarun.algorithms.rl.advantage import discounted, gae, linear_baseline, normalised
from metarun.algorithms.rl.collect import Rollout
from metarun.algorithms.rl.distributions import Categorical, Gaussian, distribution, sampling_noise
from metarun.algorithms.rl.maml_trpo import MAMLTRPO, Experience
from metarun.algorithms.rl.rl2 import RL2
from metarun.algorithms.rl.trpo import differentiate
from metarun.algorithms.solve import conjugate_gradient
from metarun.models.policies import GRUPolicy, MLPPolicy
from metarun.tasks.base import Spec
from metarun.tasks.rl.bandit import Bandit
from metarun.tasks.rl.navigation import Navigation

CONTINUOUS = Spec("control", "vector", (2,), 2)
DISCRETE = Spec("control", "vector", (2,), 3, discrete_actions=True)
CASES = pytest.mark.parametrize(("steps", "inner_loss"), [(1, "likelihood"), (2, "likelihood"), (2, "ratio")])
SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])


def bandit(arms: int, pulls: int) -> Bandit:
    return Bandit(0, arms=arms, pulls=pulls, rewards="bernoulli")


def navigation(horizon: int = 10, episodes: int = 1) -> Navigation:
    return Navigation(0, actions="scaled", reward="distance", horizon=horizon, episodes=episodes, test_goals="drawn")


def maml(spec: Spec, hidden: int = 5, **changed: Any) -> MAMLTRPO:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "rollouts": 4,
        "inner_steps": 1,
        "inner_lr": 0.3,
        "inner_loss": "likelihood",
        "first_order": False,
        "test_rollouts": 3,
        "test_steps": 2,
        "test_lr": [0.5, 0.25],
        "discount": 0.99,
        "gae_lambda": 1.0,
        "max_kl": 0.01,
        "fisher_rollouts": 4,
        "cg_iterations": 10,
        "damping": 1e-5,
        "backtracks": 10,
        "backtrack_ratio": 0.8,
    }
    model = MLPPolicy(spec, hidden=[hidden], activation="tanh", init_std=0.7)
    return MAMLTRPO(model, spec, **(values | changed))


def rl2(spec: Spec, hidden: int = 32, **changed: Any) -> RL2:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "rollouts": 1,
        "test_rollouts": 1,
        "discount": 0.99,
        "gae_lambda": 0.3,
        "epochs": 4,
        "minibatches": 4,
        "clip": 0.2,
        "value_weight": 0.5,
        "entropy_weight": 0.01,
        "max_grad_norm": 0.5,
        "outer_lr": 3e-3,
        "halve_every": None,
    }
    return RL2(GRUPolicy(spec, hidden=hidden, init_std=1.0), spec, **(values | changed))


def random_rollout(spec: Spec, generator: torch.Generator, tasks: int = 3, copies: int = 4, steps: int = 6) -> Rollout:
    """A float64 rollout of no environment, whose copies end after 2 to ``steps`` steps."""
    shape = (tasks, copies, steps)
    length = torch.randint(2, steps + 1, shape[:2], generator=generator)
    running = torch.arange(steps) < length[..., None]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    if spec.discrete_actions:
        action = torch.randint(0, spec.output_size, shape, generator=generator)
    else:
        action = normal(*shape, spec.output_size)
    return Rollout(normal(*shape, 2), action, normal(*shape) * running, running, torch.zeros(shape).bool())


def random_experience(spec: Spec, generator: torch.Generator) -> Experience:
    rollout = random_rollout(spec, generator)
    advantage, logp = torch.randn(2, *rollout.reward.shape, generator=generator, dtype=torch.float64)
    return Experience(rollout, advantage * rollout.running, 0.3 * logp - 2)


# Estimators


def test_gae_is_the_sum_of_discounted_surprises() -> None:
    g = torch.Generator().manual_seed(0)
    rollout = random_rollout(CONTINUOUS, g)
    reward, running = rollout.reward, rollout.running
    value = torch.randn(reward.shape, generator=g, dtype=torch.float64)
    found = gae(reward, value, running, 0.9, 0.7)
    for t in range(3):
        for e in range(4):
            length = int(running[t, e].sum())
            v = [*value[t, e, :length].tolist(), 0.0]
            for s in range(reward.shape[2]):
                surprises = [float(reward[t, e, i]) + 0.9 * v[i + 1] - v[i] for i in range(s, length)]
                expected = sum((0.9 * 0.7) ** i * surprise for i, surprise in enumerate(surprises))
                assert float(found[t, e, s]) == pytest.approx(expected, abs=1e-12)
    returns = sum(0.9**i * reward[..., i] for i in range(reward.shape[2]))
    torch.testing.assert_close(discounted(reward, 0.9)[..., 0], returns)


def test_linear_baseline_is_least_squares_a_task() -> None:
    g = torch.Generator().manual_seed(1)
    rollout = random_rollout(CONTINUOUS, g, copies=12, steps=9)
    found = linear_baseline(rollout.observation, rollout.reward, rollout.running, 0.9)
    returns = discounted(rollout.reward, 0.9)
    for task in range(3):
        rows, targets, values = [], [], []
        for e in range(12):
            for s in range(int(rollout.running[task, e].sum())):
                x, y = rollout.observation[task, e, s].tolist()
                t = s / 100
                rows.append([x, y, x * x, y * y, t, t * t, t**3, 1.0])
                targets.append(returns[task, e, s])
                values.append(found[task, e, s])
        X, y = torch.tensor(rows, dtype=torch.float64), torch.stack(targets)
        penalty = (1e-5 * len(rows)) ** 0.5 * torch.eye(8, dtype=torch.float64)
        weights = torch.linalg.lstsq(torch.cat([X, penalty]), torch.cat([y, y.new_zeros(8)])).solution
        torch.testing.assert_close(torch.stack(values), X @ weights, rtol=1e-7, atol=1e-9)
    assert (found[~rollout.running] == 0).all()


def test_advantages_are_normalised_over_running_steps() -> None:
    rollout = random_rollout(CONTINUOUS, torch.Generator().manual_seed(2))
    values = normalised(rollout.reward + 3, rollout.running, (1, 2))
    for task in range(3):
        chosen = values[task][rollout.running[task]]
        assert float(chosen.mean()) == pytest.approx(0, abs=1e-12)
        assert float(chosen.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert (values[~rollout.running] == 0).all()


@SPECS
def test_distributions_agree_with_those_of_torch(spec: Spec) -> None:
    g = torch.Generator().manual_seed(3)
    size = spec.output_size * (1 if spec.discrete_actions else 2)
    outputs = torch.randn(2, 40, size, generator=g)
    ours, old = distribution(spec, outputs[0]), distribution(spec, outputs[1])
    theirs: list[torch.distributions.Distribution]
    if isinstance(ours, Categorical):
        theirs = [torch.distributions.Categorical(logits=o) for o in outputs]
        action = torch.randint(0, 3, (40,), generator=g)
    else:
        theirs = [
            torch.distributions.Independent(torch.distributions.Normal(o[:, :2], o[:, 2:].exp()), 1) for o in outputs
        ]
        action = torch.randn(40, 2, generator=g)
    torch.testing.assert_close(ours.log_prob(action), theirs[0].log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs[0].entropy())
    expected = torch.distributions.kl_divergence(theirs[1], theirs[0])
    torch.testing.assert_close(ours.kl_from(old), expected)  # type: ignore[arg-type]


def test_samples_follow_their_distribution() -> None:
    g = torch.Generator().manual_seed(4)
    logits = torch.tensor([0.0, 1.0, -1.0])
    noise = sampling_noise(DISCRETE, (100_000,), torch.device("cpu"), g)
    drawn = distribution(DISCRETE, logits.expand(100_000, 3)).sample(noise)
    torch.testing.assert_close(drawn.bincount() / 100_000, logits.softmax(0), atol=0.008, rtol=0)
    normal = Gaussian(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0]))
    values = normal.sample(sampling_noise(CONTINUOUS, (100_000,), torch.device("cpu"), g))
    torch.testing.assert_close(values.mean(0), normal.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(values.std(0), normal.log_std.exp(), atol=0.05, rtol=0)


# MAML-TRPO


def by_hand(learner: MAMLTRPO, theta: Tensor, path: list[Experience], task: int) -> dict[str, Tensor]:
    """One task's adapted parameters by plain autograd, unrolled."""
    pieces = theta.split([p.numel() for p in learner.model.parameters()])
    named = zip(learner.model.named_parameters(), pieces, strict=True)
    parameters = {name: piece.view_as(p) for (name, p), piece in named}
    for rollout, advantage, logp_then in path:
        chosen = rollout.running[task]
        output = functional_call(learner.model, parameters, (rollout.observation[task][chosen],))
        logp = distribution(learner.spec, output).log_prob(rollout.action[task][chosen])
        if learner.inner_loss_of == "ratio":
            logp = (logp - logp_then[task][chosen]).exp()
        loss = -(logp * advantage[task][chosen]).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        stepped = zip(parameters.items(), gradients, strict=True)
        parameters = {name: p - learner.inner_lr * gradient for (name, p), gradient in stepped}
    return parameters


def exact_case(
    spec: Spec, steps: int, inner_loss: str = "likelihood"
) -> tuple[MAMLTRPO, Tensor, list[Tensor], list[Experience], Experience]:
    learner = maml(spec, hidden=3, inner_steps=steps, inner_loss=inner_loss).double()
    g = torch.Generator().manual_seed(5)
    path = [random_experience(spec, g) for _ in range(steps)]
    post = random_experience(spec, g)
    theta = learner.flat()
    phis = [theta.expand(3, -1)]
    for experience in path:
        phis.append(learner.inner_step(phis[-1], experience, learner.inner_lr))
    return learner, theta, phis, path, post


def mean_outer(learner: MAMLTRPO, theta: Tensor, path: list[Experience], post: Experience) -> Tensor:
    losses = []
    for task in range(3):
        chosen = post.rollout.running[task]
        parameters = by_hand(learner, theta, path, task)
        output = functional_call(learner.model, parameters, (post.rollout.observation[task][chosen],))
        logp = distribution(learner.spec, output).log_prob(post.rollout.action[task][chosen])
        losses.append(-((logp - post.logp[task][chosen]).exp() * post.advantage[task][chosen]).mean())
    return torch.stack(losses).mean()


@SPECS
@CASES
def test_meta_gradient_is_exact(spec: Spec, steps: int, inner_loss: str) -> None:
    learner, theta, phis, path, post = exact_case(spec, steps, inner_loss)
    found = learner.meta_gradient(phis, path, post)

    def outer(theta: Tensor) -> Tensor:
        return mean_outer(learner, theta.requires_grad_(), path, post)

    h = 1e-5
    differences = torch.stack(
        [(outer(theta + h * e) - outer(theta - h * e)).detach() / (2 * h) for e in torch.eye(len(theta)).double()]
    )
    assert float((found - differences).norm() / differences.norm()) < 1e-6
    leaf = theta.clone().requires_grad_()
    (unrolled,) = torch.autograd.grad(outer(leaf), leaf)
    torch.testing.assert_close(found, unrolled, rtol=1e-10, atol=1e-12)
    learner.first_order = True
    assert float((learner.meta_gradient(phis, path, post) - unrolled).norm() / unrolled.norm()) > 1e-2


@SPECS
@CASES
def test_metric_is_the_hessian_of_the_divergence(spec: Spec, steps: int, inner_loss: str) -> None:
    learner, theta, phis, path, post = exact_case(spec, steps, inner_loss)
    with torch.no_grad():
        old = learner.policy(phis[-1], post.rollout)

    def divergence(theta: Tensor) -> Tensor:
        values = []
        for task in range(3):
            output = functional_call(
                learner.model, by_hand(learner, theta, path, task), (post.rollout.observation[task],)
            )
            kl = distribution(spec, output).kl_from(_task(old, task))  # type: ignore[arg-type]
            values.append(kl[post.rollout.running[task]].mean())
        return torch.stack(values).mean()

    hessian = torch.autograd.functional.hessian(divergence, theta.clone())
    product = learner.metric(phis, path, post.rollout)
    columns = torch.stack([product(e) for e in torch.eye(len(theta)).double()])
    expected = hessian + learner.damping * torch.eye(len(theta)).double()
    torch.testing.assert_close(columns, expected, rtol=1e-8, atol=1e-10)


def _task(old: Categorical | Gaussian, task: int) -> Categorical | Gaussian:
    if isinstance(old, Categorical):
        return Categorical(old.logp[task])
    return Gaussian(old.mean[task], old.log_std[task])


def test_conjugate_gradient_solves() -> None:
    g = torch.Generator().manual_seed(6)
    root = torch.randn(8, 8, generator=g, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(8), torch.randn(8, generator=g, dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradient(lambda v: matrix @ v, b, 8), torch.linalg.solve(matrix, b))
    assert torch.isfinite(conjugate_gradient(lambda v: matrix @ v, b, 40)).all()
    assert (conjugate_gradient(lambda v: matrix @ v, torch.zeros(8).double(), 3) == 0).all()


def test_only_the_ratio_has_the_curvature_of_the_expected_return() -> None:
    """Two arms, and an expectation as good as exact: each is pulled as often as the policy would."""
    spec = Spec("control", "vector", (1,), 2, discrete_actions=True)
    rows = 10_000
    seen = torch.ones(1, rows, 1, 1, dtype=torch.float64)
    theta = maml(spec).double().flat()
    off: dict[str, float] = {}
    for inner_loss in ("likelihood", "ratio"):
        learner = maml(spec, inner_loss=inner_loss).double()

        def chances(theta: Tensor, learner: MAMLTRPO = learner) -> Tensor:
            policy = learner.policy(theta[None], _steps(seen, torch.zeros(1, rows, 1).long()).first(1))
            assert isinstance(policy, Categorical)
            return policy.logp[0, 0, 0].exp()

        first = round(rows * chances(theta)[0].item())
        action = (torch.arange(rows) >= first).long().view(1, rows, 1)
        rollout, phi = _steps(seen, action), theta[None].clone().requires_grad_()
        logp = learner.policy(phi, rollout).log_prob(action).detach()
        loss = learner.inner_loss(phi, Experience(rollout, 1.0 - 2.0 * action, logp)).sum()
        gradient, product = differentiate(loss, phi)

        def loss_expected(theta: Tensor) -> Tensor:
            p = chances(theta)
            return p[1] - p[0]

        expected = torch.autograd.functional.jacobian(loss_expected, theta)
        torch.testing.assert_close(gradient[0], expected, atol=1e-3, rtol=0)
        hessian = torch.autograd.functional.hessian(loss_expected, theta)
        found = torch.stack([product(e[None])[0] for e in torch.eye(len(theta)).double()])
        off[inner_loss] = float((found - hessian).norm() / hessian.norm())
    assert off["ratio"] < 1e-3
    assert off["likelihood"] > 0.05


def _steps(observation: Tensor, action: Tensor) -> Rollout:
    running = torch.ones(action.shape, dtype=torch.bool)
    return Rollout(observation, action, torch.zeros(action.shape).double(), running, ~running)


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_a_trust_region_step_improves_within_its_bound(inner_steps: int) -> None:
    learner = maml(CONTINUOUS, rollouts=8, inner_steps=inner_steps)
    before = learner.flat()
    metrics = learner.meta_step(navigation().batch("train", range(6)), 0)
    assert 0 < float(metrics["kl"]) <= 0.01
    assert float(metrics["gain"]) > 0
    assert not torch.equal(before, learner.flat())


def test_the_line_search_shortens_and_refuses() -> None:
    learner, theta, phis, path, post = exact_case(CONTINUOUS, 1)
    downhill = learner.meta_gradient(phis, path, post)
    gain, kl = learner.line_search(theta, -1e-2 * downhill, path, post, phis[-1])  # uphill
    assert gain == 0
    assert kl == 0
    assert torch.equal(theta, learner.flat())
    learner.backtracks = 40
    gain, kl = learner.line_search(theta, downhill / downhill.norm(), path, post, phis[-1])
    moved = (theta - learner.flat()).norm()
    assert gain > 0
    assert 0 < kl <= learner.max_kl
    powers = [learner.backtrack_ratio**i for i in range(learner.backtracks)]
    assert any(float(moved) == pytest.approx(power) for power in powers[1:])


def test_maml_evaluates_each_step_with_its_own_size() -> None:
    learner, env = maml(CONTINUOUS), navigation().batch("test", range(5))
    sizes: list[float] = []
    inner_step = learner.inner_step
    learner.inner_step = lambda phi, experience, lr: sizes.append(lr) or inner_step(phi, experience, lr)  # type: ignore
    learner.test_steps = 3
    before = learner.flat()
    returns = learner.evaluate(env)["return"]
    assert returns.shape == (5, 4)
    assert sizes == [0.5, 0.25, 0.25]
    assert torch.equal(before, learner.flat())
    assert torch.equal(returns, learner.evaluate(env)["return"])


def test_maml_learns_to_navigate() -> None:
    task = navigation(horizon=20)
    learner = maml(CONTINUOUS, hidden=32, rollouts=10, test_rollouts=20, fisher_rollouts=3, inner_lr=0.5, max_kl=0.02)
    judged = [learner.evaluate(task.batch("val", range(20)))["return"].mean(0)]
    for i in range(15):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(20 * i, 20 * i + 20)), i)
    judged.append(learner.evaluate(task.batch("val", range(20)))["return"].mean(0))
    assert judged[1][1] > judged[0][1] + 1.0  # better after a step than it was,
    assert judged[1][1] > judged[1][0] + 1.0  # and better than before the step


# RL2


@pytest.mark.parametrize("task", [bandit(3, 4), navigation(horizon=5, episodes=2)], ids=["bandit", "navigation"])
def test_replayed_trials_have_the_likelihoods_of_their_collection(task: Bandit | Navigation) -> None:
    learner = rl2(task.spec)
    env = task.batch("train", range(6))
    rollout, recorder = learner.trial(env, 2)
    inputs = torch.stack(recorder.inputs)
    assert inputs.shape[:2] == (rollout.reward.shape[2], 12)
    output, value, _ = learner.model(inputs)
    torch.testing.assert_close(output, torch.stack(recorder.outputs))
    torch.testing.assert_close(value, torch.stack(recorder.values))
    # What the policy read at each step is what happened in the one before.
    previous = inputs[1:, :, -2]
    torch.testing.assert_close(previous, rollout.reward.flatten(0, 1).T[:-1])
    assert (inputs[0, :, -2 - task.spec.output_size :] == 0).all()


def test_rl2_learns_a_bandit() -> None:
    task = bandit(2, 5)
    learner = rl2(task.spec)
    env = task.batch("val", range(2000))
    random = task.references("val", range(2000))["random"]
    for i in range(40):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(300 * i, 300 * i + 300)), i)
    returns = learner.evaluate(env)["return"]
    assert returns.shape == (2000, 1)
    assert float(returns.mean()) > random + 0.25  # Bayes-optimal play gains .43


def test_rl2_resumes_exactly() -> None:
    task = bandit(2, 3)

    def steps(learner: RL2, first: int, last: int) -> None:
        for i in range(first, last):
            torch.manual_seed(i)
            learner.meta_step(task.batch("train", range(20 * i, 20 * i + 20)), i)

    whole, part, resumed = rl2(task.spec), rl2(task.spec), rl2(task.spec, outer_lr=3e-3)
    steps(whole, 0, 4)
    steps(part, 0, 2)
    resumed.restore(part.checkpoint())
    steps(resumed, 2, 4)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


# Any device


@pytest.mark.parametrize("task", [bandit(3, 4), navigation(episodes=2)], ids=["bandit", "navigation"])
@pytest.mark.parametrize("make", [maml, rl2])
def test_steps_run_on_the_meta_device(task: Bandit | Navigation, make: Callable[[Spec], MAMLTRPO | RL2]) -> None:
    learner = make(task.spec).to("meta")
    task = task.to(torch.device("meta"))
    try:
        metrics = learner.meta_step(task.batch("train", range(4)), 0)
        judged = learner.evaluate(task.batch("test", range(4)))
    finally:
        task.to(torch.device("cpu"))
    assert all(value.is_meta for value in metrics.values())
    assert judged["return"].is_meta
    assert judged["return"].shape[0] == 4


@pytest.mark.parametrize("task", [bandit(3, 4), navigation(episodes=2)], ids=["bandit", "navigation"])
@pytest.mark.parametrize("make", [maml, rl2])
def test_every_learner_can_be_pictured(task: Bandit | Navigation, make: Callable[[Spec], MAMLTRPO | RL2]) -> None:
    figure = task.picture(make(task.spec))
    assert all(ax.lines for ax in figure.axes)


def test_without_a_memory_a_trial_is_as_many_episodes() -> None:
    task = bandit(3, 4)
    learner = maml(task.spec, test_rollouts=500, test_steps=0)
    returns = learner.evaluate(task.batch("val", range(200)))["return"]
    assert returns.shape == (200, 1)
    assert float(returns.mean()) == pytest.approx(task.references("val", range(200))["random"], abs=0.3)
