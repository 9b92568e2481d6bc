"""Learners of control: their estimators and gradients against direct formulas, and that they learn."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metarun.algorithms.base import Algorithm
from metarun.algorithms.rl.advantage import discounted, gae, linear_baseline, masked_mean, normalised
from metarun.algorithms.rl.base import by_step
from metarun.algorithms.rl.collect import Rollout
from metarun.algorithms.rl.distributions import Categorical, Gaussian, distribution, sampling_noise
from metarun.algorithms.rl.outer_ppo import OuterPPO
from metarun.algorithms.rl.outer_trpo import OuterTRPO, hessian
from metarun.algorithms.rl.policy_gradient import Experience, PolicyGradientLearner, over_steps
from metarun.algorithms.rl.ppo import PPOLoss, advantages
from metarun.algorithms.rl.rl2 import RL2
from metarun.algorithms.rl.rl2_trpo import RL2TRPO
from metarun.algorithms.rl.varibad import VariBAD
from metarun.algorithms.solve import conjugate_gradient
from metarun.errors import UserError
from metarun.models.belief import BeliefPolicy
from metarun.models.policies import GRUPolicy, MLPPolicy
from metarun.models.snail_policy import SnailPolicy
from metarun.models.transformer_policy import TransformerPolicy
from metarun.tasks.episode import Spec
from metarun.tasks.rl.bandit import Bandit
from metarun.tasks.rl.cartpole import CartPole
from metarun.tasks.rl.doors import Doors
from metarun.tasks.rl.maze import Maze
from metarun.tasks.rl.minigrid import MiniGrid
from metarun.tasks.rl.navigation import Navigation
from tests.slow import slow_but

CONTINUOUS = Spec("control", "vector", (2,), 2)
DISCRETE = Spec("control", "vector", (2,), 3, discrete_actions=True)
CASES = pytest.mark.parametrize(
    ("steps", "inner_loss", "changed"),
    [
        (1, "likelihood", {}),
        (2, "likelihood", {"exploration": 0.7}),
        (2, "ratio", {"adapts": "head"}),
        (2, "dice", {}),
    ],
    ids=["likelihood", "exploration", "ratio-head", "dice"],
)
SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])


def bandit(arms: int, pulls: int) -> Bandit:
    return Bandit(0, arms=arms, pulls=pulls, rewards="bernoulli")


def navigation(horizon: int = 10, episodes: int = 1) -> Navigation:
    return Navigation(0, actions="scaled", reward="distance", horizon=horizon, episodes=episodes, test_goals="drawn")


def maml(spec: Spec, hidden: int = 5, **changed: Any) -> PolicyGradientLearner:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "adapts": "all",
        "rollouts": 4,
        "inner_steps": 1,
        "inner_lr": 0.3,
        "inner_loss": "likelihood",
        "first_order": False,
        "exploration": 0.0,
        "test_rollouts": 3,
        "env_steps": None,
        "test_env_steps": None,
        "test_steps": 2,
        "test_lr": [0.5, 0.25],
        "discount": 0.99,
        "gae_lambda": 1.0,
        "normalise": True,
    }
    region = {
        "max_kl": 0.01, "fisher_rollouts": 4, "cg_iterations": 10, "damping": 1e-5, "backtracks": 10,
        "backtrack_ratio": 0.8,
    }  # fmt: skip
    outer = changed.pop("outer", None) or OuterTRPO(**(region | {k: changed.pop(k) for k in region if k in changed}))
    model = MLPPolicy(spec, filters=[], hidden=[hidden], activation="tanh", init_std=0.7)
    return PolicyGradientLearner(model, spec, outer=outer, **(values | changed))


def region(learner: PolicyGradientLearner) -> OuterTRPO:
    assert isinstance(learner.outer, OuterTRPO)
    return learner.outer


def proximal(**changed: Any) -> OuterPPO:
    values: dict[str, Any] = {"epochs": 3, "clip": 0.3, "kl_penalty": 0.01, "outer_lr": 3e-3, "max_grad_norm": None}
    return OuterPPO(**(values | changed))


def rl2(spec: Spec, hidden: int = 32, policy: str = "gru", transitions: bool = False, **changed: Any) -> RL2:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "rollouts": 1,
        "test_rollouts": 1,
        "discount": 0.99,
        "gae_lambda": 0.3,
        "reward_scale": 1.0,
        "epochs": 4,
        "minibatches": 4,
        "clip": 0.2,
        "value_weight": 0.5,
        "entropy_weight": 0.01,
        "entropy_decay_over": None,
        "reward_weight": 0.0,
        "max_grad_norm": 0.5,
        "outer_lr": 3e-3,
        "halve_every": None,
    }
    common: dict[str, Any] = {"filters": [], "transitions": transitions, "init_std": 1.0}
    model: torch.nn.Module
    match policy:
        case "transformer":
            model = TransformerPolicy(spec, width=hidden, layers=2, heads=2, **common)
        case "snail":
            model = SnailPolicy(spec, width=hidden // 2, convolutions=1, span=4, **common)
        case _:
            model = GRUPolicy(spec, hidden=hidden, **common)
    return RL2(model, spec, **(values | changed))


def random_rollout(
    spec: Spec, generator: torch.Generator, tasks: int = 3, num_envs: int = 4, steps: int = 6
) -> Rollout:
    """A float64 rollout of no environment, whose episodes end after 2 to ``steps`` steps."""
    shape = (tasks, num_envs, steps)
    length = torch.randint(2, steps + 1, shape[:2], generator=generator)
    mask = torch.arange(steps) < length[..., None]

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    if spec.discrete_actions:
        action = torch.randint(0, spec.output_size, shape, generator=generator)
    else:
        action = normal(*shape, spec.output_size)
    return Rollout(normal(*shape, 2), action, normal(*shape) * mask, mask, torch.zeros(shape).bool())


def random_experience(spec: Spec, generator: torch.Generator) -> Experience:
    rollout = random_rollout(spec, generator)
    advantage, logp = torch.randn(2, *rollout.reward.shape, generator=generator, dtype=torch.float64)
    return Experience(rollout, advantage * rollout.mask, 0.3 * logp - 2, 1 + torch.arange(len(logp)).double())


# Estimators


def textbook_gae(reward: list[float], value: list[float], discount: float, smoothing: float) -> list[float]:
    """Equation 16 of Schulman et al. (2016), sum by sum, for one sequence with an end."""
    errors = [r + discount * v_next - v for r, v, v_next in zip(reward, value, [*value[1:], 0.0], strict=True)]
    return [sum((discount * smoothing) ** i * error for i, error in enumerate(errors[s:])) for s in range(len(errors))]


@pytest.mark.parametrize("case", range(8))
def test_advantages_of_trials_are_those_of_their_running_steps_alone(case: int) -> None:
    """Credit crosses the steps in which an early end is waited out, and the values there are of no account."""
    g = torch.Generator().manual_seed(case)
    discount, smoothing = (float(x) for x in torch.rand(2, generator=g, dtype=torch.float64))
    episodes, horizon, shape = case % 4 + 1, case % 3 + 2, (3, 4)
    length = torch.randint(1, horizon + 1, (*shape, episodes), generator=g)
    mask = (torch.arange(horizon) < length[..., None]).flatten(2)
    reward, value = torch.randn(2, *mask.shape, generator=g, dtype=torch.float64)
    reward = reward * mask
    found = gae(reward, value, mask, discount, smoothing)
    for t, e in product(range(shape[0]), range(shape[1])):
        lived = mask[t, e]
        expected = textbook_gae(reward[t, e, lived].tolist(), value[t, e, lived].tolist(), discount, smoothing)
        assert found[t, e, lived].tolist() == pytest.approx(expected, abs=1e-12)
    assert (found[~mask] == 0).all()
    unread = torch.where(mask, value, float("nan"))
    assert torch.equal(gae(reward, unread, mask, discount, smoothing), found)
    returns = sum(discount**i * reward[..., i] for i in range(horizon))
    torch.testing.assert_close(discounted(reward[..., :horizon], discount)[..., 0], returns)


def test_expected_advantages_are_exact_where_values_are_true() -> None:
    """In trials whose episodes end by a choice, all outcomes enumerated: E[advantage] = Q - V, for any lambda.

    One action goes on, the other ends the episode; what they pay depends on all that went before.
    """
    g = torch.Generator().manual_seed(5)
    episodes, horizon, discount = 2, 3, 0.8
    table: dict[tuple[int, ...], tuple[float, Tensor]] = {}

    def rules(history: tuple[int, ...]) -> tuple[float, Tensor]:
        """The chance to end the episode now, and the rewards of both actions."""
        if history not in table:
            table[history] = (float(torch.rand((), generator=g)), torch.randn(2, generator=g, dtype=torch.float64))
        return table[history]

    def following(history: tuple[int, ...], step: int, action: int) -> tuple[tuple[int, ...], int]:
        """What comes after ``step`` of the trial: after an end, the next episode's first step."""
        return (*history, action), (step // horizon + 1) * horizon if action else step + 1

    def value(history: tuple[int, ...], step: int) -> float:
        if step == episodes * horizon:
            return 0.0
        end, _ = rules(history)
        return (1 - end) * worth(history, step, 0) + end * worth(history, step, 1)

    def worth(history: tuple[int, ...], step: int, action: int) -> float:
        return float(rules(history)[1][action]) + discount * value(*following(history, step, action))

    paths: list[tuple[float, list[tuple[tuple[int, ...], int, int]]]] = []

    def walk(history: tuple[int, ...], step: int, chance: float, path: list[Any]) -> None:
        if step == episodes * horizon:
            paths.append((chance, path))
            return
        end, _ = rules(history)
        for action, share in ((0, 1 - end), (1, end)):
            walk(*following(history, step, action), chance * share, [*path, (history, step, action)])

    walk((), 0, 1.0, [])
    size = (len(paths), episodes * horizon)
    reward, values = torch.zeros(2, *size, dtype=torch.float64)
    mask = torch.zeros(size, dtype=torch.bool)
    for row, (_, path) in enumerate(paths):
        for history, step, action in path:
            mask[row, step] = True
            reward[row, step], values[row, step] = rules(history)[1][action], value(history, step)
    assert not mask.all()
    for smoothing in (0.0, 0.3, 1.0):
        advantage = gae(reward, values, mask, discount, smoothing)
        sums: dict[tuple[Any, ...], list[float]] = {}
        for row, (chance, path) in enumerate(paths):
            for history, step, action in path:
                total = sums.setdefault((history, step, action), [0.0, 0.0])
                total[0] += chance * float(advantage[row, step])
                total[1] += chance
        for (history, step, action), (total_advantage, chance) in sums.items():
            exact = worth(history, step, action) - value(history, step)
            assert total_advantage / chance == pytest.approx(exact, abs=1e-10)


def test_linear_baseline_is_least_squares_a_task() -> None:
    g = torch.Generator().manual_seed(1)
    rollout = random_rollout(CONTINUOUS, g, num_envs=12, steps=9)
    found = linear_baseline(rollout.observation, rollout.reward, rollout.mask, 0.9)
    returns = discounted(rollout.reward, 0.9)
    for task in range(3):
        rows, targets, values = [], [], []
        for e in range(12):
            for s in range(int(rollout.mask[task, e].sum())):
                x, y = rollout.observation[task, e, s].tolist()
                t = s / 100
                rows.append([x, y, x * x, y * y, t, t * t, t**3, 1.0])
                targets.append(returns[task, e, s])
                values.append(found[task, e, s])
        X, y = torch.tensor(rows, dtype=torch.float64), torch.stack(targets)
        penalty = (1e-5 * len(rows)) ** 0.5 * torch.eye(8, dtype=torch.float64)
        weights = torch.linalg.lstsq(torch.cat([X, penalty]), torch.cat([y, y.new_zeros(8)])).solution
        torch.testing.assert_close(torch.stack(values), X @ weights, rtol=1e-7, atol=1e-9)
    assert (found[~rollout.mask] == 0).all()


def test_linear_baseline_of_fast_robots_and_few_steps() -> None:
    """In float32, too, where features outnumber the steps and are as different in size as a robot's."""
    noise = torch.Generator().manual_seed(0)
    seen = torch.randn(2, 3, 4, 17, generator=noise) * torch.tensor([0.1] * 8 + [8.0] * 9)
    reward, mask = torch.randn(2, 3, 4, generator=noise), torch.ones(2, 3, 4, dtype=torch.bool)
    exact = linear_baseline(seen.double(), reward.double(), mask, 0.99)
    found = linear_baseline(seen.float(), reward.float(), mask, 0.99)
    torch.testing.assert_close(found, exact.float(), rtol=1e-3, atol=1e-3)


def test_advantages_are_normalised_over_running_steps() -> None:
    rollout = random_rollout(CONTINUOUS, torch.Generator().manual_seed(2))
    values, scale = normalised(rollout.reward + 3, rollout.mask, (1, 2))
    for task in range(3):
        chosen = values[task][rollout.mask[task]]
        assert float(chosen.mean()) == pytest.approx(0, abs=1e-12)
        assert float(chosen.std(correction=0)) == pytest.approx(1, abs=1e-6)
        assert float(scale[task]) == pytest.approx(float(rollout.reward[task][rollout.mask[task]].std(correction=0)))
    assert (values[~rollout.mask] == 0).all()


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


def by_hand(
    learner: PolicyGradientLearner, theta: Tensor, path: list[Experience], task: int
) -> list[dict[str, Tensor]]:
    """One task's parameters around each inner step by plain autograd, unrolled."""
    pieces = theta.split([p.numel() for p in learner.model.parameters()])
    named = zip(learner.model.named_parameters(), pieces, strict=True)
    parameters = {name: piece.view_as(p) for (name, p), piece in named}
    found = [parameters]
    for rollout, advantage, logp_then, _ in path:
        loss = torch.zeros((), dtype=torch.float64)
        for copy in range(rollout.reward.shape[1]):
            lived = task, copy, slice(0, int(rollout.mask[task, copy].sum()))
            output = functional_call(learner.model, parameters, (rollout.observation[lived],))
            logp = distribution(learner.spec, output).log_prob(rollout.action[lived])
            change = logp - logp_then[lived]
            if learner.inner_loss_of == "likelihood":
                weights = list(logp)
            elif learner.inner_loss_of == "ratio":
                weights = list(change.exp())
            else:
                weights = [change[: n + 1].sum().exp() - change[:n].sum().exp() for n in range(len(change))]
            loss = loss - sum(w * a for w, a in zip(weights, advantage[lived], strict=True))
        loss = loss / rollout.mask[task].sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        moves = [learner.adapts == "all" or name.startswith("head.") for name in parameters]
        stepped = zip(parameters.items(), gradients, moves, strict=True)
        parameters = {name: p - learner.inner_lr * g * move for (name, p), g, move in stepped}
        found.append(parameters)
    return found


def exact_case(
    spec: Spec, steps: int, inner_loss: str = "likelihood", **changed: Any
) -> tuple[PolicyGradientLearner, Tensor, list[Tensor], list[Experience], Experience]:
    learner = maml(spec, hidden=3, inner_steps=steps, inner_loss=inner_loss, **changed).double()
    g = torch.Generator().manual_seed(5)
    path = [random_experience(spec, g) for _ in range(steps)]
    post = random_experience(spec, g)
    theta = learner.flat()
    return learner, theta, learner.adapted(theta, path, 3), path, post


def mean_outer(
    learner: PolicyGradientLearner, theta: Tensor, path: list[Experience], post: Experience, clip: float | None = None
) -> Tensor:
    losses = []
    returns = [float(sum(0.99**s * r[:, s] for s in range(6)).mean()) for r in post.rollout.reward]
    for task in range(3):
        chosen = post.rollout.mask[task]
        stages = by_hand(learner, theta, path, task)
        output = functional_call(learner.model, stages[-1], (post.rollout.observation[task][chosen],))
        logp = distribution(learner.spec, output).log_prob(post.rollout.action[task][chosen])
        ratio, advantage = (logp - post.logp[task][chosen]).exp(), post.advantage[task][chosen]
        gains = ratio * advantage
        if clip is not None:
            gains = torch.minimum(gains, ratio.clamp(1 - clip, 1 + clip) * advantage)
        loss = -gains.mean()
        if learner.exploration:
            others = [r for t, r in enumerate(returns) if t != task]
            credit = (returns[task] - sum(others) / 2) / (chosen.sum() / 4 * post.scale[task])
            for parameters, experience in zip(stages, path, strict=False):
                seen = experience.rollout.mask[task]
                output = functional_call(learner.model, parameters, (experience.rollout.observation[task][seen],))
                logp = distribution(learner.spec, output).log_prob(experience.rollout.action[task][seen])
                loss = loss - learner.exploration * credit * logp.sum()
        losses.append(loss)
    return torch.stack(losses).mean()


@SPECS
@CASES
def test_meta_gradient_is_exact(spec: Spec, steps: int, inner_loss: str, changed: dict[str, Any]) -> None:
    learner, theta, _, path, post = exact_case(spec, steps, inner_loss, **changed)

    def gradient() -> Tensor:
        leaf = theta.clone().requires_grad_()
        (found,) = torch.autograd.grad(learner.outer_loss(leaf, path, post)[0], leaf)
        return found

    def outer(theta: Tensor) -> Tensor:
        return mean_outer(learner, theta.requires_grad_(), path, post)

    found, h, way = gradient(), 1e-6, torch.randn(len(theta), generator=torch.Generator().manual_seed(9)).double()
    difference = (outer(theta + h * way) - outer(theta - h * way)).detach() / (2 * h)
    assert float(found @ way) == pytest.approx(float(difference), rel=1e-6)
    leaf = theta.clone().requires_grad_()
    (unrolled,) = torch.autograd.grad(outer(leaf), leaf)
    torch.testing.assert_close(found, unrolled, rtol=1e-10, atol=1e-12)
    learner.first_order = True
    assert float((gradient() - unrolled).norm() / unrolled.norm()) > 1e-3


def test_first_order_takes_the_derivative_of_the_adaptation_for_the_identity() -> None:
    learner, theta, phis, path, post = exact_case(CONTINUOUS, 2, first_order=True)
    leaf, last = theta.clone().requires_grad_(), phis[-1].clone().requires_grad_()
    (found,) = torch.autograd.grad(learner.outer_loss(leaf, path, post)[0], leaf)
    (expected,) = torch.autograd.grad(learner.surrogate(last, post).mean(), last)
    torch.testing.assert_close(found, expected.sum(0))


@SPECS
def test_a_clipped_outer_loss_with_its_penalty_is_the_formula(spec: Spec) -> None:
    """One step of descent on it, in place of Adam's."""
    learner, theta, _, path, post = exact_case(spec, 2, "ratio", outer=proximal(epochs=1, clip=0.05))
    learner.optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    phi, old = theta.expand(3, -1), []
    for experience in [*path, post]:
        old.append(learner.policy(phi, experience.rollout))
        experience.logp.copy_(old[-1].log_prob(experience.rollout.action))
        phi = learner.inner_step(phi, experience, learner.inner_lr)

    def formula(theta: Tensor) -> Tensor:
        loss = mean_outer(learner, theta, path, post, clip=0.05)
        for task, (step, experience) in product(range(3), enumerate(path)):
            parameters = by_hand(learner, theta, path, task)[step]
            output = functional_call(learner.model, parameters, (experience.rollout.observation[task],))
            kl = distribution(spec, output).kl_from(_task(old[step], task))  # type: ignore[arg-type]
            loss = loss + 0.01 * kl[experience.rollout.mask[task]].mean() / 3
        return loss

    # Away from where the rollouts were made, so that ratios are clipped and divergences are not at their minimum.
    away = theta + 0.05 * torch.randn(len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = away.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(formula(leaf), leaf)
    learner.load(away)
    _, moved, _ = learner.outer_loss(away.clone().requires_grad_(), path, post, 0.05)
    assert ((learner.ratio(moved[-1], post) - 1).abs() > 0.05).any()
    before = learner.adapted
    learner.adapted = lambda at, *rest: before(theta if not at.requires_grad else at, *rest)  # type: ignore[method-assign]
    learner.outer.step(learner, path, post)
    torch.testing.assert_close(learner.flat(), away - 0.1 * gradient, rtol=1e-9, atol=1e-12)


@SPECS
@CASES
def test_metric_is_the_hessian_of_the_divergence(
    spec: Spec, steps: int, inner_loss: str, changed: dict[str, Any]
) -> None:
    learner, theta, phis, path, post = exact_case(spec, steps, inner_loss, **changed)
    with torch.no_grad():
        old = learner.policy(phis[-1], post.rollout)

    def divergence(theta: Tensor) -> Tensor:
        values = []
        for task in range(3):
            output = functional_call(
                learner.model, by_hand(learner, theta, path, task)[-1], (post.rollout.observation[task],)
            )
            kl = distribution(spec, output).kl_from(_task(old, task))  # type: ignore[arg-type]
            values.append(kl[post.rollout.mask[task]].mean())
        return torch.stack(values).mean()

    exact = torch.autograd.functional.hessian(divergence, theta.clone(), vectorize=True)
    product = region(learner).metric(learner, phis, path, post)
    columns = torch.stack([product(e) for e in torch.eye(len(theta)).double()])
    torch.testing.assert_close(columns, exact, rtol=1e-8, atol=1e-10)


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

        def chances(theta: Tensor, learner: PolicyGradientLearner = learner) -> Tensor:
            policy = learner.policy(theta[None], _steps(seen, torch.zeros(1, rows, 1).long()).first(1))
            assert isinstance(policy, Categorical)
            return policy.logp[0, 0, 0].exp()

        first = round(rows * chances(theta)[0].item())
        action = (torch.arange(rows) >= first).long().view(1, rows, 1)
        rollout, phi = _steps(seen, action), theta[None].clone().requires_grad_()
        logp = learner.policy(phi, rollout).log_prob(action).detach()
        experience = Experience(rollout, 1.0 - 2.0 * action, logp, torch.ones(1))
        (gradient,) = torch.autograd.grad(learner.inner_loss(phi, experience).sum(), phi)
        product = hessian(learner.inner_loss, phi, experience)

        def loss_expected(theta: Tensor) -> Tensor:
            p = chances(theta)
            return p[1] - p[0]

        expected = torch.autograd.functional.jacobian(loss_expected, theta)
        torch.testing.assert_close(gradient[0], expected, atol=1e-3, rtol=0)
        exact = torch.autograd.functional.hessian(loss_expected, theta)
        found = torch.stack([product(e[None])[0] for e in torch.eye(len(theta)).double()])
        off[inner_loss] = float((found - exact).norm() / exact.norm())
    assert off["ratio"] < 1e-3
    assert off["likelihood"] > 0.05


def _steps(observation: Tensor, action: Tensor) -> Rollout:
    mask = torch.ones(action.shape, dtype=torch.bool)
    return Rollout(observation, action, torch.zeros(action.shape).double(), mask, ~mask)


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_a_trust_region_step_improves_within_its_bound(inner_steps: int) -> None:
    learner = maml(CONTINUOUS, rollouts=8, inner_steps=inner_steps)
    before = learner.flat()
    metrics = learner.meta_step(navigation().batch("train", range(6)), 0)
    assert 0 < float(metrics["kl"]) <= 0.01
    assert float(metrics["gain"]) > 0
    assert not torch.equal(before, learner.flat())


def test_the_line_search_shortens_and_refuses() -> None:
    learner, theta, _, path, post = exact_case(CONTINUOUS, 1, backtracks=40)
    leaf = theta.clone().requires_grad_()
    start, _, old = learner.outer_loss(leaf, path, post)
    (downhill,) = torch.autograd.grad(start, leaf)

    def search(step: Tensor) -> tuple[Tensor, Tensor]:
        there, gain, kl = region(learner).trpo.line_search(theta, step, start.detach(), judge)
        learner.load(there)
        return gain, kl

    def judge(candidate: Tensor) -> tuple[Tensor, Tensor]:
        loss, _, policy = learner.outer_loss(candidate, path, post)
        return loss, over_steps(policy.kl_from(old), post.rollout).mean()  # type: ignore[arg-type]

    gain, kl = search(-1e-2 * downhill)
    assert gain == 0
    assert kl == 0
    assert torch.equal(theta, learner.flat())
    gain, kl = search(downhill / downhill.norm())
    moved = (theta - learner.flat()).norm()
    assert gain > 0
    assert 0 < kl <= region(learner).trpo.max_kl
    assert any(float(moved) == pytest.approx(0.8**i) for i in range(1, 40))


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
    for i in range(10):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(20 * i, 20 * i + 20)), i)
    judged.append(learner.evaluate(task.batch("val", range(20)))["return"].mean(0))
    assert judged[1][1] > judged[0][1] + 1.0  # better after a step than it was,
    assert judged[1][1] > judged[1][0] + 1.0  # and better than before the step


