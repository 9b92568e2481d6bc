"""Gymnasium environments as task families, including a user's own."""

from __future__ import annotations

import importlib
import inspect
import logging
import traceback
import weakref
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.errors import RunFailed, UserError, nearest, require, users_frame
from metarun.extras import imported
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.spaces import Channels, Interface, WrongValue, named
from metarun.tasks.rng import derived_seed, uniforms
from metarun.types import ImportPath, Positive, Split

if TYPE_CHECKING:
    from metarun.tasks.learner import RLLearner

log = logging.getLogger("metarun")

Frame = NDArray[np.uint8]
"""An RGB image [height, width, 3]."""
Result = TypeVar("Result")


class GymFamily(Task):
    """The base class of families whose tasks are Gymnasium environments.

    A subclass implements :meth:`sample`, which draws the parameters of a task, and :meth:`make`, which builds its
    simulator. Its constructor ends with :meth:`look`. All tasks must have the same spaces;
    :class:`~metarun.tasks.rl.spaces.Interface` converts them. Observations are vectors or images, passed on as vectors
    [T, E, size] with shape ``spec.input_shape``. Actions are integers or vectors. An episode ends when the simulator
    terminates or truncates it, or after ``horizon`` steps.

    Return values of an environment are checked at every step. A reward that is an array, a wrong shape, NaN or an
    exception ends the run with a message that names the place.

    A simulator hides its state, so a batch must be played in order from its beginning. It is still a pure function of
    (seed, split, indices): each reset has a seed that depends on these and on the number of earlier resets.

    Attributes:
        horizon: Steps after which an episode is truncated.
        episodes: Episodes of a trial.
        channels: Position of the channels in images, ``first`` or ``last``; ``None``: the dimension of size 4 or less.
    """

    kind: ClassVar[str] = "control"
    modality: ClassVar[str] = "observation"
    metric: ClassVar[str] = "return"
    simulated_on_host: ClassVar[bool] = True

    horizon: int
    episodes: int
    channels: Channels | None = None

    @abstractmethod
    def sample(self, rng: np.random.Generator, split: Split) -> Any:
        """Draw the parameters of a task.

        Args:
            rng: NumPy generator, the only allowed source of randomness.
            split: ``train``, ``val`` or ``test``.

        Returns:
            Anything from which :meth:`make` builds the task.
        """

    @abstractmethod
    def make(self, parameters: Any) -> Any:
        """Build the simulator of a task.

        Args:
            parameters: Result of :meth:`sample`.

        Returns:
            A Gymnasium environment. With ``render_mode="rgb_array"`` it can be filmed.
        """

    def like(self, parameters: Any) -> Hashable | None:
        """Return a key; simulators of tasks with equal keys can be turned into one another. ``None``: never."""
        return None

    def turn(self, simulator: Any, parameters: Any) -> None:
        """Make a simulator play another task, with an equal :meth:`like` key, from its next reset on."""

    def look(self) -> None:
        """Build the first meta-train task and read the spaces off it."""
        self.pool: dict[Hashable, list[Any]] = {}
        parameters = self.parameters("train", 0)
        simulator = self.make(parameters)
        self.interface = Interface(simulator, self.channels)
        self.keep(self.like(parameters), [simulator])
        shape, actions = self.interface.shape, self.interface.actions
        self.spec = Spec("control", self.modality, shape, actions, discrete_actions=self.interface.discrete)

    def parameters(self, split: Split, index: int) -> Any:
        """Return the parameters of task ``index``."""
        return self.sample(np.random.default_rng(derived_seed(self.seed, split, index, stream=10)), split)

    def keep(self, key: Hashable | None, simulators: Sequence[Any]) -> None:
        """Put simulators that are no longer played back into the pool."""
        if key is not None:
            self.pool.setdefault(key, []).extend(simulators)

    def simulator(self, parameters: Any) -> Any:
        """Return a simulator of a task, one from the pool if possible."""
        free = self.pool.get(self.like(parameters), [])
        if free:
            simulator = free.pop()
            self.turn(simulator, parameters)
        else:
            simulator = self.make(parameters)
        if (difference := self.interface.difference(simulator)) is not None:
            raise UserError(
                f"{named(simulator)} of a task has {difference} as the first meta-training task has; one policy plays "
                "all tasks, so their spaces must be equal: give all the largest, and mask or pad the others"
            )
        return simulator

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> Simulators:
        return Simulators(self, split, indices)

    def film(self, learner: RLLearner) -> list[Frame] | None:
        """Record one test task: the first and the last episode, before and after adaptation, side by side."""
        env = self.batch("test", [0])
        env.films = []
        for _ in learner.rollouts(env):
            pass
        if not env.films:
            return None
        # With or without a hidden state, the first episode precedes all adaptation and the last one follows it.
        first, last = env.films[0], env.films[-1]
        gap = np.full((first[0].shape[0], 4, 3), 255, np.uint8)
        length = max(len(first), len(last))
        pairs = ((first[min(i, len(first) - 1)], last[min(i, len(last) - 1)]) for i in range(length))
        return [np.concatenate([one, gap, other], 1) for one, other in pairs]


