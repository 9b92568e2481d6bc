"""Atari games whose cartridges have several modes. A task is a mode and a difficulty."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.errors import nearest, require
from metarun.extras import imported
from metarun.tasks.record import DataRecord
from metarun.tasks.rl.gym import Frame, GymFamily
from metarun.tasks.rng import permutation
from metarun.types import Count, Fraction, Positive, Split


class Atari(GymFamily):
    """Modes and difficulties of one Atari game as tasks (Machado et al. 2018, arXiv:1709.06009).

    Farebrother, Machado & Bowling 2018 (arXiv:1810.00123) proposed to test agents on other modes. A quarter of the
    modes (at least one) goes to meta-validation and another quarter to meta-test. Each split has all difficulties.

    Args:
        seed: Seed of the tasks.
        game: Name of the game in ale-py.
        observation: ``ram``: the console's 128 bytes of memory. ``screen``: the grey image, 84x84.
        rewards: ``score``: the change of the score in each frame. ``sign``: its sign.
        skip: Frames for which an action is held.
        sticky: Probability in each frame that the previous action is executed instead.
        noops: Largest number of idle frames at the start of an episode; at least one is played.
        split_seed: Seed of the split of the modes.
        horizon: Steps after which an episode is truncated.
        episodes: Episodes of a trial.
    """

    modality: ClassVar[str] = "observation"

    def __init__(
        self,
        seed: int,
        *,
        game: str,
        observation: Literal["ram", "screen"],
        rewards: Literal["score", "sign"],
        skip: Positive,
        sticky: Fraction,
        noops: Positive,
        split_seed: Count,
        horizon: Positive,
        episodes: Positive,
    ) -> None:
        self.seed, self.game, self.observation, self.split_seed = seed, game, observation, split_seed
        self.rewards = rewards
        self.skip, self.sticky, self.noops, self.horizon, self.episodes = skip, sticky, noops, horizon, episodes
        imported("gymnasium", "task=rl/atari", "games")
        self.ale = imported("ale_py", "task=rl/atari", "games")
        from ale_py import roms

        known = roms.get_all_rom_ids()
        require(game in known, f"task.game={game}: ale-py has no such game{nearest(game, known)}")
        self.rom = str(roms.get_rom_path(game))
        console = self.console()
        modes, self.difficulties = list(console.getAvailableModes()), list(console.getAvailableDifficulties())
        require(
            len(modes) >= 3,
            f"task.game={game} has {len(modes)} mode(s), but each split needs its own; games with many modes: "
            "freeway, breakout, space_invaders, asteroids, bank_heist, berzerk",
        )
        order = [modes[i] for i in permutation(split_seed, len(modes))]
        share = max(1, len(modes) // 4)
        self.modes: dict[Split, list[int]] = {
            "test": order[:share],
            "val": order[share : 2 * share],
            "train": order[2 * share :],
        }
        self.starts: dict[tuple[int, int], Any] = {}
        self.look()

    def console(self, mode: int | None = None, difficulty: int | None = None) -> Any:
        """Return a console with the game loaded, in ``mode`` and ``difficulty`` if given."""
        self.ale.ALEInterface.setLoggerMode(self.ale.LoggerMode.Error)
        console = self.ale.ALEInterface()
        console.setInt("random_seed", 0)
        console.setFloat("repeat_action_probability", 0.0)
        console.loadROM(self.rom)
        if mode is not None:
            console.setMode(mode)
            console.setDifficulty(difficulty)
            console.reset_game()
        return console

    def sample(self, rng: np.random.Generator, split: Split) -> tuple[int, int]:
        """Draw a mode and a difficulty."""
        modes = self.modes[split]
        return modes[int(rng.integers(len(modes)))], self.difficulties[int(rng.integers(len(self.difficulties)))]

    def make(self, parameters: tuple[int, int]) -> Console:
        simulator = Console(self.console(*parameters), self)
        self.starts.setdefault(parameters, simulator.start)
        return simulator

    def like(self, parameters: tuple[int, int]) -> str:
        return self.game

    def turn(self, simulator: Console, parameters: tuple[int, int]) -> None:
        """Set the simulator to another task. A saved state includes mode and difficulty."""
        if parameters not in self.starts:
            self.starts[parameters] = self.console(*parameters).cloneState()
        simulator.start = self.starts[parameters]

    def record(self) -> DataRecord:
        return DataRecord(
            {split: [f"{self.game}, mode {mode}" for mode in modes] for split, modes in self.modes.items()}
        )

    def protocol(self) -> dict[str, Any]:
        names = ("game", "observation", "rewards", "skip", "sticky", "noops", "horizon", "episodes", "modes")
        return {"data": "Atari", **{name: getattr(self, name) for name in names}}


class Console:
    """A running game as a Gymnasium-like simulator. Episodes start from one saved state, because loading a game is
    slow.
    """

    render_mode = "rgb_array"

    def __init__(self, console: Any, family: Atari) -> None:
        from gymnasium.spaces import Box, Discrete

        self.console, self.family = console, family
        self.start = console.cloneState()
        self.actions = console.getMinimalActionSet()
        self.action_space = Discrete(len(self.actions))
        shape = (128,) if family.observation == "ram" else (84, 84)
        self.observation_space = Box(0, 255, shape, np.uint8)

    def reset(self, seed: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        self.rng = np.random.default_rng(seed)
        self.console.restoreState(self.start)
        self.held = 0
        for _ in range(int(self.rng.integers(1, self.family.noops + 1))):
            self.console.act(self.actions[0])
        return self.look(), {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        total = 0.0
        for late in self.rng.random(self.family.skip) < self.family.sticky:
            self.held = self.held if late else action
            score = self.console.act(self.actions[self.held])
            total += float(np.sign(score)) if self.family.rewards == "sign" else score
            if self.console.game_over():
                break
        return self.look(), total, self.console.game_over(), False, {}

    def look(self) -> NDArray[np.uint8]:
        if self.family.observation == "ram":
            return self.console.getRAM()
        from PIL import Image

        screen = Image.fromarray(self.console.getScreenGrayscale())
        return np.asarray(screen.resize((84, 84), Image.Resampling.BOX))

    def render(self) -> Frame:
        return self.console.getScreenRGB()