# RL2


@pytest.mark.parametrize("task", [bandit(3, 4), navigation(horizon=5, episodes=2)], ids=["bandit", "navigation"])
@pytest.mark.parametrize("policy", ["gru", "transformer", "snail"])
def test_replayed_trials_have_the_likelihoods_of_their_collection(task: Bandit | Navigation, policy: str) -> None:
    learner = rl2(task.spec, policy=policy)
    env = task.batch("train", range(6))
    rollout, agent = learner.trial(env, 2)
    inputs = torch.stack(agent.inputs)
    assert inputs.shape[:2] == (rollout.reward.shape[2], 12)
    output, value, _ = learner.model(inputs)
    torch.testing.assert_close(output, torch.stack(agent.outputs))
    torch.testing.assert_close(value, torch.stack(agent.values))
    # What the policy read at each step is what happened in the one before.
    previous = inputs[1:, :, -2]
    torch.testing.assert_close(previous, rollout.reward.flatten(0, 1).T[:-1])
    assert (inputs[0, :, -2 - task.spec.output_size :] == 0).all()


@pytest.mark.parametrize("policy", ["gru", "transformer", "snail"])
def test_a_percept_can_tell_of_a_whole_transition(policy: str) -> None:
    task = navigation(horizon=5, episodes=2)
    learner = rl2(task.spec, policy=policy, transitions=True)
    rollout, agent = learner.trial(task.batch("train", range(6)), 2)
    before = torch.stack(agent.inputs)[..., -2:]
    assert (before[0] == 0).all()
    assert torch.equal(before[1:], by_step(rollout.observation)[:-1])
    learner.meta_step(task.batch("train", range(6)), 0)
    image = Spec("control", "image", (3, 4, 4), 2, discrete_actions=True)
    with pytest.raises(
        UserError, match=r"^model.transitions=true: needs vector observations, but this task's are images"
    ):
        rl2(image, policy=policy, transitions=True)


