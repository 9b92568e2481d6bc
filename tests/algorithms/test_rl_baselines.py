"""Controls of control: what is counted, believed and planned, against loops written out by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.algorithms.rl.baselines import Planner, Planning, RandomActions, pick
from metarun.algorithms.rl.collect import Transition, collect
from metarun.evaluation.evaluator import evaluate
from metarun.tasks.episode import Spec
from metarun.tasks.rl.bandit import Bandit
from metarun.tasks.rl.mdp import TabularMDP, plan

MDP = TabularMDP(2, states=3, actions=2, horizon=4, episodes=3)


def planning(spec: Spec, belief: Any, bonus: float = 1.0, epsilon: float = 0.0) -> Planning:
    return Planning(nn.Linear(1, 1), spec, belief=belief, bonus=bonus, epsilon=epsilon, test_rollouts=2)


def test_planning_is_the_recursion_of_bellman() -> None:
    torch.manual_seed(0)
    moves, reward = torch.rand(2, 3, 2, 3, dtype=torch.float64).softmax(-1), torch.randn(2, 3, 2, dtype=torch.float64)

    def worth(task: int, s: int, a: int, left: int) -> float:
        after = 0.0
        if left > 1:
            after = sum(
                float(moves[task, s, a, n]) * max(worth(task, n, b, left - 1) for b in range(2)) for n in range(3)
            )
        return float(reward[task, s, a]) + after

    values = plan(moves, reward, 4)
    for step, task, s, a in product(range(4), range(2), range(3), range(2)):
        assert float(values[step][task, s, a]) == pytest.approx(worth(task, s, a, 4 - step), rel=1e-12)
        assert float(pick(values[step], torch.tensor([s, s]))[task, a]) == float(values[step][task, s, a])


def test_counts_are_those_of_the_rollout() -> None:
    env = MDP.batch("train", range(3))
    planner = planning(MDP.spec, "mean").agent(env)
    assert isinstance(planner, Planner)
    rollout = collect(env, MDP.spec, planner, 2, 3, env.generator())
    state = rollout.observation.argmax(-1)
    for task, copy in product(range(3), range(2)):
        tries, paid, moves = torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 2, 3)
        for step in range(11):  # nothing is asked after the last step, so it is not counted
            s, a = int(state[task, copy, step]), int(rollout.action[task, copy, step])
            tries[s, a] += 1
            paid[s, a] += rollout.reward[task, copy, step]
            if step % 4 != 3:
                moves[s, a, int(state[task, copy, step + 1])] += 1
        assert torch.equal(planner.tries[task, copy], tries)
        assert torch.allclose(planner.paid[task, copy], paid)
        assert torch.equal(planner.moves[task, copy], moves)


def transition(spec: Spec) -> Transition:
    shape = (1, 1)
    seen = torch.ones(*shape, *spec.input_shape)
    return Transition(seen, torch.zeros_like(seen), torch.full(shape, -1), torch.zeros(shape), torch.zeros(shape) > 1)


def believed(rewards: Any, belief: Any, tries: Tensor, paid: Tensor, draws: int = 20000, **options: Any) -> Tensor:
    """Mean rewards of a bandit's arms that are planned for after these tries, [draws, arms]."""
    task = Bandit(0, arms=len(tries), pulls=5, rewards=rewards)
    planner = Planner(planning(task.spec, belief, **options), 1)
    planner(transition(task.spec))
    planner.tries, planner.paid = (x.expand(draws, 1, 1, -1) for x in (tries, paid))
    planner.moves = planner.moves.expand(draws, 1, 1, -1, 1)
    torch.manual_seed(0)
    return planner.model()[1][:, 0, 0]


def test_beliefs_of_a_bandit() -> None:
    tries, won = torch.tensor([0.0, 4.0, 9.0]), torch.tensor([0.0, 3.0, 2.0])
    beta = torch.distributions.Beta(1 + won, 1 + tries - won)
    drawn = believed("bernoulli", "sample", tries, won)
    assert torch.allclose(drawn.mean(0), beta.mean, atol=0.01)
    assert torch.allclose(drawn.var(0), beta.variance, atol=0.003)
    assert torch.allclose(believed("bernoulli", "mean", tries, won)[0], torch.tensor([1 / 2, 4 / 6, 3 / 11]))
    assert torch.allclose(believed("bernoulli", "optimistic", tries, won), torch.maximum(drawn, beta.mean))
    bound = believed("bernoulli", "bound", tries, won, bonus=0.5)[0] - beta.mean
    assert torch.allclose(bound, 0.5 * (2 * torch.tensor(13.0).log() / torch.tensor([1.0, 5.0, 10.0])).sqrt())
    # N(1, 1) and four observations of N(m, 1) that add up to 3: precision 5, mean (1 + 3) / 5.
    drawn = believed("gaussian", "sample", tries, won)[:, 1]
    assert (drawn.mean().item(), drawn.var().item()) == (pytest.approx(0.8, abs=0.01), pytest.approx(0.2, abs=0.01))
    # N(.5, 1 / 12) and four of N(m, .09): the weight of the prior is .09 / (.09 + 4 / 12), as in the authors' code.
    weight = 0.09 / (0.09 + 4 / 12)
    drawn = believed("uniform", "sample", tries, won)[:, 1]
    assert drawn.mean().item() == pytest.approx(weight * 0.5 + (1 - weight) * 3 / 4, abs=0.01)
    assert drawn.var().item() == pytest.approx(1 / (12 + 4 / 0.09), rel=0.05)


def test_a_share_of_actions_is_random_and_equals_are_drawn_from() -> None:
    task = Bandit(0, arms=4, pulls=5, rewards="bernoulli")
    assert torch.allclose(Planner(planning(task.spec, "mean"), 1)(transition(task.spec)).exp(), torch.full((4,), 0.25))
    planner = Planner(planning(task.spec, "mean", epsilon=0.2), 1)
    planner(transition(task.spec))
    won = Transition(
        torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([[2]]), torch.ones(1, 1), torch.ones(1, 1) > 0
    )
    assert torch.allclose(planner(won).exp(), torch.tensor([0.05, 0.05, 0.85, 0.05]))


def test_returns_are_ordered_as_they_must_be() -> None:
    """Random < posterior sampling < the process known, on the same tasks."""
    env, references = MDP.batch("test", range(2000)), MDP.references("test", range(2000))
    torch.manual_seed(0)
    found = {
        "random": RandomActions(nn.Linear(1, 1), MDP.spec, test_rollouts=1),
        "sample": planning(MDP.spec, "sample"),
    }
    returns = {name: float(learner.evaluate(env)["return"].mean()) for name, learner in found.items()}
    assert returns["random"] == pytest.approx(references["random"], abs=0.4)
    assert returns["random"] + 1 < returns["sample"] < references["optimum"] - 1


def test_an_evaluation_has_noise_of_its_own() -> None:
    """The same at every call, whatever was drawn before it, and apart from that of the other split."""
    learner = planning(MDP.spec, "sample", epsilon=0.3)
    first = evaluate(learner, MDP, "val", 6, batch=4).curves["return"]
    torch.manual_seed(123)
    torch.rand(1000)
    assert torch.equal(evaluate(learner, MDP, "val", 6, batch=4).curves["return"], first)
    assert not torch.equal(evaluate(learner, MDP, "test", 6, batch=4).curves["return"], first)
    by_hand = learner.evaluate(MDP.batch("val", range(4)))["return"]
    assert not torch.equal(by_hand, first[:4])  # without the seed of an evaluation
