"""Environments of Gymnasium, a user's own too: tasks whose dynamics a simulator keeps to itself."""

from __future__ import annotations

import importlib
import inspect
import logging
import weakref
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import UserError, nearest, require
from metarun.tasks.base import EpisodeShape, Spec, Task
from metarun.tasks.rl.base import Environment
from metarun.tasks.rng import derived_seed, uniforms
from metarun.types import ImportPath, Positive, Split

if TYPE_CHECKING:
    from metarun.algorithms.base import Algorithm

log = logging.getLogger("metarun")

Frame = NDArray[np.uint8]
"""A picture [height, width, 3] of an environment."""


class GymFamily(Task):
    """Tasks that are environments of Gymnasium: the base class of the games, and of families of your own.

    A family says how a task is drawn (:meth:`sample`) and how its simulator is made (:meth:`make`); its constructor
    ends with :meth:`look`. Observations are vectors, or images (``Box`` of bytes, or of three dimensions; uint8 in
    0..255 becomes 0..1, channels first), both handed on as vectors [T, E, size] whose shape is ``spec.input_shape``;
    other spaces are flattened as Gymnasium does. Actions are ``Discrete`` or ``Box``, whose bounds are at -1 and 1
    for the policy. An episode ends when the simulator terminates it, and is truncated by the simulator or after
    ``horizon`` steps; a trial has ``episodes`` of them.

    A simulator hides its state, so that a batch is played from its beginning and in order. It is still a pure function
    of (seed, split, indices): every reset has a seed that is drawn from these and the resets before it.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "observation"
    metric: ClassVar[str] = "return"

    horizon: int
    episodes: int

    @abstractmethod
    def sample(self, rng: np.random.Generator, split: Split) -> Any:
        """What tells a task of ``split`` from others."""

    @abstractmethod
    def make(self, parameters: Any) -> Any:
        """A simulator of the task; with ``render_mode="rgb_array"`` if it can render, for films."""

    def like(self, parameters: Any) -> Hashable | None:
        """Simulators of tasks with equal, not-``None`` answers can be turned to one another, to save their making."""
        return None

    def turn(self, simulator: Any, parameters: Any) -> None:
        """Make a simulator, of a task :meth:`like` this one, play this one from its next reset on."""

    def look(self) -> None:
        """Read the spaces off the first meta-train task."""
        self.pool: dict[Hashable, list[Any]] = {}
        parameters = self.parameters("train", 0)
        simulator = self.make(parameters)
        self.interface = Interface(simulator)
        self.keep(self.like(parameters), [simulator])
        shape, actions = self.interface.shape, self.interface.actions
        self.spec = Spec("control", self.modality, shape, actions, discrete_actions=self.interface.discrete)

    def parameters(self, split: Split, index: int) -> Any:
        """Of task ``index``."""
        return self.sample(np.random.default_rng(derived_seed(self.seed, split, index, stream=10)), split)

    def keep(self, key: Hashable | None, simulators: Sequence[Any]) -> None:
        """Take back simulators that are not played any more."""
        if key is not None:
            self.pool.setdefault(key, []).extend(simulators)

    def simulator(self, parameters: Any) -> Any:
        """One of the task: turned from another if there is one, else made."""
        free = self.pool.get(self.like(parameters), [])
        if not free:
            return self.make(parameters)
        simulator = free.pop()
        self.turn(simulator, parameters)
        return simulator

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Simulators:
        return Simulators(self, split, indices)

    def film(self, algorithm: Algorithm) -> list[Frame] | None:
        """A test task side by side: the first and the last episode, before and after adaptation."""
        from metarun.algorithms.rl.base import ControlAlgorithm

        assert isinstance(algorithm, ControlAlgorithm)
        env = self.batch("test", [0])
        env.films = []
        for _ in algorithm.rollouts(env):
            pass
        if not env.films:
            return None
        # Without a memory, or with one: the first episode comes before all adaptation, the last one after it.
        first, last = env.films[0], env.films[-1]
        gap = np.full((first[0].shape[0], 4, 3), 255, np.uint8)
        length = max(len(first), len(last))
        pairs = ((first[min(i, len(first) - 1)], last[min(i, len(last) - 1)]) for i in range(length))
        return [np.concatenate([one, gap, other], 1) for one, other in pairs]


class Gym(GymFamily):
    """Tasks of a module of your own, named by ``sampler``, with two functions.

    ``sample(rng, split)`` draws what tells a task of the split from others, with a NumPy generator;
    ``make(parameters)`` returns the task's Gymnasium environment. It is drawn from split, seed and the task's number
    alone, so ``sample`` must use no other source of chance; an environment must take all of its own from
    ``reset(seed=...)``.
    """

    def __init__(self, seed: int, *, sampler: ImportPath | None, horizon: Positive, episodes: Positive) -> None:
        if sampler is None:
            raise UserError(
                "task.sampler=null: give the import path of a module with sample(rng, split) and make(parameters)"
            )
        self.seed, self.sampler, self.horizon, self.episodes = seed, sampler, horizon, episodes
        imported("gymnasium", "task=rl/gym", "rl")
        try:
            module = importlib.import_module(sampler)
        except ModuleNotFoundError as error:
            raise UserError(
                f"task.sampler={sampler}: no module named '{error.name}'; it is the import path of a Python module"
            ) from None
        for name, arguments in (("sample", 2), ("make", 1)):
            function = getattr(module, name, None)
            require(
                callable(function) and len(inspect.signature(function).parameters) >= arguments,
                f"task.sampler={sampler}: {module.__file__} must have the functions sample(rng, split) and "
                f"make(parameters){nearest(name, vars(module)) if function is None else ''}",
            )
        self._sample: Callable[[np.random.Generator, Split], Any] = module.sample
        self._make: Callable[[Any], Any] = module.make
        self.look()

    def sample(self, rng: np.random.Generator, split: Split) -> Any:
        return self._sample(rng, split)

    def make(self, parameters: Any) -> Any:
        return self._make(parameters)

    def protocol(self) -> dict[str, Any]:
        return {"data": self.sampler, "horizon": self.horizon, "episodes": self.episodes}


class Interface:
    """What of a simulator's spaces a policy sees, and how observations and actions are translated."""

    def __init__(self, simulator: Any) -> None:
        from gymnasium import spaces
        from gymnasium.spaces.utils import flatdim, flatten

        seen, acts = simulator.observation_space, simulator.action_space
        self.channels_last = False
        try:
            size = flatdim(seen)
        except (NotImplementedError, ValueError):
            raise UserError(f"observations {seen} have no fixed size; wrap the environment so that they do") from None
        self.shape: tuple[int, ...] = (size,)
        self.scale = 1.0
        self.flatten: Callable[[Any], Any] = lambda observation: flatten(seen, observation)
        if isinstance(seen, spaces.Box):
            self.flatten = np.asarray
            if len(seen.shape) == 3 or (len(seen.shape) == 2 and seen.dtype == np.uint8):
                shape = seen.shape if len(seen.shape) == 3 else (*seen.shape, 1)
                self.channels_last = shape[2] <= 4
                self.shape = (shape[2], *shape[:2]) if self.channels_last else shape
            if seen.dtype == np.uint8:
                self.scale = 1 / 255
        self.discrete = isinstance(acts, spaces.Discrete)
        require(
            self.discrete or isinstance(acts, spaces.Box),
            f"actions {acts} are neither Discrete nor a Box; wrap the environment so that they are",
        )
        if self.discrete:
            self.actions, self.first = int(acts.n), int(acts.start)
            return
        self.actions, self.form = int(np.prod(acts.shape)), acts.shape
        bounded = np.isfinite(acts.low) & np.isfinite(acts.high)
        low, high = np.where(bounded, acts.low, -1).ravel(), np.where(bounded, acts.high, 1).ravel()
        self.middle, self.reach = (high + low) / 2, (high - low) / 2
        self.least = np.where(bounded, -1, -np.inf).ravel()
        self.dtype = acts.dtype

    def read(self, observation: Any) -> NDArray[np.float32]:
        """An observation as a vector [size]."""
        vector = self.flatten(observation)
        if self.channels_last:
            vector = vector.reshape(*self.shape[1:], self.shape[0]).transpose(2, 0, 1)
        return vector.reshape(-1).astype(np.float32) * np.float32(self.scale)

    def write(self, action: Any) -> Any:
        """An action of the policy, a number or a vector [size], as the simulator's."""
        if self.discrete:
            return int(action) + self.first
        return (
            (self.middle + self.reach * np.clip(action, self.least, -self.least)).astype(self.dtype).reshape(self.form)
        )