@SPECS
def test_loss_of_predicted_rewards(spec: Spec) -> None:
    """Half the mean squared error of a linear function of features and action, by hand; and its derivative."""
    g = torch.Generator().manual_seed(3)
    learner = rl2(spec, hidden=4, reward_weight=0.7).double()
    plain = rl2(spec, hidden=4).double()
    plain.load_state_dict(learner.state_dict(), strict=False)
    rollout = random_rollout(spec, g)
    mask, action = by_step(rollout.mask), by_step(rollout.action)
    inputs = torch.randn(*mask.shape, learner.model.encode.size, generator=g, dtype=torch.float64)
    like = mask.double()
    steps = [inputs, action, -like, like, 2 * like, mask, by_step(rollout.reward)]
    weight = learner.ppo.entropy_weight_at(0, like)
    found = learner.loss(weight, *steps) - plain.loss(weight, *steps)

    weight, bias = (p.detach() for p in learner.rewards.parameters())  # type: ignore[union-attr]
    features = learner.model.features(inputs)[0].detach()
    total, slope = 0.0, torch.zeros_like(weight)
    for s, b in mask.nonzero().tolist():
        taken = torch.zeros(spec.output_size + 1).double()
        taken[:-1] = torch.eye(spec.output_size)[action[s, b]] if spec.discrete_actions else action[s, b]
        taken[-1] = 1.0
        error = (features[s, b] @ weight + bias) @ taken - steps[-1][s, b]
        total += float(0.7 * error**2 / 2 / mask.sum())
        slope += 0.7 * error * torch.outer(features[s, b], taken) / mask.sum()
    assert float(found) == pytest.approx(total, rel=1e-12)
    (derivative,) = torch.autograd.grad(found, [learner.rewards.linear.weight])  # type: ignore[union-attr]
    torch.testing.assert_close(derivative, slope, rtol=1e-10, atol=1e-14)


