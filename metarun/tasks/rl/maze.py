"""Random mazes with a hidden goal, found in the first episode of a trial and walked to in the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun import style
from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.recording import RecordingEnv, draw_path
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Count, Fraction, Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import RLLearner

STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Moves of the actions: up, right, down, left."""

Cells = NDArray[np.int64]


class Maze(Task):
    """Random mazes of ``size`` x ``size`` cells with a hidden goal.

    The passages are a random spanning tree, the lightest one under random wall weights (Prim's algorithm). Each other
    wall is left out with probability ``loops``. Start and goal are two different cells. The maze, the start and the
    goal stay the same in all episodes of a trial. A step into the goal pays 1 and ends the episode, any other step
    costs 1 / ``horizon``, and a step against a wall does not move.

    The splits use different random numbers. There are 5.6e8 spanning trees of 5 x 5 cells and 2e19 of 7 x 7.

    Args:
        seed: Seed of the tasks.
        size: Cells on each side.
        loops: Probability that a wall outside the spanning tree is left out.
        layouts: Number of different mazes in meta-training, to study generalisation; ``None``: a new one for each task.
            Start and goal differ in every task.
        view: Distance in cells up to which the agent sees, through walls, which sides of a cell are open.
        position: If true, the observation includes the agent's coordinates, scaled to -1..1.
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
        size: Positive,
        loops: Fraction,
        layouts: Positive | None,
        view: Count,
        position: bool,
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        require(size >= 2, f"task.size={size}: a maze needs at least 2 cells on each side, for a start and a goal")
        self.seed, self.size, self.loops, self.layouts = seed, size, loops, layouts
        self.view, self.position, self.horizon, self.episodes = view, position, horizon, episodes
        seen = len(STEPS) * (2 * view + 1) ** 2 + 2 * position
        self.spec = Spec("control", self.modality, (seen,), len(STEPS), discrete_actions=True)
        number = np.arange(size**2).reshape(size, size)  # of the cell (x, y)
        pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
        self.walls = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in pairs])
        """Cells on either side of every wall, [W, 2]; the second is the upper one in the first half, else the right."""

    def neighbours(self, split: Split, indices: Sequence[int]) -> Cells:
        """Return the cell that each step leads to, [T, cells, 4]; a step against a wall leads to the same cell."""
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
        """Return start and goal of each task, two different cells, [T] each."""
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
        """Return exact trial returns: ``oracle`` takes the shortest path, ``random`` random steps, ``still`` never
        arrives.
        """
        neighbours, (start, goal) = self.neighbours(split, indices), self.ends(split, indices)
        task = np.arange(len(start))
        away = distances(neighbours, goal)[task, start]
        oracle = np.where(away <= self.horizon, 1 - (away - 1) / self.horizon, -1.0)
        reached, rows = neighbours == goal[:, None, None], task[:, None, None]
        value = np.zeros(neighbours.shape[:2])
        for _ in range(self.horizon):
            value = np.where(reached, 1.0, value[rows, neighbours] - 1 / self.horizon).mean(-1)
        each = {"oracle": oracle, "random": value[task, start], "still": np.full(1, -1.0)}
        return {name: self.episodes * float(x.mean()) for name, x in each.items()}

    def picture(self, learner: RLLearner) -> Figure:
        """Plot three test mazes, a row each, with the path in every episode of a trial; later steps are darker."""
        from matplotlib.figure import Figure

        env = self.batch("test", range(3))
        recording = RecordingEnv(env)
        *_, rollout = learner.rollouts(recording)
        episodes = rollout.reward.shape[2] // env.horizon
        figure = Figure(figsize=(2.2 * max(episodes, 2), 7), layout="constrained")
        for task, row in enumerate(figure.subplots(3, episodes, squeeze=False)):
            for number, ax in enumerate(row):
                cell = recording.path(rollout, task, number)
                draw_path(ax, torch.stack([cell // self.size, cell % self.size], 1))
                self.draw_walls(ax, env.neighbours[task].cpu())
                goal = int(env.goals[task])
                ax.plot(goal // self.size, goal % self.size, "*", color=style.GOAL, ms=14, alpha=0.8)
                ax.set(aspect="equal")
                ax.set_axis_off()
                told = f"{float(rollout.episode(number, env.horizon).reward[task, -1].sum()):.2f}"
                text, colour = style.judged(told, int(cell[-1]) == goal)
                name = f"maze {task + 1}, episode {number + 1}" if not number else f"episode {number + 1}"
                ax.set_title(f"{name}:  {text}", color=colour, fontsize=style.SMALL)
        figure.suptitle(
            "Paths through mazes of the meta-test split to a hidden goal (star), with the return of each episode; "
            "✓ goal reached, ✗ not reached"
        )
        return figure

    def draw_walls(self, ax: Any, neighbours: Tensor) -> None:
        """Draw the walls of one maze, given its ``neighbours`` [cells, 4]."""
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

    is_deterministic: ClassVar[bool] = True

    def __init__(self, family: Maze, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device = family.device
        arrays = (family.neighbours(split, indices), *family.ends(split, indices))
        self.neighbours, starts, goals = (to_device(x, self.device) for x in arrays)
        self.starts, self.goals = starts[:, None], goals[:, None]
        self.rows = torch.arange(len(starts), device=self.device)[:, None]
        self.views = views(self.neighbours, family.size, family.view, family.position)

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return self.starts.expand(-1, num_envs)

    def observe(self, state: Tensor) -> Tensor:
        return self.views[self.rows, state]

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        state = self.neighbours[self.rows, state, action]
        reached = state == self.goals
        return state, torch.where(reached, 1.0, -1 / self.horizon).to(self.views.dtype), reached


def lightest_tree(walls: Cells, weight: NDArray[np.float64], cells: int) -> NDArray[np.bool_]:
    """Return the edges of the minimum spanning trees of T graphs by Prim's algorithm, all at once.

    Args:
        walls: The two ends of each edge, [W, 2].
        weight: Weights of the edges, [T, W].
        cells: Number of vertices.

    Returns:
        True for the edges of the tree, [T, W].
    """
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
    """Return the smallest number of steps from every cell to its task's ``goal`` [T], as [T, cells]."""
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
    """Return the observation at every cell of every task, [T, cells, features]: 1 for an open side, 0 for a wall."""
    dtype = torch.get_default_dtype()
    cells = torch.arange(size**2, device=neighbours.device)
    open_sides = (neighbours != cells[:, None]).to(dtype)
    grid = open_sides.unflatten(1, (size, size)).permute(0, 3, 1, 2)
    around = torch.nn.functional.unfold(grid, 2 * reach + 1, padding=reach).mT
    if not position:
        return around.contiguous()
    at = 2 * torch.stack([cells // size, cells % size], -1).to(dtype) / (size - 1) - 1
    return torch.cat([around, at.expand(len(around), -1, -1)], -1)
