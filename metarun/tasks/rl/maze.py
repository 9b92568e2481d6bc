"""Mazes drawn anew for every task, each with a goal that is found in one episode and walked to in the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment, Wrapper
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Count, Fraction, Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner

STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Up, right, down, left."""

Cells = NDArray[np.int64]


class Maze(Task):
    """``size`` x ``size`` cells between which walls stand: a random spanning tree is open, and more of it by ``loops``.

    The tree is the lightest one for random weights of the walls (Prim's algorithm); each other wall is left out with
    chance ``loops``. Start and goal are two different cells; all is the same for the ``episodes`` of a trial. A step
    that ends in the goal pays 1 and ends the episode, any other costs 1 / ``horizon``; against a wall nothing moves.
    The goal is not seen. What is: for each cell at most ``view`` away in either direction (through walls), which of
    its four sides are open; and with ``position`` where one is, two coordinates from -1 to 1.

    Splits draw from different random numbers; of spanning trees there are 5.6e8 for 5 x 5 cells and 2e19 for 7 x 7.
    With ``layouts`` given, meta-training has but so many mazes (with ever new starts and goals), to see what it takes
    to generalise.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "return"

    def __init__(
        self,
        seed: int,
        *,
        size: Positive,
        loops: Fraction,
        layouts: Positive | None,
        view: Count,
        position: bool,
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        require(size >= 2, f"task.size={size}: a maze needs a start and a goal; use 2 or more")
        self.seed, self.size, self.loops, self.layouts = seed, size, loops, layouts
        self.view, self.position, self.horizon, self.episodes = view, position, horizon, episodes
        seen = len(STEPS) * (2 * view + 1) ** 2 + 2 * position
        self.spec = Spec("control", self.modality, (seen,), len(STEPS), discrete_actions=True)
        number = np.arange(size**2).reshape(size, size)  # of the cell (x, y)
        pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
        self.walls = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in pairs])
        """The two cells on either side of every wall, [W, 2]; the second is up in the first half, right else."""

    def neighbours(self, split: Split, indices: Sequence[int]) -> Cells:
        """The cell each step leads to from each cell of each task, [T, cells, 4]: where a wall is, the same one."""
        if split == "train" and self.layouts is not None:
            indices = [index % self.layouts for index in indices]
        count, cells = len(self.walls), self.size**2
        weight, chance = np.split(uniforms(self.seed, split, indices, 2 * count), 2, axis=1)
        gone = lightest_tree(self.walls, weight, cells) | (chance < self.loops)
        found = np.tile(np.arange(cells)[:, None], (len(indices), 1, len(STEPS)))
        task, wall = gone.nonzero()
        low, high = self.walls[wall].T
        step = wall // (count // 2)  # up or right, and back by the step after the next
        found[task, low, step], found[task, high, step + 2] = high, low
        return found

    def ends(self, split: Split, indices: Sequence[int]) -> tuple[Cells, Cells]:
        """Start and goal of each task, two different cells, [T] each."""
        cells = self.size**2
        u = uniforms(self.seed, split, indices, 2, stream=1)
        start = (cells * u[:, 0]).astype(int)
        return start, (start + 1 + ((cells - 1) * u[:, 1]).astype(int)) % cells

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Mazes:
        return Mazes(self, split, indices)

    def protocol(self) -> dict[str, Any]:
        names = ("size", "loops", "layouts", "view", "position", "horizon", "episodes")
        return {"data": "mazes", **{name: getattr(self, name) for name in names}}

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Exact trial returns: an ``oracle`` walks the shortest way, steps are ``random``, ``still`` is never there."""
        neighbours, (start, goal) = self.neighbours(split, indices), self.ends(split, indices)
        task = np.arange(len(start))
        away = distances(neighbours, goal)[task, start]
        oracle = np.where(away <= self.horizon, 1 - (away - 1) / self.horizon, -1.0)
        there, rows = neighbours == goal[:, None, None], task[:, None, None]
        value = np.zeros(neighbours.shape[:2])
        for _ in range(self.horizon):
            value = np.where(there, 1.0, value[rows, neighbours] - 1 / self.horizon).mean(-1)
        each = {"oracle": oracle, "random": value[task, start], "still": np.full(1, -1.0)}
        return {name: self.episodes * float(x.mean()) for name, x in each.items()}

    def picture(self, learner: RLLearner) -> Figure:
        """Three test mazes, a row each: the path in every episode of a trial, later steps darker."""
        from matplotlib.figure import Figure

        env = self.batch("test", range(3))
        places = Watched(env)
        *_, rollout = learner.rollouts(places)
        episodes = rollout.reward.shape[2] // env.horizon
        path = torch.stack(places.states, 2)[..., -rollout.reward.shape[2] :].cpu()
        figure = Figure(figsize=(2.2 * max(episodes, 2), 7), layout="constrained")
        for task, row in enumerate(figure.subplots(3, episodes, squeeze=False)):
            for number, ax in enumerate(row):
                episode = rollout.episode(number, env.horizon)
                steps = int(episode.running[task, 0].sum())
                cell = path[task, 0, number * env.horizon :][:steps]
                seen = torch.stack([cell // self.size, cell % self.size], 1)
                seen = seen + 0.25 * (torch.linspace(0, 1, steps) - 0.5)[:, None]
                ax.plot(seen[:, 0], seen[:, 1], color="0.7", lw=1)
                ax.scatter(seen[:, 0], seen[:, 1], c=range(steps), cmap="viridis_r", s=14, zorder=2)
                self.draw_walls(ax, env.neighbours[task].cpu())
                goal = int(env.goals[task])
                ax.plot(goal // self.size, goal % self.size, "*", color="tab:red", ms=14, alpha=0.8)
                ax.set(aspect="equal", xticks=[], yticks=[])
                ax.set_title(f"episode {number + 1}: {float(episode.reward[task, 0].sum()):.2f}", fontsize=9)
        figure.suptitle("Paths through mazes of the meta-test split, to goals that are not seen")
        return figure

    def draw_walls(self, ax: Any, neighbours: Tensor) -> None:
        """The walls of one maze, [cells, 4]."""
        for cell, sides in enumerate(neighbours.tolist()):
            x, y = divmod(cell, self.size)
            for (dx, dy), other in zip(STEPS, sides, strict=True):
                if other == cell:
                    along = (0.5 * abs(dy), 0.5 * abs(dx))
                    middle = (x + dx / 2, y + dy / 2)
                    ends = [[m - a, m + a] for m, a in zip(middle, along, strict=True)]
                    ax.plot(*ends, color="k", lw=1.5, solid_capstyle="round")


class Mazes(Environment):
    """T mazes; the state [T, E] is the number of a cell."""

    def __init__(self, family: Maze, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device = family.device
        arrays = (family.neighbours(split, indices), *family.ends(split, indices))
        self.neighbours, starts, goals = (to_device(x, self.device) for x in arrays)
        self.starts, self.goals = starts[:, None], goals[:, None]
        self.rows = torch.arange(len(starts), device=self.device)[:, None]
        self.views = views(self.neighbours, family.size, family.view, family.position)

    def reset(self, copies: int, generator: torch.Generator | None) -> Tensor:
        return self.starts.expand(-1, copies)

    def observe(self, state: Tensor) -> Tensor:
        return self.views[self.rows, state]

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        state = self.neighbours[self.rows, state, action]
        there = state == self.goals
        return state, torch.where(there, 1.0, -1 / self.horizon).to(self.views.dtype), there


class Watched(Wrapper):
    """The same mazes, and the ``states`` in which anyone acted: observations need not tell the place."""

    def __init__(self, env: Mazes) -> None:
        super().__init__(env)
        self.states: list[Tensor] = []

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        self.states.append(state)
        return super().step(state, action, generator)


def lightest_tree(walls: Cells, weight: NDArray[np.float64], cells: int) -> NDArray[np.bool_]:
    """The spanning tree of least ``weight`` [T, W] of each of T graphs: Prim's algorithm, all T at once, [T, W]."""
    rows = np.arange(len(weight))
    inside = np.zeros((len(weight), cells), bool)
    inside[:, 0] = True
    tree = np.zeros(weight.shape, bool)
    for _ in range(cells - 1):
        crossing = inside[:, walls[:, 0]] != inside[:, walls[:, 1]]
        wall = np.where(crossing, weight, np.inf).argmin(1)
        tree[rows, wall] = True
        inside[rows[:, None], walls[wall]] = True
    return tree


def distances(neighbours: Cells, goal: Cells) -> Cells:
    """The least number of steps from every cell to its task's ``goal`` [T], for all tasks at once: [T, cells]."""
    tasks, cells = neighbours.shape[:2]
    rows = np.arange(tasks)
    away = np.full((tasks, cells), cells)
    away[rows, goal] = 0
    while True:
        nearer = np.minimum(away, 1 + away[rows[:, None, None], neighbours].min(-1))
        if (nearer == away).all():
            return away
        away = nearer


def views(neighbours: Tensor, size: int, reach: int, position: bool) -> Tensor:
    """What is seen from every cell of every task, [T, cells, features]: 1 for an open side, 0 for a wall."""
    dtype = torch.get_default_dtype()
    cells = torch.arange(size**2, device=neighbours.device)
    open_sides = (neighbours != cells[:, None]).to(dtype)
    grid = open_sides.unflatten(1, (size, size)).permute(0, 3, 1, 2)
    around = torch.nn.functional.unfold(grid, 2 * reach + 1, padding=reach).mT
    if not position:
        return around.contiguous()
    at = 2 * torch.stack([cells // size, cells % size], -1).to(dtype) / (size - 1) - 1
    return torch.cat([around, at.expand(len(around), -1, -1)], -1)
