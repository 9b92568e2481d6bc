"""Grid worlds of MiniGrid and BabyAI. A task is a layout and a mission, which may be hidden from the agent."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, ClassVar, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from metarun.errors import UserError, nearest, require
from metarun.extras import imported
from metarun.tasks.record import DataRecord
from metarun.tasks.rl.gym import GymFamily
from metarun.types import SPLITS, Count, Positive, Split

Action = Literal["left", "right", "forward", "pickup", "drop", "toggle", "done"]
ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
SIGNS = 16
"""Number of +-1 features that encode a word."""
PARTS = ("train", "train", "train", "val", "test")
"""Split of each remainder of a start's checksum."""


class MiniGrid(GymFamily):
    """Layouts and missions of one environment of MiniGrid or BabyAI (Chevalier-Boisvert et al. 2023, arXiv:2306.13831).

    All episodes of a trial have the same layout, start and mission. The observation is a vector: the 7x7 cells in front
    of the agent (kinds, colours and states, one-hot), its direction, and the words of the mission. The reward is 1 - .9
    n / limit for success in step n, else 0, with the environment's own limit. Starts are assigned to splits by a
    checksum: three fifths to meta-training and one fifth each to validation and test.

    Args:
        seed: Seed of the tasks.
        env: Id of the environment.
        words: Number of words of the mission that the agent sees, each encoded by the 16 lowest bits of its checksum. 0
            hides the mission, which must then be found out in one episode to be solved in the next.
        actions: Names of the available actions.
        held_out: The part of a task that no two splits share: ``layouts`` (grid, agent and mission) or ``missions``.
        horizon: Steps after which an episode is truncated.
        episodes: Episodes of a trial.
    """

    modality: ClassVar[str] = "vector"

    def __init__(
        self,
        seed: int,
        *,
        env: str,
        words: Count,
        actions: Sequence[Action],
        held_out: Literal["layouts", "missions"],
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        self.seed, self.env, self.words, self.held_out = seed, env, words, held_out
        self.actions = [ACTIONS.index(name) for name in actions]
        require(bool(actions), f"task.actions=[]: name at least one of {', '.join(ACTIONS)}")
        self.horizon, self.episodes = horizon, episodes
        self.gymnasium = imported("gymnasium", "task=rl/minigrid", "games")
        imported("minigrid", "task=rl/minigrid", "games")
        known = [name for name in self.gymnasium.registry if name.startswith(("MiniGrid-", "BabyAI-"))]
        require(env in known, f"task.env={env}: MiniGrid and BabyAI have no such environment{nearest(env, known)}")
        self.drawing = self.fresh()
        self.look()

    def fresh(self) -> Any:
        return self.gymnasium.make(self.env, render_mode="rgb_array", disable_env_checker=True).unwrapped

    def sample(self, rng: np.random.Generator, split: Split) -> int:
        """Draw the seed of a layout that belongs to ``split``."""
        for _ in range(1000):
            layout = int(rng.integers(2**31))
            if self.home(layout) == split:
                return layout
        raise UserError(
            f"task.held_out={self.held_out}: none of 1000 layouts of {self.env} belongs to split '{split}'; "
            "the environment has too few to hold some out"
        )

    def home(self, layout: int) -> Split:
        """Return the split of a layout."""
        simulator = self.drawing
        silent_reset(simulator, layout)
        content = simulator.mission.encode()
        if self.held_out == "layouts":
            start = np.array([*simulator.agent_pos, simulator.agent_dir])
            content += simulator.grid.encode().tobytes() + start.astype(np.uint8).tobytes()
        part: Split = PARTS[crc32(content) % len(PARTS)]  # type: ignore[assignment]
        assert part in SPLITS
        return part

    def make(self, parameters: int) -> Layout:
        return Layout(self.fresh(), parameters, self.words, self.actions)

    def like(self, parameters: int) -> str:
        return self.env

    def turn(self, simulator: Layout, parameters: int) -> None:
        simulator.layout = parameters

    def record(self) -> DataRecord:
        return DataRecord(rule={"held_out": self.held_out})

    def protocol(self) -> dict[str, Any]:
        sizes = {name: getattr(self, name) for name in ("words", "held_out", "horizon", "episodes")}
        return {"data": self.env, "actions": [ACTIONS[i] for i in self.actions], **sizes}


class Layout:
    """A simulator with a fixed layout whose observations are vectors."""

    render_mode = "rgb_array"

    def __init__(self, simulator: Any, layout: int, words: int, actions: Sequence[int]) -> None:
        from gymnasium.spaces import Box, Discrete
        from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

        self.simulator, self.layout, self.words = simulator, layout, words
        self.actions, self.action_space = actions, Discrete(len(actions))
        self.codes = [np.eye(len(names), dtype=np.float32) for names in (OBJECT_TO_IDX, COLOR_TO_IDX, STATE_TO_IDX)]
        self.directions = np.eye(4, dtype=np.float32)
        cells = np.prod(simulator.observation_space["image"].shape[:2])
        size = int(cells) * sum(map(len, self.codes)) + 4 + SIGNS * words
        self.observation_space = Box(-1, 1, (size,), np.float32)

    def reset(self, seed: int) -> tuple[NDArray[np.float32], dict[str, Any]]:
        seen, info = silent_reset(self.simulator, self.layout)
        self.mission = encode_mission(seen["mission"], self.words)
        return self.vector(seen), info

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.simulator.step(self.actions[action])
        return self.vector(seen), reward, terminated, truncated, {**info, "success": reward > 0}

    def vector(self, seen: dict[str, Any]) -> NDArray[np.float32]:
        cells = [code[seen["image"][..., i]].ravel() for i, code in enumerate(self.codes)]
        return np.concatenate([*cells, self.directions[seen["direction"]], self.mission])

    def render(self) -> Any:
        return self.simulator.render()


def silent_reset(simulator: Any, layout: int) -> Any:
    """Reset a simulator to a layout and discard what BabyAI prints for rejected attempts."""
    with contextlib.redirect_stdout(io.StringIO()):
        return simulator.reset(seed=layout)


def encode_mission(mission: str, words: int) -> NDArray[np.float32]:
    """Encode a mission: :data:`SIGNS` numbers +-1 for each of ``words`` words, zeros after its end."""
    tokens = mission.lower().replace(",", " ").split()
    require(
        not words or len(tokens) <= words,
        f"task.words={words}: the mission '{mission}' has {len(tokens)} words; use that many or more, or 0 to hide it",
    )
    signs = np.zeros((words, SIGNS), np.float32)
    for row, word in zip(signs, tokens, strict=False):
        row[:] = [2 * (crc32(word.encode()) >> bit & 1) - 1 for bit in range(SIGNS)]
    return signs.ravel()
