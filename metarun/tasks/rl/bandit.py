"""Multi-armed bandits, the simplest trade-off between exploration and exploitation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rng import drawn, normals, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner

UNIFORM_NOISE = 0.3
"""Standard deviation of the noise of rewards whose means are uniform."""


class Bandit(Task):
    """Multi-armed bandits; the return is the sum of the rewards of all pulls.

    A pull is an episode of one step, and ``pulls`` episodes make a trial. The observation is constant.

    Args:
        seed: Seed of the tasks.
        arms: Number of arms (k in the table of Duan et al.).
        pulls: Number of pulls of a trial (n in the table of Duan et al.).
        rewards: ``bernoulli``: an arm pays 1 with probability p ~ U[0, 1], else 0 (Duan et al. 2016, arXiv:1611.02779,
            section 3.1). ``gaussian``: it pays N(m, 1) with m ~ N(1, 1). ``uniform``: N(m, .09) with m ~ U[0, 1] (Lee
            et al. 2023, arXiv:2306.14892).
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "state"
    metric: ClassVar[str] = "return"

    def __init__(
        self, seed: int, *, arms: Positive, pulls: Positive, rewards: Literal["bernoulli", "gaussian", "uniform"]
    ) -> None:
        self.seed, self.arms, self.pulls, self.rewards = seed, arms, pulls, rewards
        self.spec = Spec("control", self.modality, (1,), arms, True, rewards=rewards, has_expert=True)

    def means(self, split: Split, indices: Sequence[int]) -> NDArray[np.float64]:
        """Return the mean reward of each arm of each task, [T, arms]."""
        if self.rewards == "gaussian":
            return 1 + normals(self.seed, split, indices, self.arms)
        return uniforms(self.seed, split, indices, self.arms)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Arms:
        pays = to_device(self.means(split, indices), self.device, torch.get_default_dtype())
        return Arms(pays, self, split, indices)

    def protocol(self) -> dict[str, Any]:
        return {"data": "bandit", "arms": self.arms, "pulls": self.pulls, "rewards": self.rewards}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return the expected returns of ``random`` pulls and of an ``oracle`` that knows the best arm.

        With at most ten Bernoulli pulls, ``optimum`` is the exact Bayes-optimal return, averaged over all tasks.
        """
        pays = self.means(split, indices)
        values = {"random": self.pulls * float(pays.mean()), "oracle": self.pulls * float(pays.max(1).mean())}
        if self.rewards == "bernoulli" and self.pulls <= 10:
            values["optimum"] = bayes_optimum(self.arms, self.pulls)
        return values

    def picture(self, learner: RLLearner) -> Figure:
        """Plot how often the best arm of the test tasks is pulled, by pull, or by adaptation step for learners without
        a hidden state.
        """
        from matplotlib.figure import Figure

        env = self.batch("test", range(1000))
        best = env.pays.argmax(-1)[..., None]
        stages = [(rollout.action == best).float().mean((0, 1)).cpu() for rollout in learner.rollouts(env)]
        shares = torch.cat(stages)
        start = 1 if len(stages) == 1 else 0
        x = range(start, start + len(shares))
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        ax = figure.subplots()
        ax.plot(x, shares, "o-", color=style.LATE, label="learned policy")
        ax.axhline(1 / self.arms, color=style.TRUTH, ls=":", label="random")
        ax.set(
            ylim=(0, 1),
            xlabel="pull" if start else "adaptation step",
            ylabel="share of pulls on the best arm",
        )
        style.counted(ax.xaxis)
        style.legend(figure, ax)
        figure.suptitle(f"{self.arms}-armed bandits of the meta-test split")
        return figure


class Arms(Environment):
    """T bandits. The state is empty, since it never changes."""

    def __init__(self, pays: Tensor, family: Bandit, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, horizon=1, episodes=family.pulls)
        self.device = pays.device
        self.pays, self.noisy = pays[:, None], family.rewards != "bernoulli"
        self.noise = 1.0 if family.rewards == "gaussian" else UNIFORM_NOISE

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return self.pays.new_empty(self.tasks, num_envs, 0)

    def observe(self, state: Tensor) -> Tensor:
        return state.new_ones(*state.shape[:2], 1)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        mean = self.pays.expand(-1, action.shape[1], -1).gather(-1, action[..., None])[..., 0]
        noise = torch.empty_like(mean)
        if self.noisy:
            paid = mean + self.noise * drawn(noise, "normal_", generator=generator)
        else:
            paid = (drawn(noise, "uniform_", generator=generator) < mean).to(mean.dtype)
        return state, paid, torch.ones_like(action, dtype=torch.bool)

    def optimal_actions(self, state: Tensor, time: int) -> Tensor:
        return (self.pays == self.pays.amax(-1, keepdim=True)).expand(-1, state.shape[1], -1)


@cache
def bayes_optimum(arms: int, pulls: int) -> float:
    """Return the Bayes-optimal expected return of ``pulls`` pulls of Bernoulli arms with p ~ U[0, 1].

    Dynamic programming over the multiset of (successes, failures) of the arms pulled so far; exponential in ``pulls``.
    """

    @cache
    def value(known: tuple[tuple[int, int], ...], left: int) -> float:
        if left == 0:
            return 0.0
        options = set(known) | ({(0, 0)} if len(known) < arms else set())
        best = 0.0
        for won, lost in options:
            rest = list(known)
            if (won, lost) != (0, 0):
                rest.remove((won, lost))
            chance = (won + 1) / (won + lost + 2)
            after_win = value(tuple(sorted([*rest, (won + 1, lost)])), left - 1)
            after_loss = value(tuple(sorted([*rest, (won, lost + 1)])), left - 1)
            best = max(best, chance * (1 + after_win) + (1 - chance) * after_loss)
        return best

    return value((), pulls)
