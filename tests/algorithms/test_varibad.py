"""VariBAD: the lower bound against loops written out by hand, and what each of its two optimizers moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from metarun.algorithms.rl.varibad import VariBAD
from metarun.models.belief import BeliefPolicy
from metarun.tasks.rl.gridnavi import GridNavi
from metarun.tasks.rl.navigation import Navigation

GRID = GridNavi(0, size=4, horizon=4, episodes=2, observation="number")
PLANE = Navigation(0, actions="scaled", reward="distance", horizon=3, episodes=2, test_goals="drawn")


def varibad(task: Any, **changed: Any) -> VariBAD:
    torch.manual_seed(0)
    model = BeliefPolicy(task.spec, latent=2, embedding=6, hidden=7, decoder=[8], policy=[9], init_std=1.0)
    values: dict[str, Any] = {
        "rollouts": 1, "test_rollouts": 1, "discount": 0.9, "gae_lambda": 0.9, "epochs": 2, "minibatches": 2,
        "clip": 0.2, "value_weight": 0.5, "entropy_weight": 0.01, "entropy_decay_over": None,
        "max_grad_norm": 0.5, "outer_lr": 1e-3, "bounds": 100, "kl_weight": 0.3, "vae_epochs": 2, "vae_lr": 1e-3,
    }  # fmt: skip
    return VariBAD(model, task.spec, **(values | changed))


@pytest.mark.parametrize("task", [GRID, PLANE], ids=["grid", "plane"])
def test_the_lower_bound_is_the_formula(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every time of every trial (bounds=100); m is the belief's mean plus one deviation."""
    learner = varibad(task)
    env = task.batch("train", range(3))
    rollout, agent = learner.trial(env, 1)
    learner.double()
    rollout = rollout._map(lambda x: x.double() if x.is_floating_point() else x)
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    found = learner.bound(torch.stack(agent.inputs).double(), rollout, env.horizon)

    model, steps = learner.model, 2 * env.horizon
    likelihood, divergence, count = [], [], 0
    for trial in range(3):
        beliefs, hidden = [], None
        for step in range(steps):
            mean, log_variance, hidden = model.belief(agent.inputs[step][None, trial : trial + 1].double(), hidden)
            beliefs.append(Normal(mean[0, 0], (0.5 * log_variance[0, 0]).exp()))
        prior = Normal(torch.zeros(2).double(), torch.ones(2).double())
        for belief in beliefs:
            divergence.append(kl_divergence(belief, prior).sum())
            prior = belief
            m, total = belief.mean + belief.stddev, torch.zeros(()).double()
            for k in range(steps):
                if not rollout.mask[trial, 0, k]:
                    continue
                last = k % env.horizon == env.horizon - 1
                action = rollout.action[trial, 0, k]
                seen = rollout.observation[trial, 0]
                path = (seen[k], action, torch.zeros_like(seen[k]) if last else seen[k + 1])
                total = total - 0.5 * (model.reward(m, *path) - rollout.reward[trial, 0, k]) ** 2
                count += 1
            likelihood.append(total)
    assert count
    expected = torch.stack(likelihood).mean() - 0.3 * torch.stack(divergence).mean()
    torch.testing.assert_close(found["elbo"], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found["kl"], torch.stack(divergence).mean(), rtol=1e-10, atol=1e-12)


def test_the_policy_does_not_move_the_belief_nor_the_belief_the_policy() -> None:
    learner = varibad(GRID)
    parts = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    believing = {id(p) for group in learner.vae_optimizer.param_groups for p in group["params"]}
    assert not parts & believing
    assert parts | believing == {id(p) for p in learner.model.parameters()}
    rollout, agent = learner.trial(GRID.batch("train", range(4)), 1)
    before = {name: p.clone() for name, p in learner.model.named_parameters()}

    def moved() -> set[str]:
        return {name.split(".")[0] for name, p in learner.model.named_parameters() if (p != before[name]).any()}

    learner.learn_to_act(rollout, agent, learner.ppo.entropy_weight_at(0, rollout.reward))
    assert moved() == {"actor", "head", "critic", "value_head"}
    bound: Tensor = learner.bound(torch.stack(agent.inputs), rollout, 4)["elbo"]
    learner.zero_grad()
    bound.backward()
    assert all(p.grad is None or not p.grad.any() for n, p in learner.model.named_parameters() if n.startswith("actor"))


def test_beliefs_used_while_acting_are_those_of_the_whole_trial() -> None:
    learner = varibad(GRID)
    _, agent = learner.trial(GRID.batch("train", range(4)), 2)
    mean, log_variance, _ = learner.model.belief(torch.stack(agent.inputs))
    torch.testing.assert_close(mean, torch.stack([m for m, _ in agent.beliefs]))
    torch.testing.assert_close(log_variance, torch.stack([v for _, v in agent.beliefs]))


def test_rewards_are_learned_from_beliefs() -> None:
    """After some steps the decoder tells, from a trial, where its reward is."""
    learner = varibad(GRID, vae_lr=3e-3, vae_epochs=10)
    errors = []
    for iteration in range(16):
        torch.manual_seed(iteration)
        metrics = learner.meta_step(GRID.batch("train", range(40 * iteration, 40 * iteration + 40)), iteration)
        errors.append(float(metrics["reward_error"]))
    assert sum(errors[-5:]) < 0.7 * sum(errors[:5])


def test_expected_rewards_are_the_decoders_under_the_belief() -> None:
    learner = varibad(GRID, test_rollouts=2)
    env = GRID.batch("test", range(3))
    paid = GRID.believed(learner, env)
    assert paid is not None
    assert paid.shape == (3, 2, 8, 4, 4)
    _, agent = learner.trial(env, 2)
    # By hand: the corner cell (3, 3) is entered from itself (stay, up, right) and from (3, 2) and (2, 3).
    ways = [((3, 3), 0), ((3, 3), 1), ((3, 3), 2), ((3, 2), 1), ((2, 3), 2)]
    trial, time = 1 * 2 + 1, 5
    mean, log_variance = (x[trial] for x in agent.beliefs[time])
    draws = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)) * (0.5 * log_variance).exp() + mean
    rewards = []
    for (x, y), action in ways:
        metrics = (torch.eye(16)[4 * x + y], torch.tensor(action), torch.eye(16)[15])
        rewards += [learner.model.reward(m, *metrics).detach() for m in draws]
    torch.testing.assert_close(paid[1, 1, time, 3, 3], torch.stack(rewards).mean())
    assert float(paid[1, 1, time, 3, 3]) != pytest.approx(float(paid[1, 1, time, 0, 0]), abs=1e-4)
    figure = GRID.picture(learner)
    assert [len(ax.images) for ax in figure.axes[:-1]] == [1] * 18
