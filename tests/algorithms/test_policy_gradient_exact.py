"""Policy-gradient meta-learning on a process so small that every expectation is a sum over all that can happen."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from metarun.algorithms.rl.collect import Rollout
from metarun.algorithms.rl.outer_ppo import OuterPPO
from metarun.algorithms.rl.policy_gradient import Experience, PolicyGradientLearner
from metarun.models.policies import MLPPolicy
from metarun.tasks.episode import Spec

SPEC = Spec("control", "vector", (2,), 2, discrete_actions=True)
HORIZON = 2
MOVES = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.1, 0.9]]], dtype=torch.float64)
PAYS = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
INNER_LR = 0.4


class Path(NamedTuple):
    """States and actions of one episode from state 0, and the chance of its transitions."""

    states: tuple[int, int]
    actions: tuple[int, int]
    chance: float


PATHS = [Path((0, s), (a, b), float(MOVES[0, a, s])) for a, s, b in product(range(2), repeat=3)]


def learner(inner_loss: Any, exploration: float = 0.0, first_order: bool = False) -> PolicyGradientLearner:
    torch.manual_seed(0)
    model = MLPPolicy(SPEC, filters=[], hidden=[], activation="tanh", init_std=1.0)
    outer = OuterPPO(epochs=1, clip=None, kl_penalty=0.0, outer_lr=0.1, max_grad_norm=None)
    return PolicyGradientLearner(
        model, SPEC, adapts="all", rollouts=1, env_steps=None, inner_steps=1, inner_lr=INNER_LR,
        inner_loss=inner_loss, first_order=first_order, exploration=exploration, test_rollouts=1, test_env_steps=None,
        test_steps=1, test_lr=None, discount=1.0, gae_lambda=1.0, normalise=False, outer=outer,
    ).double()  # fmt: skip


def log_policy(theta: Tensor) -> Tensor:
    """log pi(a | s), [S, A], of the policy with a weight [S, A] and an offset [A]."""
    return (theta[:4].view(2, 2) + theta[4:]).log_softmax(-1)


def chance(path: Path, theta: Tensor) -> Tensor:
    (s, n), (a, b) = path.states, path.actions
    return path.chance * (log_policy(theta)[s, a] + log_policy(theta)[n, b]).exp()


def paid(path: Path) -> float:
    return sum(float(PAYS[s, a]) for s, a in zip(path.states, path.actions, strict=True))


def expected_return(theta: Tensor) -> Tensor:
    return torch.stack([chance(path, theta) * paid(path) for path in PATHS]).sum()


def adapted(path: Path, theta: Tensor) -> Tensor:
    """theta after one step of REINFORCE on this episode; the loss is a mean over its steps."""
    value = torch.zeros((), dtype=torch.float64)
    for t in range(HORIZON):
        to_go = sum(float(PAYS[path.states[k], path.actions[k]]) for k in range(t, HORIZON))
        value = value + log_policy(theta)[path.states[t], path.actions[t]] * to_go / HORIZON
    (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
    return theta + INNER_LR * gradient


def experience(paths: list[Path], theta: Tensor) -> Experience:
    """Each path as one task's only rollout, made by the policy of ``theta`` [T, P]."""
    states, actions = (torch.tensor([getattr(p, name) for p in paths])[:, None] for name in ("states", "actions"))
    reward = PAYS[states, actions]
    mask = torch.ones(reward.shape, dtype=torch.bool)
    rollout = Rollout(torch.eye(2, dtype=torch.float64)[states], actions, reward, mask, ~mask)
    to_go = reward.flip(-1).cumsum(-1).flip(-1)
    logp = torch.stack(
        [log_policy(one)[s[0], a[0]] for one, s, a in zip(theta.detach(), states, actions, strict=True)]
    )[:, None]
    return Experience(rollout, to_go, logp, torch.ones(len(paths), dtype=torch.float64))


THETA = torch.tensor([0.3, -0.2, 0.1, 0.5, 0.2, -0.4], dtype=torch.float64)


def test_an_inner_step_follows_the_gradient_of_the_expected_return() -> None:
    for inner_loss in ("likelihood", "ratio", "dice"):
        policy = learner(inner_loss)
        moved = policy.inner_step(THETA.expand(8, -1), experience(PATHS, THETA.expand(8, -1)), INNER_LR)
        weights = torch.stack([chance(path, THETA) for path in PATHS])
        leaf = THETA.clone().requires_grad_()
        (expected,) = torch.autograd.grad(expected_return(leaf), leaf)
        torch.testing.assert_close(weights @ (moved - THETA) / INNER_LR, expected / HORIZON, rtol=1e-12, atol=1e-14)


def test_only_dice_has_the_curvature_of_the_expected_return() -> None:
    exact = torch.autograd.functional.hessian(expected_return, THETA) / HORIZON
    weights = torch.stack([chance(path, THETA) for path in PATHS])
    off = {}
    known = experience(PATHS, THETA.expand(8, -1))
    for inner_loss in ("likelihood", "ratio", "dice"):
        loss = learner(inner_loss).inner_loss

        def expected(theta: Tensor, loss: Any = loss) -> Tensor:
            return -(weights * loss(theta.expand(8, -1), known)).sum()

        found = torch.autograd.functional.hessian(expected, THETA)
        off[inner_loss] = float((found - exact).norm() / exact.norm())
    assert off["dice"] < 1e-12
    assert 0.01 < off["ratio"] < off["likelihood"]
    assert off["likelihood"] > 0.2


@pytest.mark.parametrize("which", ["maml", "emaml"])
def test_the_expected_meta_gradient(which: Literal["maml", "emaml"]) -> None:
    """Of the return after adaptation; E-MAML's knows that adapting depends on what was tried, MAML's does not."""
    leaf = THETA.clone().requires_grad_()
    after = torch.stack([expected_return(adapted(path, leaf)) for path in PATHS])
    before = torch.stack([chance(path, leaf) for path in PATHS])
    (exact,) = torch.autograd.grad(((before if which == "emaml" else before.detach()) * after).sum(), leaf)

    policy = learner("likelihood", exploration=float(which == "emaml"))
    found = torch.zeros_like(THETA)
    for first, second in product(PATHS, PATHS):
        # Another task beside it, always the same, so that the baseline is a constant.
        theta = THETA.clone().requires_grad_()
        path = [experience([first, PATHS[0]], theta.expand(2, -1))]
        phi = policy.adapted(THETA, path, 2)[-1]
        post = experience([second, PATHS[0]], phi)
        phis = policy.adapted(theta, path, 2)
        loss = policy.surrogate(phis[-1], post)[0]
        if policy.exploration:
            loss = loss + policy.exploration_loss(phis, path, post)[0]
        (gradient,) = torch.autograd.grad(loss, theta)
        found -= chance(first, THETA) * chance(second, phi[0].detach()) * gradient
    torch.testing.assert_close(found, exact / HORIZON, rtol=1e-10, atol=1e-12)


def test_the_terms_that_are_left_out_matter() -> None:
    """Or the test above could not tell: MAML's gradient is not E-MAML's."""
    leaf = THETA.clone().requires_grad_()
    after = torch.stack([expected_return(adapted(path, leaf)) for path in PATHS])
    before = torch.stack([chance(path, leaf) for path in PATHS])
    whole, without = (
        torch.autograd.grad((weights * after).sum(), leaf, retain_graph=True)[0]
        for weights in (before, before.detach())
    )
    assert float((whole - without).norm() / whole.norm()) > 0.02
