"""Doors of which one holds a prize. Opening one ends the episode, so exploration pays off only in later episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.types import NonNegative, Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner


class Doors(Task):
    """A prize behind one of several doors, the same one in all episodes of a trial.

    An action opens a door or waits. The right door pays 1, a wrong one costs ``cost``, and either ends the episode.
    Waiting pays 0. The observation is constant. If ``cost`` exceeds 1 / (``doors`` - 1), opening a random door loses
    reward within the episode, so only a learner that credits it with the returns of later episodes explores. The splits
    draw from the same few tasks.

    Args:
        seed: Seed of the tasks.
        doors: Number of doors.
        cost: Cost of opening a wrong door.
        actions: ``discrete``: the doors, then waiting. ``continuous``: one number from -1 to 1, whose range is divided
            into equal parts in that order.
        horizon: Steps after which an episode is truncated.
        episodes: Episodes of a trial.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "return"

    def __init__(
        self,
        seed: int,
        *,
        doors: Positive,
        cost: NonNegative,
        actions: Literal["discrete", "continuous"],
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        require(doors >= 2, f"task.doors={doors}: at least 2 doors are needed to hide the prize")
        self.seed, self.doors, self.cost, self.horizon, self.episodes = seed, doors, cost, horizon, episodes
        self.discrete = actions == "discrete"
        self.spec = Spec("control", self.modality, (1,), doors + 1 if self.discrete else 1, self.discrete)

    def prizes(self, split: Split, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return the number of the right door of each task, [T]."""
        return (self.doors * uniforms(self.seed, split, indices, 1)[:, 0]).astype(int)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Corridor:
        return Corridor(self, split, indices)

    def protocol(self) -> dict[str, Any]:
        sizes = {"doors": self.doors, "cost": self.cost, "horizon": self.horizon, "episodes": self.episodes}
        return {"data": "doors", **sizes, "actions": "discrete" if self.discrete else "continuous"}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return exact expected trial returns, averaged over all tasks.

        ``optimum`` is Bayes-optimal, ``oracle`` knows the door, ``random`` takes uniform actions, and ``myopic`` opens
        a door only if that is expected to pay within the episode.
        """
        opens = 1 - (self.doors + 1) ** -float(self.horizon)
        guess = (1 - (self.doors - 1) * self.cost) / self.doors
        return {
            "optimum": best_return(self.doors, self.episodes, self.cost, foresight=True),
            "oracle": float(self.episodes),
            "random": self.episodes * opens * guess,
            "myopic": best_return(self.doors, self.episodes, self.cost, foresight=False),
        }

    def picture(self, learner: RLLearner) -> Figure:
        """Plot the share of test trials that open the right door, a wrong one, or none, by episode."""
        from matplotlib.figure import Figure

        env = self.batch("test", range(500))
        *_, rollout = learner.rollouts(env)
        paid = rollout.reward.unflatten(-1, (-1, env.horizon)).sum(-1).flatten(0, 1).cpu()
        number = range(1, paid.shape[1] + 1)
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        ax = figure.subplots()
        bottom = torch.zeros(paid.shape[1])
        for name, chosen, colour, hatch in (
            ("the right door", paid > 0, style.RIGHT, None),
            ("none", paid == 0, "0.85", None),
            ("a wrong door", paid < 0, style.WRONG, "//"),
        ):
            share = chosen.float().mean(0)
            ax.bar(number, share, bottom=bottom, label=name, color=colour, hatch=hatch, edgecolor="white")
            bottom = bottom + share
        ax.set(xlabel="episode", ylabel="share of trials", ylim=(0, 1))
        style.counted(ax.xaxis)
        style.legend(figure, ax)
        figure.suptitle(f"{self.doors} doors: the first door opened in each episode of a trial")
        return figure


class Corridor(Environment):
    """T tasks. The state is empty, since it never changes."""

    is_deterministic: ClassVar[bool] = True

    def __init__(self, family: Doors, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device, self.doors, self.cost, self.discrete = family.device, family.doors, family.cost, family.discrete
        self.prizes = to_device(family.prizes(split, indices), self.device)[:, None]

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return torch.empty(self.tasks, num_envs, 0, device=self.device)

    def observe(self, state: Tensor) -> Tensor:
        return state.new_ones(*state.shape[:2], 1)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        if not self.discrete:
            action = ((action[..., 0] + 1) / 2 * (self.doors + 1)).floor().clamp(0, self.doors).long()
        opened = action < self.doors
        pays = torch.where(action == self.prizes, 1.0, -self.cost).to(state.dtype)
        return state, pays * opened, opened


def best_return(doors: int, episodes: int, cost: float, foresight: bool) -> float:
    """Return the largest expected return of ``episodes`` when the prize is behind one of ``doors`` unopened doors.

    Without ``foresight`` the player maximises the return of each episode separately.
    """
    if episodes == 0:
        return 0.0
    now = (1 - (doors - 1) * cost) / doors
    later = (episodes - 1) / doors
    if doors > 1:
        later += (1 - 1 / doors) * best_return(doors - 1, episodes - 1, cost, foresight)
    return now + later if (now + later if foresight else now) > 0 else 0.0
