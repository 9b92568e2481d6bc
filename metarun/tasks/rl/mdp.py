"""Small random Markov decision processes, each explored and exploited within one trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rng import drawn, normals, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Positive, Split

Array = NDArray[np.float64]


class TabularMDP(Task):
    """Random tabular Markov decision processes (Duan et al. 2016, arXiv:1611.02779, section 3.2).

    P(s' | s, a) ~ Dirichlet(1, .., 1); the reward of (s, a) is N(m, 1) with m ~ N(1, 1). Episodes begin in state 0. The
    observation is the state, one-hot.

    Args:
        seed: Seed of the tasks.
        states: Number of states (10 in the paper).
        actions: Number of actions (5 in the paper).
        horizon: Steps of an episode.
        episodes: Episodes of a trial (n in the paper's table).
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "state"
    metric: ClassVar[str] = "return"

    def __init__(
        self, seed: int, *, states: Positive, actions: Positive, horizon: Positive, episodes: Positive
    ) -> None:
        self.seed, self.states, self.actions = seed, states, actions
        self.horizon, self.episodes = horizon, episodes
        self.spec = Spec("control", self.modality, (states,), actions, True, "gaussian", has_expert=True)

    def tables(self, split: Split, indices: Sequence[int]) -> tuple[Array, Array]:
        """Return the transition probabilities [T, S, A, S] and the mean rewards [T, S, A]."""
        size = self.states * self.actions
        # Exponentials over their sum are Dirichlet(1, .., 1).
        shares = -np.log1p(-uniforms(self.seed, split, indices, size * self.states))
        shares = shares.reshape(-1, self.states, self.actions, self.states)
        means = 1 + normals(self.seed, split, indices, size, stream=1)
        return shares / shares.sum(-1, keepdims=True), means.reshape(-1, self.states, self.actions)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Tables:
        dtype = torch.get_default_dtype()
        moves, pays = (to_device(x, self.device, dtype) for x in self.tables(split, indices))
        return Tables(moves, pays, self, split, indices)

    def protocol(self) -> dict[str, Any]:
        return {
            "data": "tabular MDPs",
            **{name: getattr(self, name) for name in ("states", "actions", "horizon", "episodes")},
        }

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return expected trial returns of ``random`` actions and of the ``optimum`` that knows the tables.

        ``discounted_optimum`` is the optimum at a discount of .99. Published ratios to value iteration (Mishra et al.
        2018, arXiv:1707.03141, table 4) and the returns of Duan et al. imply this one, 20.8 an episode, rather than the
        undiscounted optimum.
        """
        moves, pays = self.tables(split, indices)
        found = {}
        for name, best, discount in (
            ("random", np.mean, 1.0),
            ("optimum", np.max, 1.0),
            ("discounted_optimum", np.max, 0.99),
        ):
            value = np.zeros(pays.shape[:2])
            for _ in range(self.horizon):
                value = best(pays + discount * np.einsum("tsan,tn->tsa", moves, value), axis=-1)
            found[name] = self.episodes * float(value[:, 0].mean())
        return found


class Tables(Environment):
    """T decision processes; the state [T, E] is the number of a state."""

    def __init__(self, moves: Tensor, pays: Tensor, family: TabularMDP, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device = moves.device
        self.moves, self.up_to, self.pays = moves, moves.cumsum(-1), pays
        self.values: list[Tensor] = []
        """Value of each action [T, S, A], by the step of the episode; empty until it is asked for."""
        self.numbers = torch.arange(family.states, device=self.device)

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        return torch.zeros(self.tasks, num_envs, dtype=torch.long, device=self.device)

    def observe(self, state: Tensor) -> Tensor:
        return (state[..., None] == self.numbers).to(self.pays.dtype)

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        task = torch.arange(self.tasks, device=self.device)[:, None]
        noise = torch.empty(action.shape, dtype=self.pays.dtype, device=self.device)
        reward = self.pays[task, state, action] + drawn(noise, "normal_", generator=generator)
        u = drawn(torch.empty_like(noise), "uniform_", generator=generator)
        moved = (u[..., None] >= self.up_to[task, state, action]).sum(-1).clamp(max=len(self.numbers) - 1)
        return moved, reward, torch.zeros_like(action, dtype=torch.bool)

    def optimal_actions(self, state: Tensor, time: int) -> Tensor:
        self.values = self.values or plan(self.moves, self.pays, self.horizon)
        values = self.values[time]
        best = values == values.amax(-1, keepdim=True)
        return best.gather(1, state[..., None].expand(*state.shape, best.shape[-1]))


def plan(moves: Tensor, reward: Tensor, horizon: int) -> list[Tensor]:
    """Return the optimal values [..., S, A] at each step of an episode, by value iteration from the last step.

    Args:
        moves: Transition probabilities [..., S, A, S].
        reward: Mean rewards [..., S, A].
        horizon: Steps of an episode.
    """
    values = [reward]
    for _ in range(horizon - 1):
        values.append(reward + (moves @ values[-1].amax(-1)[..., None, :, None])[..., 0])
    return values[::-1]
