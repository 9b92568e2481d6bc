"""RL baselines that are not meta-trained."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.algorithms.base import Metrics
from metarun.algorithms.rl.base import TrialLearner
from metarun.algorithms.rl.collect import Act, Transition
from metarun.tasks.episode import Spec
from metarun.tasks.rl.bandit import UNIFORM_NOISE
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.mdp import plan
from metarun.types import Fraction, NonNegative, Positive

GAUSSIAN_PRIORS = {"gaussian": (1.0, 1.0, 1.0), "uniform": (0.5, 12.0, UNIFORM_NOISE**-2)}
"""Mean and precision of the mean reward, and precision of a reward around it, by the distribution of rewards."""


class Baseline(TrialLearner):
    """The base class of baselines. They act through ``test_rollouts`` trials of each task and ignore the model."""

    roles: ClassVar[tuple[str, ...]] = ("policy", "recurrent_policy", "belief_policy", "context_policy")

    def __init__(self, model: nn.Module, spec: Spec, *, test_rollouts: Positive) -> None:
        super().__init__(model.requires_grad_(False), spec, test_rollouts)

    def meta_step(self, batch: Environment, iteration: int) -> Metrics:
        return {}


class RandomActions(Baseline):
    """Draws discrete actions uniformly, and each dimension of continuous ones from N(0, 1)."""

    def agent(self, env: Environment) -> Act:
        size = self.spec.output_size * (1 if self.spec.discrete_actions else 2)
        return lambda transition: transition.observation.new_zeros(*transition.previous_reward.shape, size)


class Planning(Baseline):
    """Plans each episode by dynamic programming under the posterior of the task given the trial so far.

    The prior is the distribution of tasks: transitions are Dirichlet(1, .., 1); mean rewards are U[0, 1] if rewards are
    0 or 1, else N(1, 1) with noise N(0, 1). For means from U[0, 1] with noise N(0, .09), it is the normal distribution
    of their mean and variance, N(.5, 1 / 12). ``belief`` chooses the process that is planned for:

    - ``sample``: a draw from the posterior: Thompson sampling (Thompson 1933) on bandits, posterior sampling for
      reinforcement learning on decision processes (Strens 2000; Osband, Russo & Van Roy 2013, arXiv:1306.0940);
    - ``optimistic``: that draw, with mean rewards no lower than expected (May, Korda, Lee & Leslie 2012);
    - ``mean``: the posterior's mean, the certainty-equivalent greedy learner;
    - ``bound``: that mean, each reward raised by ``bonus`` sqrt(2 log t / (n + 1)) after n tries of t in all (UCB1,
      Auer, Cesa-Bianchi & Fischer 2002, with the prior counted as one try).

    With probability ``epsilon`` an action is random instead. Ties are broken at random. States must be one-hot
    observations, and all episodes equally long.
    """

    modalities: ClassVar[tuple[str, ...]] = ("state",)

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        belief: Literal["sample", "optimistic", "mean", "bound"],
        bonus: NonNegative,
        epsilon: Fraction,
        test_rollouts: Positive,
    ) -> None:
        super().__init__(model, spec, test_rollouts=test_rollouts)
        self.belief, self.bonus, self.epsilon = belief, bonus, epsilon

    def agent(self, env: Environment) -> Act:
        return Planner(self, env.horizon)

    def protocol(self) -> dict[str, Any]:
        return {"belief": self.belief, "bonus": self.bonus, "epsilon": self.epsilon}


class Planner:
    """The agent of :class:`Planning`."""

    def __init__(self, learner: Planning, horizon: int) -> None:
        self.learner, self.horizon, self.time = learner, horizon, 0
        self.values: list[Tensor] = []
        """Value of each action [T, E, S, A], by the step of the episode."""

    def __call__(self, transition: Transition) -> Tensor:
        state = transition.observation.argmax(-1)
        if self.time == 0:
            size = (*transition.observation.shape, self.learner.spec.output_size)
            self.tries, self.paid = transition.observation.new_zeros(2, *size).unbind()
            self.moves = transition.observation.new_zeros(*size, size[-2])
        else:
            self.learn(transition, state)
        if self.time % self.horizon == 0:
            self.values = plan(*self.model(), self.horizon)
        values = pick(self.values[self.time % self.horizon], state)
        best = (values == values.amax(-1, keepdim=True)).to(values.dtype)
        chance = best / best.sum(-1, keepdim=True)
        chance = (1 - self.learner.epsilon) * chance + self.learner.epsilon / values.shape[-1]
        self.time += 1
        return chance.clamp_min(1e-30).log()

    def learn(self, transition: Transition, state: Tensor) -> None:
        """Count the previous step. If it ended an episode, ``state`` is the first of the next one and no transition."""
        tasks, envs = (torch.arange(n, device=state.device) for n in state.shape)
        t, e, a = tasks[:, None], envs[None], transition.previous_action
        s = transition.previous_observation.argmax(-1)
        self.tries[t, e, s, a] += 1
        self.paid[t, e, s, a] += transition.previous_reward
        self.moves[t, e, s, a, state] += (~transition.done).to(self.moves.dtype)

    def model(self) -> tuple[Tensor, Tensor]:
        """Return the process that is planned for: transitions [T, E, S, A, S] and mean rewards [T, E, S, A]."""
        belief, drawn = self.learner.belief, self.learner.belief in ("sample", "optimistic")
        shares = 1 + self.moves
        if drawn:
            shares = torch._standard_gamma(shares).clamp_min(1e-30)
        if self.learner.spec.rewards == "bernoulli":
            won, lost = 1 + self.paid, 1 + self.tries - self.paid
            mean = won / (won + lost)
            draws = [torch._standard_gamma(x).clamp_min(1e-30) for x in (won, lost)] if drawn else [won, lost]
            reward = draws[0] / (draws[0] + draws[1])
        else:
            prior, known, weight = GAUSSIAN_PRIORS[self.learner.spec.rewards or "gaussian"]
            precision = known + weight * self.tries
            mean = reward = (known * prior + weight * self.paid) / precision
            if drawn:
                reward = mean + torch.randn_like(mean) / precision.sqrt()
        if belief == "optimistic":
            reward = torch.maximum(reward, mean)
        if belief == "bound":
            total = self.tries.sum((-2, -1), keepdim=True)
            reward = mean + self.learner.bonus * (2 * total.clamp_min(1).log() / (1 + self.tries)).sqrt()
        return shares / shares.sum(-1, keepdim=True), reward


def pick(values: Tensor, state: Tensor) -> Tensor:
    """Select the entries of each ``state`` [...] from ``values`` [..., S, A]: [..., A]."""
    return values.gather(-2, state[..., None, None].expand(*state.shape, 1, values.shape[-1]))[..., 0, :]