class Gym(GymFamily):
    """Tasks from a Python module with the functions ``sample(rng, split)`` and ``make(parameters)`` of
    :class:`GymFamily`.

    Args:
        seed: Seed of the tasks.
        sampler: Import path of the module.
        horizon: Steps after which an episode is truncated.
        episodes: Episodes of a trial.
        channels: Position of the channels in images whose shape is ambiguous, ``first`` or ``last``.
    """

    def __init__(
        self,
        seed: int,
        *,
        sampler: ImportPath | None,
        horizon: Positive,
        episodes: Positive,
        channels: Literal["first", "last"] | None,
    ) -> None:
        if sampler is None:
            raise UserError(
                "task.sampler=null: give the import path of a module with sample(rng, split) and make(parameters)"
            )
        self.seed, self.sampler, self.horizon, self.episodes = seed, sampler, horizon, episodes
        self.channels = channels
        imported("gymnasium", "task=rl/gym", "rl")
        try:
            module = importlib.import_module(sampler)
        except ModuleNotFoundError as error:
            raise UserError(
                f"task.sampler={sampler}: no module named '{error.name}'; it is the import path of a Python module"
            ) from None
        except Exception as error:
            raise UserError(f"task.sampler={sampler}: importing it raised {raised(error)}") from error
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
        return self._asked("sample(rng, split)", lambda: self._sample(rng, split))

    def make(self, parameters: Any) -> Any:
        return self._asked(f"make({parameters!r:.60})", lambda: self._make(parameters))

    def _asked(self, call: str, function: Callable[[], Result]) -> Result:
        try:
            return function()
        except (UserError, RunFailed, MemoryError):
            raise
        except Exception as error:
            raise UserError(f"task.sampler={self.sampler}: {call} raised {raised(error)}") from error

    def protocol(self) -> dict[str, Any]:
        return {"data": self.sampler, "horizon": self.horizon, "episodes": self.episodes}