def test_predicted_rewards_are_learned_and_resumed() -> None:
    """A step moves the head that predicts them, and it is of the checkpoint."""
    task = bandit(2, 5)
    learner = rl2(task.spec, reward_weight=1.0)
    before = learner.rewards.linear.weight.clone()  # type: ignore[union-attr]
    learner.meta_step(task.batch("train", range(300)), 0)
    after = learner.rewards.linear.weight  # type: ignore[union-attr]
    assert (after != before).any()
    other = rl2(task.spec, reward_weight=1.0, outer_lr=1e-3)
    other.restore(learner.checkpoint())
    assert torch.equal(other.rewards.linear.weight, after)  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", slow_but(["gru"], ["gru", "transformer", "snail"]))
def test_rl2_learns_a_bandit(policy: str) -> None:
    task = bandit(2, 5)
    learner = rl2(task.spec, policy=policy)
    env = task.batch("val", range(1000))
    random = task.references("val", range(1000))["random"]
    for i in range(25):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(300 * i, 300 * i + 300)), i)
    returns = learner.evaluate(env)["return"]
    assert returns.shape == (1000, 1)
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


# RL2 by TRPO


def rl2_trpo(spec: Spec, hidden: int = 32, policy: str = "gru", **changed: Any) -> RL2TRPO:
    values: dict[str, Any] = {
        "rollouts": 1, "test_rollouts": 1, "discount": 0.99, "gae_lambda": 0.3, "max_kl": 0.02, "fisher_share": 0.5,
        "cg_iterations": 10, "damping": 1e-3, "backtracks": 10, "backtrack_ratio": 0.8, "value_epochs": 4,
        "minibatches": 4, "value_lr": 0.01,
    }  # fmt: skip
    return RL2TRPO(rl2(spec, hidden, policy).model, spec, **(values | changed))