class Simulators(Environment):
    """T tasks of E simulators each. The state is what was observed last, [T, E, size]: there is no more to see.

    A copy whose episode is over is not stepped. Where the simulator says whether the task was solved (``success`` or
    ``is_success`` among its infos), so does :meth:`outcome`.
    """

    def __init__(self, family: GymFamily, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device, self.family, self.split, self.indices = family.device, family, split, list(indices)
        self.parameters = [family.parameters(split, index) for index in indices]
        self.rows: list[list[Any]] = [[] for _ in indices]
        self.drawn = 0  # seeds used so far of each task
        self.films: list[list[Frame]] | None = None
        """Of the first copy of the first task, a list of frames for each episode; ``None``: not asked for."""
        # The rows are the simulators' only owners: they go back when nobody plays them any more.
        weakref.finalize(self, give_back, family, self.parameters, self.rows)

    def reset(self, copies: int, generator: torch.Generator | None) -> Tensor:
        shape = (self.tasks, copies)
        self.over, self.cut = np.zeros(shape, bool), np.zeros(shape, bool)
        self.success: NDArray[np.bool_] | None = None
        seeds = uniforms(self.family.seed, self.split, self.indices, self.drawn + copies, stream=11)[:, self.drawn :]
        self.drawn += copies
        self.seen = np.zeros((*shape, *self.interface_size()), np.float32)
        for t, row in enumerate(self.rows):
            while len(row) < copies:
                row.append(self.family.simulator(self.parameters[t]))
            for e in range(copies):
                observation, _ = row[e].reset(seed=int(seeds[t, e] * 2**31))
                self.seen[t, e] = self.family.interface.read(observation)
        if self.films is not None:
            self.films.append([])
            self.expose()
        return self.tensor(self.seen)

    def interface_size(self) -> tuple[int]:
        return (int(np.prod(self.family.interface.shape)),)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        actions = action.cpu().numpy()
        reward, terminated = np.zeros(self.over.shape, np.float32), np.zeros_like(self.over)
        self.cut = np.zeros_like(self.over)
        for t, e in np.argwhere(~self.over):
            observation, paid, ended, truncated, info = self.rows[t][e].step(self.family.interface.write(actions[t, e]))
            self.seen[t, e] = self.family.interface.read(observation)
            reward[t, e], terminated[t, e], self.cut[t, e] = paid, ended, truncated and not ended
            solved = info.get("success", info.get("is_success"))
            if solved is not None:
                if self.success is None:
                    self.success = np.zeros_like(self.over)
                self.success[t, e] |= bool(solved)
        if self.films and not self.over[0, 0]:
            self.expose()
        self.over = self.over | terminated | self.cut
        return self.tensor(self.seen), self.tensor(reward), torch.from_numpy(terminated).to(self.device)

    def truncated(self) -> Tensor | None:
        return torch.from_numpy(self.cut).to(self.device) if self.cut.any() else None

    def outcome(self) -> dict[str, Tensor]:
        return {} if self.success is None else {"success": self.tensor(self.success)}

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """A copy on the device, of torch's default type."""
        return torch.tensor(values, dtype=torch.get_default_dtype(), device=self.device)

    def expose(self) -> None:
        """Add a frame to the film; a simulator that does not render ends filming."""
        assert self.films is not None
        simulator, frame = self.rows[0][0], None
        if getattr(simulator, "render_mode", None) == "rgb_array":
            try:
                frame = simulator.render()
            except Exception as error:  # no graphics library, no display
                log.info("no film: the environment does not render here (%s)", " ".join(str(error).split())[:200])
        if isinstance(frame, np.ndarray):
            self.films[-1].append(frame.astype(np.uint8))
        else:
            self.films = None


def give_back(family: GymFamily, parameters: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
    """Hand the simulators of a batch to the family's pool."""
    for each, row in zip(parameters, rows, strict=True):
        family.keep(family.like(each), row)


def imported(module: str, what: str, extra: str) -> Any:
    """A module of an extra, or one line that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs {module} ({error}): pip install 'metarun[{extra}]'") from None
