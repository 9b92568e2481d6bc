"""Decision-pretrained transformers: labels against exact returns, the loss by prefixes, who acts in which trial."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.algorithms.rl.collect import collect
from metarun.algorithms.rl.dpt import DPT, Explorer, OfflineAgent
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.rl.bandit import Bandit
from metarun.tasks.rl.gridnavi import GridNavi
from metarun.tasks.rl.recording import ExpertEnv
from tests.composed import composed

GRID = GridNavi(0, size=4, horizon=4, episodes=3, observation="coordinates")
BANDIT = Bandit(0, arms=3, pulls=6, rewards="uniform")


def family(name: str, **changes: Any) -> Any:
    return construct(composed(f"task={name}")["task"] | changes, seed=0)


def dpt(task: Any, model: str = "transformer_policy", **changes: Any) -> DPT:
    torch.manual_seed(0)
    small = {"width": 8, "heads": 2} if model == "transformer_policy" else {"hidden": 16}
    policy = construct(composed(f"model={model}", "task=rl/bandit")["model"] | small, spec=task.spec)
    return construct(composed("algorithm=dpt")["algorithm"] | changes, model=policy, spec=task.spec)


@pytest.mark.parametrize(
    ("name", "changes", "reference"),
    [
        ("rl/bandit", {"rewards": "uniform", "pulls": 20}, "oracle"),
        ("rl/bandit", {"rewards": "gaussian", "pulls": 20}, "oracle"),
        ("rl/mdp", {"states": 4, "horizon": 5, "episodes": 4}, "optimum"),
        ("rl/gridnavi", {}, "oracle"),
        ("rl/darkroom", {}, "oracle"),
        ("rl/darkroom", {"size": 4, "key": True, "start": "random", "reward": "once"}, "oracle"),
    ],
    ids=["bandit", "gaussian", "mdp", "gridnavi", "darkroom", "key_to_door"],
)
def test_optimal_actions_have_the_optimal_return(name: str, changes: dict[str, Any], reference: str) -> None:
    task = family(name, **changes)
    env = ExpertEnv(task.batch("test", range(40)))
    rollout = collect(
        env, task.spec, lambda _: env.optimal[-1].float().log().clamp_min(-99), 200, env.episodes, env.generator()
    )
    returns = rollout.returns()
    deviation = float(returns.std(1).mean()) / (40 * 200) ** 0.5
    expected = task.references("test", range(40))[reference]
    assert float(returns.mean()) == pytest.approx(expected, rel=1e-5, abs=4 * deviation)


@pytest.mark.parametrize("model", ["transformer_policy", "gru_policy"])
@pytest.mark.usefixtures("float64")
def test_the_loss_prefix_by_prefix(model: str) -> None:
    learner = dpt(GRID, model)
    env = ExpertEnv(GRID.batch("train", range(3)))
    agent = Explorer(learner.model, 5, 0.0)
    rollout = collect(env, GRID.spec, agent, 1, env.episodes, env.generator())
    total = 0.0
    for task in range(3):
        for step in range(12):
            history = torch.stack(agent.inputs[: step + 1])[:, task : task + 1]
            logp = learner.model(history)[0][-1, 0].log_softmax(-1)
            x, y = ((rollout.observation[task, 0, step] + 1) * 1.5).round().long().tolist()
            goal_x, goal_y = GRID.goals("train", [task])[0].tolist()
            best = [goal_x == x and goal_y == y, goal_y > y, goal_x > x, goal_y < y, goal_x < x]
            total -= sum(logp[a].item() / sum(best) for a in range(5) if best[a]) / 36
    optimal = torch.stack(env.optimal, 2).flatten(0, 1).transpose(0, 1)
    found = learner.loss(torch.stack(agent.inputs), optimal, rollout.mask.flatten(0, 1).T)
    assert found.item() == pytest.approx(total, rel=1e-10)


def outputs(learner: DPT, agent: Any, first: int = 0) -> Tensor:
    """The policy's output for the whole history, from step ``first`` on, [S, B, A]."""
    with torch.no_grad():
        return learner.model(torch.stack(agent.inputs))[0][first:]