@SPECS
@pytest.mark.parametrize("policy", slow_but(["gru"], ["gru", "transformer", "snail"]))
def test_metric_of_a_recurrent_policy_is_the_mean_square_of_its_score(spec: Spec, policy: str) -> None:
    """E[score score^T] over episodes' steps, the expectation by hand over all actions, or a quadrature of Gaussians."""
    learner = rl2_trpo(spec, hidden=4, policy=policy).double()
    g = torch.Generator().manual_seed(2)
    inputs = torch.randn(3, 2, learner.model.encode.size, generator=g, dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    parameters = list(learner.acting().values())
    count = sum(p.numel() for p in parameters)
    expected = torch.zeros(count, count).double()
    if spec.discrete_actions:
        tries = [(torch.tensor(a), 1.0) for a in range(spec.output_size)]
    else:  # standard normal draws: three points a dimension are exact for polynomials of degree 5
        points = [(-(3**0.5), 1 / 6), (0.0, 2 / 3), (3**0.5, 1 / 6)]
        tries = [(torch.tensor([x, y], dtype=torch.float64), p * q) for (x, p), (y, q) in product(points, repeat=2)]
    for step, trial in mask.nonzero().tolist():
        for drawn, weight in tries:
            policy = distribution(spec, learner.model(inputs)[0][step, trial])
            action = drawn if spec.discrete_actions else policy.sample(drawn).detach()
            logp = policy.log_prob(action)
            chance = float(logp.detach().exp()) if spec.discrete_actions else weight
            score = torch.cat([x.flatten() for x in torch.autograd.grad(logp, parameters)])
            expected += chance * torch.outer(score, score) / int(mask.sum())
    metric = learner.metric(inputs, mask)
    columns = torch.stack([metric(e) for e in torch.eye(count).double()])
    torch.testing.assert_close(columns, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["gru", "transformer", "snail"])
def test_rl2_by_trpo_learns_a_bandit(policy: str) -> None:
    task = bandit(2, 5)
    learner = rl2_trpo(task.spec, policy=policy, discount=1.0, gae_lambda=0.9)
    before = {name: p.clone() for name, p in learner.named_parameters()}
    for i in range(20):
        torch.manual_seed(i)
        metrics = learner.meta_step(task.batch("train", range(1000 * i, 1000 * i + 1000)), i)
        assert 0 <= float(metrics["kl"]) <= 0.02
        if i == 0:
            assert float(metrics["gain"]) > 0
            assert all((p != before[name]).any() for name, p in learner.named_parameters() if "value" in name)
    random = task.references("val", range(2000))["random"]
    returns = learner.evaluate(task.batch("val", range(2000)))["return"]
    assert float(returns.mean()) > random + 0.25  # Bayes-optimal play gains .43


# Any device


@pytest.mark.slow  # beside the contract tables' cells
@pytest.mark.parametrize("task", [bandit(3, 4), navigation(episodes=2)], ids=["bandit", "navigation"])
@pytest.mark.parametrize("make", [maml, rl2, rl2_trpo])
def test_steps_run_on_the_meta_device(
    task: Bandit | Navigation, make: Callable[[Spec], PolicyGradientLearner | RL2]
) -> None:
    learner = make(task.spec).to("meta")
    task = task.to(torch.device("meta"))
    try:
        metrics = learner.meta_step(task.batch("train", range(4)), 0)
        judged = learner.evaluate(task.batch("test", range(4)))
    finally:
        task.to(torch.device("cpu"))
    # The optimizer still holds the parameters from before the move, whose gradients have no norm.
    assert all(value.is_meta for name, value in metrics.items() if name != "gradient_norm")
    assert judged["return"].is_meta
    assert judged["return"].shape[0] == 4


@pytest.mark.parametrize("task", [bandit(3, 4), navigation(episodes=2)], ids=["bandit", "navigation"])
@pytest.mark.parametrize("make", [maml, rl2])
def test_every_learner_can_be_pictured(
    task: Bandit | Navigation, make: Callable[[Spec], PolicyGradientLearner | RL2]
) -> None:
    figure = task.picture(make(task.spec))
    assert all(ax.lines for ax in figure.axes)


def test_without_a_memory_a_trial_is_as_many_episodes() -> None:
    task = bandit(3, 4)
    learner = maml(task.spec, test_rollouts=500, test_steps=0)
    returns = learner.evaluate(task.batch("val", range(200)))["return"]
    assert returns.shape == (200, 1)
    assert float(returns.mean()) == pytest.approx(task.references("val", range(200))["random"], abs=0.3)


def test_more_episodes_are_drawn_until_the_environment_steps_of_an_update_are_made() -> None:
    task = navigation(horizon=4)
    learner = maml(task.spec, rollouts=2, env_steps=9, test_rollouts=3, test_env_steps=18, test_steps=2)
    drawn = [rollout.reward.shape for rollout in learner.rollouts(task.batch("val", range(2)))]
    assert drawn == [(2, 5, 4)] * 3  # 5 episodes of 4 steps are the first to make 18
    step, seen = learner.outer.step, []
    learner.outer.step = lambda of, path, post: seen.extend([*path, post]) or step(of, path, post)  # type: ignore
    learner.meta_step(task.batch("train", range(2)), 0)
    assert [each.advantage.shape for each in seen] == [(2, 3, 4)] * 2


@SPECS
def test_the_loss_of_ppo_is_the_formula(spec: Spec) -> None:
    """Step by step, on ratios on both sides of both bounds; and its gradient is towards more entropy."""
    g = torch.Generator().manual_seed(11)
    size, steps = spec.output_size * (1 if spec.discrete_actions else 2), 400
    outputs = torch.randn(steps, size, generator=g, dtype=torch.float64).requires_grad_()
    policy = distribution(spec, outputs)
    action = policy.sample(sampling_noise(spec, (steps,), torch.device("cpu"), g)).detach()
    change, advantage, value, target = torch.randn(4, steps, generator=g, dtype=torch.float64)
    old_logp = (policy.log_prob(action) - 0.4 * change).detach()
    mask = torch.rand(steps, generator=g) < 0.7
    ppo = PPOLoss(0.2, 0.7, 0.3)
    terms, cases = [], set()
    for i in mask.nonzero()[:, 0].tolist():
        ratio, a = math.exp(0.4 * float(change[i])), float(advantage[i])
        surrogate = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        cases.add((ratio < 0.8, ratio > 1.2, a > 0))
        own = distribution(spec, outputs[i].detach())
        terms.append(0.7 * 0.5 * float(value[i] - target[i]) ** 2 - surrogate - 0.3 * float(own.entropy()))
    assert len(cases) == 6
    weight = ppo.entropy_weight_at(0, value)
    loss = ppo.loss(weight, policy, value, action, old_logp, advantage, target, mask)
    assert float(loss.detach()) == pytest.approx(sum(terms) / len(terms), rel=1e-12)

    still = torch.zeros_like(advantage)
    alone = ppo.loss(weight, policy, target, action, old_logp, still, target, mask)
    (slope,) = torch.autograd.grad(alone, outputs)
    more = distribution(spec, outputs.detach() - 10 * slope)
    assert float(masked_mean(more.entropy(), mask)) > float(masked_mean(policy.entropy(), mask))


def test_whose_steps_advantages_are_normalised_over() -> None:
    """RL2 and VariBAD over those of all tasks together, so that rich tasks weigh more; MAML over each task's own."""
    task = navigation(horizon=6, episodes=2)
    env = task.batch("train", range(5))
    learner = rl2(task.spec)
    rollout, agent = learner.trial(env, 3)
    advantage, target = advantages(rollout, agent.values, 0.9, 0.8)
    value = torch.stack(agent.values, -1).view_as(advantage)
    raw = gae(rollout.reward, value, rollout.mask, 0.9, 0.8)
    lived = rollout.mask
    mean, deviation = raw[lived].mean(), raw[lived].std(correction=0)
    torch.testing.assert_close(advantage[lived], (raw[lived] - mean) / deviation, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target[lived], (raw + value)[lived])
    assert float(advantage.mean((1, 2)).abs().max()) > 0.05

    experience = maml(task.spec).experience(env, maml(task.spec).flat().expand(5, -1), 4, env.generator())
    for each, alive in zip(experience.advantage, experience.rollout.mask, strict=True):
        assert float(each[alive].mean()) == pytest.approx(0, abs=1e-5)
        assert float(each[alive].std(correction=0)) == pytest.approx(1, abs=1e-4)


def early_ends() -> dict[str, Any]:
    """Families whose episodes can end before their horizon, by name."""
    near = [0.05, 0.05]
    families: dict[str, Any] = {
        "doors": Doors(0, doors=2, cost=1.5, actions="discrete", horizon=4, episodes=3),
        "maze": Maze(0, size=2, loops=0.5, layouts=None, view=1, position=True, horizon=6, episodes=3),
        "cartpole": CartPole(
            0, gravity=[9.8, 9.8], cart_mass=[1, 1], pole_mass=[0.1, 0.1], half_length=near, force=[10, 10],
            extrapolate=0.0, swapped=0.0, horizon=20, episodes=3,
        ),
    }  # fmt: skip
    with contextlib.suppress(UserError):  # without MiniGrid or Atari they are left out
        actions: list[Any] = ["left", "right", "forward", "pickup"]
        families["minigrid"] = MiniGrid(
            0, env="MiniGrid-Fetch-5x5-N2-v0", words=0, actions=actions, held_out="layouts", horizon=12, episodes=2
        )
    return families


@pytest.mark.parametrize("name", ["doors", "maze", "cartpole", "minigrid"])
def test_advantages_in_families_whose_episodes_end_early(name: str) -> None:
    """Those of a learner's own trials are the textbook's on the steps that were played, one after the other."""
    families = early_ends()
    if name not in families:
        pytest.skip(f"{name} is not installed")
    task = families[name]
    learner = rl2(task.spec)
    rollout, agent = learner.trial(task.batch("train", range(6)), 2)
    assert not rollout.mask.all()
    value = torch.stack(agent.values, -1).view_as(rollout.reward)
    found = gae(rollout.reward, value, rollout.mask, 0.9, 0.7)
    for t, e in product(range(6), range(2)):
        lived = rollout.mask[t, e]
        expected = textbook_gae(rollout.reward[t, e, lived].tolist(), value[t, e, lived].tolist(), 0.9, 0.7)
        assert found[t, e, lived].tolist() == pytest.approx(expected, abs=1e-4)


def doors_learner(name: str, task: Doors) -> Algorithm:
    """Small networks; what else there is as in ``conf/algorithm``."""
    if name == "rl2":
        return rl2(task.spec)
    if name == "rl2_trpo":
        return rl2_trpo(task.spec, hidden=32, discount=0.99, gae_lambda=0.3, max_kl=0.03)
    torch.manual_seed(0)
    model = BeliefPolicy(task.spec, latent=2, embedding=16, hidden=16, decoder=[16], policy=[32], init_std=1.0)
    return VariBAD(
        model, task.spec, rollouts=1, test_rollouts=1, discount=0.95, gae_lambda=0.95, epochs=4, minibatches=4,
        clip=0.2, value_weight=0.5, entropy_weight=0.01, entropy_decay_over=None, max_grad_norm=0.5, outer_lr=3e-3,
        bounds=4, kl_weight=0.05, vae_epochs=3, vae_lr=3e-3,
    )  # fmt: skip


@pytest.mark.parametrize("name", slow_but(["varibad"], ["rl2", "rl2_trpo", "varibad"]))
def test_who_is_paid_for_exploring_only_in_later_episodes_explores(name: str) -> None:
    """A first door costs more than it pays, ends its episode early, and tells where the prize is."""
    task = Doors(0, doors=2, cost=1.5, actions="discrete", horizon=4, episodes=3)
    learner = doors_learner(name, task)
    for i in range(30):
        torch.manual_seed(i)
        learner.meta_step(task.batch("train", range(100 * i, 100 * i + 100)), i)
    found = learner.evaluate(task.batch("test", range(1000)))
    first, *_, last = found["episode_return"].mean(0).tolist()
    assert first < -0.15  # it opens a door though that costs .25 on average
    assert last > 0.9
    assert float(found["return"].mean()) > 1.75 - 0.25  # the optimum; who does not explore has 0


def test_the_weight_of_the_entropy_falls_to_nothing() -> None:
    spec = Spec("control", "state", (2,), 3, discrete_actions=True)
    ppo = rl2(spec, entropy_weight=0.2, entropy_decay_over=100).ppo
    weights = [float(ppo.entropy_weight_at(i, torch.zeros(()))) for i in (0, 50, 75, 100, 200)]
    assert weights == pytest.approx([0.2, 0.1, 0.05, 0.0, 0.0])
    assert float(PPOLoss(0.2, 0.7, 0.3).entropy_weight_at(10_000, torch.zeros(()))) == pytest.approx(0.3)