class Simulators(Environment):
    """T tasks x E simulators. The state is the last observation, [T, E, size], since simulators hide theirs.

    An environment whose episode has ended is not stepped. If the infos contain ``success`` or ``is_success``,
    :meth:`outcome` returns it.
    """

    def __init__(self, family: GymFamily, split: Split, indices: Sequence[int]) -> None:
        super().__init__(family.seed, split, indices, family.horizon, family.episodes)
        self.device, self.family, self.split, self.indices = family.device, family, split, list(indices)
        self.parameters = [family.parameters(split, index) for index in indices]
        self.rows: list[list[Any]] = [[] for _ in indices]
        self.drawn = 0  # seeds used so far of each task
        self.films: list[list[Frame]] | None = None
        """Frames of each episode of the first environment of the first task; ``None`` if no film is wanted."""
        # Only the rows own the simulators, which return to the pool when this object is collected.
        weakref.finalize(self, give_back, family, self.parameters, self.rows)

    def reset(self, num_envs: int, generator: torch.Generator | None) -> Tensor:
        shape = (self.tasks, num_envs)
        self.over, self.cut = np.zeros(shape, bool), np.zeros(shape, bool)
        self.success: NDArray[np.bool_] | None = None
        seeds = uniforms(self.family.seed, self.split, self.indices, self.drawn + num_envs, stream=11)[:, self.drawn :]
        self.drawn += num_envs
        self.time, interface = 0, self.family.interface
        self.seen = np.zeros((*shape, *self.interface_size()), np.float32)
        for t, row in enumerate(self.rows):
            while len(row) < num_envs:
                row.append(self.family.simulator(self.parameters[t]))
            for e in range(num_envs):
                begin = partial(row[e].reset, seed=int(seeds[t, e] * 2**31))
                self.seen[t, e] = self.asked(t, e, "reset", begin, interface.read_reset)
        if self.films is not None:
            self.films.append([])
            self.expose()
        return self.tensor(self.seen)

    def asked(
        self, task: int, copy: int, method: str, call: Callable[[], Any], check: Callable[[Any], Result]
    ) -> Result:
        """Call a simulator's method and check its result; errors are raised as :class:`RunFailed` that names the
        place.
        """
        try:
            return check(call())
        except (UserError, RunFailed, MemoryError):
            raise
        except Exception as error:
            what = f"returned {error}" if isinstance(error, WrongValue) else f"raised {raised(error)}"
            steps = f", step {self.time + 1}" if method == "step" else ""
            raise RunFailed(
                f"{named(self.rows[task][copy])}.{method}, task {self.indices[task]} of split '{self.split}', "
                f"episode {self.drawn // self.seen.shape[1]}{steps}: {what}"
            ) from error

    def interface_size(self) -> tuple[int]:
        return (int(np.prod(self.family.interface.shape)),)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        actions = action.cpu().numpy()
        if not np.isfinite(actions).all():
            raise RunFailed(
                f"the policy's actions became NaN or infinite at step {self.time + 1} of an episode of "
                f"'{self.split}' tasks; a smaller algorithm.outer_lr or algorithm.inner_lr is the usual cure"
            )
        reward, terminated = np.zeros(self.over.shape, np.float32), np.zeros_like(self.over)
        self.cut, interface = np.zeros_like(self.over), self.family.interface
        for t, e in np.argwhere(~self.over):
            simulator, done = self.rows[t][e], interface.write(actions[t, e])
            step = partial(simulator.step, done)
            self.seen[t, e], paid, ended, truncated, info = self.asked(t, e, "step", step, interface.read_step)
            reward[t, e], terminated[t, e], self.cut[t, e] = paid, ended, truncated and not ended
            solved = info.get("success", info.get("is_success"))
            if solved is not None:
                if self.success is None:
                    self.success = np.zeros_like(self.over)
                self.success[t, e] |= bool(np.any(solved))
        self.time += 1
        if self.films and not self.over[0, 0]:
            self.expose()
        self.over = self.over | terminated | self.cut
        return self.tensor(self.seen), self.tensor(reward), torch.from_numpy(terminated).to(self.device)

    def truncated(self) -> Tensor | None:
        return torch.from_numpy(self.cut).to(self.device) if self.cut.any() else None

    def outcome(self) -> dict[str, Tensor]:
        return {} if self.success is None else {"success": self.tensor(self.success)}

    def tensor(self, values: NDArray[Any]) -> Tensor:
        """Copy ``values`` to the device, as torch's default dtype."""
        return torch.tensor(values, dtype=torch.get_default_dtype(), device=self.device)

    def expose(self) -> None:
        """Add a frame to the film. A simulator that cannot render ends filming."""
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
    """Return the simulators of a batch to the family's pool."""
    for each, row in zip(parameters, rows, strict=True):
        family.keep(family.like(each), row)


def raised(error: Exception) -> str:
    """Describe an exception on one line, with the innermost line of a user's own code, or else the innermost one."""
    frame = users_frame(error) or next(reversed(traceback.extract_tb(error.__traceback__)), None)
    where = f" ({frame.filename}, line {frame.lineno})" if frame else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text[:200]}' if text else ''}{where}"
