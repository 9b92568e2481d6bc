"""Dark rooms: grids whose goal only rewards reveal, the benchmark of in-context reinforcement learning."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
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
from metarun.tasks.rl.gridnavi import STEPS, observed, toward
from metarun.tasks.rl.recording import RecordingEnv, draw_path
from metarun.tasks.rng import drawn, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Count, Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner

Cells = NDArray[np.int64]


class DarkRoom(Task):
    """Dark room (Laskin et al. 2022, arXiv:2210.14215): a grid of ``size`` x ``size`` cells with a hidden goal.

    The observation shows the agent's cell alone. An action stays or moves to a neighbour; moving against a wall does
    nothing. Episodes have ``horizon`` steps. The goal is the same in all episodes of a trial. The last ``held_out``
    goals of a random order are the test tasks, in that order and repeatedly; the other splits draw from the rest.

    The authors' room has 9 x 9 cells, starts in the centre and lasts 20 steps. A public implementation
    (github.com/tommyma3/Algorithm_Distillation) pays every step on the goal and tests on 8 goals. Decision-pretrained
    transformers (Lee et al. 2023, arXiv:2306.14892) use 10 x 10 cells, 100 steps from the corner, and 20 test goals.

    Args:
        seed: Seed of the tasks.
        size: Cells on each side.
        horizon: Steps of an episode.
        episodes: Episodes of a trial.
        start: First cell of an episode: the ``centre``, the ``corner`` (0, 0), or a ``random`` cell each time.
        reward: Steps that pay 1: ``each`` step that ends in the goal, or only the first (``once``).
        key: If true, a hidden key must be found first, which pays 1 once (key-to-door). Key and door are two cells that
            may coincide, and a test task is a pair of them.
        observation: ``coordinates`` of the agent's cell, scaled to -1..1, or its ``number``, one-hot.
        held_out: Number of goals held out for the test; 0: all splits draw from all goals.
        order: Generator of the random order, seeded with 0: ``python`` (``random.shuffle``, the implementation above)
            or ``numpy`` (``RandomState.shuffle``, the code of Lee et al.).
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "return"

    def __init__(
        self,
        seed: int,
        *,
        size: Positive,
        horizon: Positive,
        episodes: Positive,
        start: Literal["centre", "corner", "random"],
        reward: Literal["each", "once"],
        key: bool,
        observation: Literal["coordinates", "number"],
        held_out: Count,
        order: Literal["python", "numpy"],
    ) -> None:
        require(size >= 2, f"task.size={size}: a room needs at least 2 cells on each side")
        self.seed, self.size, self.horizon, self.episodes = seed, size, horizon, episodes
        self.start, self.reward, self.key, self.held_out, self.order = start, reward, key, held_out, order
        self.numbered = observation == "number"
        self.targets = 2 if key else 1
        count = size ** (2 * self.targets)
        require(held_out < count, f"task.held_out={held_out}: the room has {count} tasks; hold out fewer")
        seen = (size**2 if self.numbered else 2,)
        self.spec = Spec("control", self.modality, seen, len(STEPS), True, has_expert=True)
        shuffled = list(product(range(size), repeat=2 * self.targets))
        if order == "python":
            random.Random(0).shuffle(shuffled)
        every = np.array(shuffled)
        if order == "numpy":
            np.random.RandomState(0).shuffle(every)
        self.possible: Cells = every.reshape(count, self.targets, 2)
        """The targets of every task, [tasks, targets, 2], in random order."""

    def goals(self, split: Split, indices: Sequence[int]) -> Cells:
        """Return the cells to be found in each task, in their order: the goal, or key and door; [T, targets, 2]."""
        count = len(self.possible) - self.held_out
        if split == "test" and self.held_out:
            return self.possible[count + np.asarray(indices, dtype=np.int64) % self.held_out]
        return self.possible[(count * uniforms(self.seed, split, indices, 1)[:, 0]).astype(int)]

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Rooms:
        return Rooms(to_device(self.goals(split, indices), self.device), self, split, indices)

    def protocol(self) -> dict[str, Any]:
        names = ("size", "horizon", "episodes", "start", "reward", "key", "held_out", "order")
        own = {name: getattr(self, name) for name in names}
        return {"data": "dark rooms", **own, "observation": "number" if self.numbered else "coordinates"}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return exact expected trial returns: ``oracle`` knows the goal, ``random`` takes uniform actions."""
        goals, task = np.unique(self.goals(split, indices), axis=0, return_inverse=True)
        cells = np.array(list(product(range(self.size), repeat=2)))
        moved = (cells[:, None] + STEPS).clip(0, self.size - 1) @ [self.size, 1]  # [cells, actions]
        arrives = (goals[:, :, None] == cells).all(-1)  # [goals, targets, cells]
        following = np.arange(1, self.targets + 1) - (np.arange(1, self.targets + 1) == self.targets) * self.pays_on
        first = {"centre": [cells.tolist().index([self.size // 2] * 2)], "corner": [0], "random": range(len(cells))}
        found = {}
        for name, best in (("oracle", np.max), ("random", np.mean)):
            value = np.zeros((len(goals), self.targets + 1, len(cells)))
            for _ in range(self.horizon):
                after = np.where(arrives, 1 + value[:, following], value[:, :-1])
                value[:, :-1] = best(after[:, :, moved], axis=-1)
            each = value[:, 0, first[self.start]].mean(-1)[task.ravel()]
            found[name] = self.episodes * float(each.mean())
        return found

    @property
    def pays_on(self) -> bool:
        """True if every step that ends in the last target pays."""
        return self.reward == "each"

    def picture(self, learner: RLLearner) -> Figure:
        """Plot three test tasks, a row each, with the path in six episodes of a trial; later steps are darker."""
        from matplotlib.figure import Figure

        env = self.batch("test", range(3))
        recording = RecordingEnv(env)
        *_, rollout = learner.rollouts(recording)
        episodes = rollout.reward.shape[2] // env.horizon
        shown = sorted({round(x) for x in np.linspace(0, episodes - 1, 6)})
        figure = Figure(figsize=(2.2 * max(len(shown), 2), 7), layout="constrained")
        for task, row in enumerate(figure.subplots(3, len(shown), squeeze=False)):
            for number, ax in zip(shown, row, strict=True):
                draw_path(ax, recording.path(rollout, task, number)[:, :2])
                for cell, mark in zip(env.goals[task, 0].cpu().flip(0), "*P", strict=False):
                    ax.plot(*cell, mark, color=style.GOAL, ms=14, alpha=0.7)
                ax.set(xlim=(-0.6, self.size - 0.4), ylim=(-0.6, self.size - 0.4), aspect="equal", xticks=[], yticks=[])
                paid = float(rollout.episode(number, env.horizon).reward[task, -1].sum())
                ax.set_title(f"episode {number + 1}: return {paid:.0f}", fontsize=style.SMALL)
        marks = "doors (stars) behind a key (cross)" if self.key else "goals (stars)"
        figure.suptitle(f"Paths to hidden {marks} of the meta-test split")
        return figure


class Rooms(Environment):
    """T tasks with targets [T, targets, 2]; the state [T, E, 3] is the agent's cell and the number of targets found."""

    is_deterministic: ClassVar[bool] = True

    def __init__(self, goals: Tensor, family: DarkRoom, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device, self.goals, self.size = goals.device, goals[:, None], family.size
        self.start, self.pays_on = family.start, family.pays_on
        self.moves = to_device(torch.tensor(STEPS), self.device)
        self.numbers = torch.arange(family.size**2, device=self.device) if family.numbered else None

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        state = torch.zeros(self.tasks, num_envs, 3, dtype=torch.long, device=self.device)
        if self.start == "centre":
            state[..., :2] = self.size // 2
        if self.start == "random":
            u = torch.empty(self.tasks, num_envs, 2, device=self.device)
            state[..., :2] = (self.size * drawn(u, "uniform_", generator=generator)).long().clamp(max=self.size - 1)
        return state

    def observe(self, state: Tensor) -> Tensor:
        return observed(state[..., :2], self.size, self.numbers)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        cell = (state[..., :2] + self.moves[action]).clamp(0, self.size - 1)
        targets, found = self.goals.shape[2], state[..., 2]
        reached = ((cell == self.target(state)).all(-1)) & (found < targets)
        found = found + reached
        if self.pays_on:
            found = found.clamp(max=targets - 1)
        moved = torch.cat([cell, found[..., None]], -1)
        return moved, reached.to(torch.get_default_dtype()), torch.zeros_like(reached)

    def optimal_actions(self, state: Tensor, time: int) -> Tensor:
        return toward(self.target(state), state[..., :2])

    def target(self, state: Tensor) -> Tensor:
        """Return the cell to be found next, [T, E, 2]; the last one once all are found."""
        number = state[..., 2].clamp(max=self.goals.shape[2] - 1)
        goals = self.goals.expand(-1, state.shape[1], -1, -1)
        return goals.gather(2, number[..., None, None].expand(*number.shape, 1, 2))[:, :, 0]
