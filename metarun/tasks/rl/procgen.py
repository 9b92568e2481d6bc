"""The games of Procgen. A task is a level."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.errors import UserError, require
from metarun.tasks.rl.gym import Frame, GymFamily
from metarun.types import Positive, Split

Game = Literal[
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot", "heist", "jumper",
    "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
]  # fmt: skip
PYTHON = (3, 11)
"""The version of Python that procgen2 is built for."""
HELD_OUT = 2**20
"""First level that is reserved for meta-validation (even levels) and meta-test (odd ones)."""


class Procgen(GymFamily):
    """Levels of the Procgen games (Cobbe et al. 2020, arXiv:1912.01588).

    A task is one level of one game, the same in all episodes of a trial. The observation is the 64x64 image.

    Args:
        seed: Seed of the tasks.
        games: Names of the games.
        mode: Difficulty of the levels.
        levels: Number of meta-training levels of each game (200 and 500 in the paper's easy and hard setting).
            Validation and test draw from others.
        backgrounds: If true, levels have background images.
        shrink: Side of the blocks of pixels that are averaged; it divides 64.
        repeat: Number of steps for which an action is repeated.
        horizon: Steps after which an episode is truncated.
        episodes: Episodes of a trial.
    """

    modality: ClassVar[str] = "image"

    def __init__(
        self,
        seed: int,
        *,
        games: Sequence[Game],
        mode: Literal["easy", "hard", "extreme", "memory", "exploration"],
        levels: Positive,
        backgrounds: bool,
        shrink: Positive,
        repeat: Positive,
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        self.seed, self.games, self.mode, self.levels, self.backgrounds = seed, list(games), mode, levels, backgrounds
        self.shrink, self.repeat, self.horizon, self.episodes = shrink, repeat, horizon, episodes
        require(bool(self.games), "task.games=[]: name at least one game")
        require(levels <= HELD_OUT, f"task.levels={levels}: at most {HELD_OUT}; those after them are held out")
        require(64 % shrink == 0, f"task.shrink={shrink} must divide 64, the image's side")
        self.engine = engine()
        self.starts: dict[tuple[str, int], bytes] = {}
        self.look()

    def sample(self, rng: np.random.Generator, split: Split) -> tuple[str, int]:
        """Draw a game and a level."""
        game = self.games[int(rng.integers(len(self.games)))]
        if split == "train":
            return game, int(rng.integers(self.levels))
        return game, HELD_OUT + 2 * int(rng.integers(2**20)) + (split == "test")

    def fresh(self, game: str, level: int) -> Any:
        options = {"distribution_mode": self.mode, "use_backgrounds": self.backgrounds}
        return self.engine(1, game, num_levels=1, start_level=level, rand_seed=0, num_threads=0, **options)

    def make(self, parameters: tuple[str, int]) -> Level:
        simulator = Level(self.fresh(*parameters), self.shrink, self.repeat)
        self.starts.setdefault(parameters, simulator.start)
        return simulator

    def like(self, parameters: tuple[str, int]) -> str:
        return parameters[0]

    def turn(self, simulator: Level, parameters: tuple[str, int]) -> None:
        if parameters not in self.starts:
            if len(self.starts) >= 2000:
                self.starts.clear()
            self.starts[parameters] = self.fresh(*parameters).get_state()[0]
        simulator.start = self.starts[parameters]

    def protocol(self) -> dict[str, Any]:
        names = ("games", "mode", "levels", "backgrounds", "shrink", "repeat", "horizon", "episodes")
        return {"data": "Procgen", **{name: getattr(self, name) for name in names}}


class Level:
    """One game with the fixed initial state ``start`` as a Gymnasium-like simulator."""

    render_mode = "rgb_array"

    def __init__(self, engine: Any, shrink: int, repeat: int) -> None:
        from gymnasium.spaces import Box, Discrete

        self.engine, self.shrink, self.repeat = engine, shrink, repeat
        self.start: bytes = engine.get_state()[0]
        self.action_space = Discrete(15)
        side = 64 // shrink
        self.observation_space = Box(0, 255, (side, side, 3), np.uint8)

    def reset(self, seed: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Restore the initial state. It includes the level's own random numbers, so ``seed`` is not used."""
        self.engine.set_state([self.start])
        self.frame = self.engine.observe()[1]["rgb"][0].copy()
        return self.small(), {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        paid, over = 0.0, False
        for _ in range(self.repeat):
            self.engine.act(np.array([action]))
            reward, seen, first = self.engine.observe()
            paid, over = paid + float(reward[0]), bool(first[0])
            if over:  # the image already belongs to the next episode
                break
            self.frame = seen["rgb"][0].copy()
        return self.small(), paid, over, False, {}

    def small(self) -> NDArray[np.uint8]:
        if self.shrink == 1:
            return self.frame
        side = 64 // self.shrink
        blocks = self.frame.reshape(side, self.shrink, side, self.shrink, 3)
        return blocks.mean((1, 3)).round().astype(np.uint8)

    def render(self) -> Frame:
        return self.frame.repeat(4, 0).repeat(4, 1)


def engine() -> Any:
    """Import procgen2, without the notice that its old gym prints; raises :class:`UserError` if a dependency is
    missing.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            from procgen import ProcgenGym3Env
    except ImportError as error:
        if sys.version_info[:2] != PYTHON:
            raise UserError("task=rl/procgen needs Python 3.11: procgen2 is built for no other one") from None
        raise UserError(f"task=rl/procgen needs procgen2 ({error}): pip install 'metarun[procgen]'") from None
    except OSError as error:
        raise UserError(f"task=rl/procgen: a system library of procgen2 is missing ({error})") from None
    return ProcgenGym3Env