def test_who_acts_in_a_trial() -> None:
    learner, env = dpt(BANDIT), BANDIT.batch("train", range(400))
    torch.manual_seed(0)
    agent, seen = Explorer(learner.model, 3, 0.25), []

    def watched(transition: Any) -> Tensor:
        seen.append(agent(transition))
        return seen[-1]

    rollout = collect(env, BANDIT.spec, watched, 2, 6, env.generator())
    logits = torch.stack(seen).flatten(1, 2)
    torch.testing.assert_close(logits[:, :200], outputs(learner, agent)[:, :200], rtol=1e-4, atol=1e-5)
    chances = logits[:, 200:].exp()
    torch.testing.assert_close(chances.sum(-1), torch.ones(chances.shape[:2]))
    assert torch.equal(chances[0], chances[-1])  # the same in all of a trial
    share = (chances[0] > 0.999).any(-1).float().mean()  # one in eleven always takes the same action
    assert share == pytest.approx(1 / 11, abs=0.04)
    taken = torch.nn.functional.one_hot(rollout.action.flatten(0, 1)[200:], 3).float().mean(1)
    assert float((taken - chances[0]).mean(0).abs().max()) < 0.03
    free = Explorer(learner.model, 3, 0.0)
    collect(env, BANDIT.spec, free, 2, 6, env.generator())
    assert not free.state  # the policy is not asked


def test_the_temperature_divides_what_actions_are_sampled_from() -> None:
    learner, env = dpt(BANDIT, temperature=0.5), BANDIT.batch("test", range(5))
    act, asked = learner.agent(env), []

    def watched(transition: Any) -> Tensor:
        asked.append((transition, act(transition)))
        return asked[-1][1]

    collect(env, BANDIT.spec, watched, 1, 6, env.generator())
    inputs = torch.stack([learner.model.encode(*transition).flatten(0, 1) for transition, _ in asked])
    with torch.no_grad():
        expected = learner.model(inputs)[0] / 0.5
    torch.testing.assert_close(torch.stack([said[:, 0] for _, said in asked]), expected, rtol=1e-4, atol=1e-5)


def test_offline_actions_are_the_most_probable_after_a_random_context() -> None:
    learner, env = dpt(GRID), GRID.batch("test", range(300))
    agent = OfflineAgent(learner.model, 5, 8)
    rollout = collect(env, GRID.spec, agent, 1, 3, env.generator())
    taken = rollout.action.flatten(0, 1).T
    assert torch.equal(taken[8:], outputs(learner, agent, 8).argmax(-1))
    shares = torch.bincount(taken[:8].flatten(), minlength=5) / taken[:8].numel()
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.03, rtol=0)
    found = learner.evaluate(env)
    torch.testing.assert_close(found["offline_return"], rollout.episode(2, 4).returns())
    assert found["episode_return"].shape == (300, 3)


def test_it_learns_to_walk_to_where_goals_are_and_to_the_goal() -> None:
    learner, env = dpt(GRID, "gru_policy", minibatches=1, outer_lr=1e-2), GRID.batch("test", range(500))
    before = learner.evaluate(env)
    losses = [float(learner.meta_step(GRID.batch("train", range(i, i + 100)), i)["loss"]) for i in range(0, 6000, 100)]
    after = learner.evaluate(env)
    assert losses[-1] < losses[0] - 0.3
    assert after["return"].mean() > before["return"].mean() + 0.4
    assert after["offline_return"].mean() > before["offline_return"].mean() + 0.15


def test_a_task_without_optimal_actions_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm=dpt learns from optimal actions, which this task does not tell"):
        dpt(family("rl/doors"))
