"""Conversion of Gymnasium's spaces: observations become vectors or images, actions integers or vectors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metarun.errors import UserError, require

Channels = Literal["first", "last"]
MOST_CHANNELS = 4
"""An image dimension of at most this size is taken for the channels."""
MOST_COMBINATIONS = 4096
"""Largest number of combinations of a composite action."""
UNBOUNDED = 1e9
"""Bounds of at least this size, and the limits of a float type, count as no bounds."""


class WrongValue(Exception):
    """An environment returned a value that does not match its spaces: "a reward of shape (2,); it must be ..."."""


class Interface:
    """Conversion between a simulator's spaces and the policy's observations and actions.

    Observations: a ``Box`` of three dimensions, or of two with dtype uint8, is an image. Its last dimension holds the
    channels if its size is at most 4, else its first one if that is; otherwise ``channels`` must say which. Other
    spaces are flattened to one vector as in Gymnasium. Bytes 0..255 are scaled to 0..1.

    Actions: ``Discrete`` actions, and the combinations of a ``MultiDiscrete`` or ``MultiBinary``, are numbered. The
    bounds of a ``Box`` are mapped to -1 and 1. A dimension with one bound has it at -1 or 1 and keeps its unit; one
    without bounds is not scaled. Actions are clipped to the bounds, and integers rounded.

    Args:
        simulator: An environment with ``observation_space`` and ``action_space``.
        channels: ``first`` or ``last``, for images whose shape is ambiguous.

    Raises:
        UserError: The simulator has no spaces, or they cannot be converted.
    """

    def __init__(self, simulator: Any, channels: Channels | None = None) -> None:
        self.spaces = spaces_of(simulator)
        self._look_at_observations(self.spaces["observations"], channels)
        self._look_at_actions(self.spaces["actions"])

    def _look_at_observations(self, seen: Any, channels: Channels | None) -> None:
        from gymnasium import spaces
        from gymnasium.spaces.utils import flatdim

        self.channels_last = False
        if isinstance(seen, spaces.Box) and (len(seen.shape) == 3 or (len(seen.shape) == 2 and seen.dtype == np.uint8)):
            self.shape = seen.shape if len(seen.shape) == 3 else (1, *seen.shape)
            if len(seen.shape) == 3:
                self.channels_last = (channels or layout(seen.shape)) == "last"
            if self.channels_last:
                self.shape = (seen.shape[2], *seen.shape[:2])
            return
        try:
            self.shape = (int(flatdim(seen)),)
        except (NotImplementedError, ValueError):
            raise UserError(
                f"observations {short(seen)} have no fixed size; wrap the environment so that they do"
            ) from None

    def _look_at_actions(self, acts: Any) -> None:
        from gymnasium import spaces

        self.discrete = not isinstance(acts, spaces.Box)
        if isinstance(acts, spaces.Discrete):
            self.actions = int(acts.n)
        elif isinstance(acts, spaces.MultiDiscrete | spaces.MultiBinary):
            binary = isinstance(acts, spaces.MultiBinary)
            self.sizes = [2] * prod(acts.shape) if binary else [int(n) for n in acts.nvec.ravel()]
            self.first = 0 if binary else np.asarray(getattr(acts, "start", 0)).ravel()
            self.actions = prod(self.sizes)
            require(
                self.actions <= MOST_COMBINATIONS,
                f"actions {short(acts)} have {self.actions} combinations, and at most {MOST_COMBINATIONS} can be "
                "numbered; wrap the environment so that its actions are Discrete or a Box",
            )
        else:
            require(
                isinstance(acts, spaces.Box) and acts.dtype.kind in "iuf",
                f"actions {short(acts)} are none of Discrete, MultiDiscrete, MultiBinary and Box of numbers; "
                "wrap the environment so that they are",
            )
            self._look_at_bounds(acts)

    def _look_at_bounds(self, acts: Any) -> None:
        self.actions = prod(acts.shape)
        limit = min(UNBOUNDED, float(np.finfo(acts.dtype).max)) if acts.dtype.kind == "f" else UNBOUNDED
        low, high = acts.low.ravel(), acts.high.ravel()
        below, above = low > -limit, high < limit
        # A dimension with one bound reaches as far from it as one from -1 to 1 does: two units.
        low = np.where(below, low, np.where(above, high - 2.0, -1.0).astype(low.dtype))
        high = np.where(above, high, np.where(below, low + 2.0, 1.0).astype(high.dtype))
        self.middle, self.reach = (high + low) / 2, (high - low) / 2
        self.least, self.most = np.where(below, -1, -np.inf), np.where(above, 1, np.inf)

    def read(self, observation: Any) -> NDArray[np.float32]:
        """Convert an observation to a float32 vector [size], for images with the channels first.

        Raises:
            WrongValue: The observation does not match its space or is not finite.
        """
        seen = self.spaces["observations"]
        if self.channels_last:
            observation = as_array(seen, observation).transpose(2, 0, 1)
            values = scaled(seen, observation)
        else:
            values = vector(seen, observation)
        if not np.isfinite(values).all():
            raise WrongValue("an observation with NaN or infinite values; all must be finite")
        return values

    def write(self, action: Any) -> Any:
        """Convert the policy's action, an integer or a finite vector [size], to an element of the simulator's action
        space.
        """
        acts = self.spaces["actions"]
        if not self.discrete:
            values = self.middle + self.reach * np.clip(action, self.least, self.most)
            if acts.dtype.kind != "f":
                values = np.rint(values)
            return np.clip(values, acts.low.ravel(), acts.high.ravel()).astype(acts.dtype).reshape(acts.shape)
        if acts.shape == () and hasattr(acts, "n"):
            return int(action) + int(acts.start)
        parts = np.array(np.unravel_index(int(action), self.sizes)) + self.first
        return parts.astype(acts.dtype).reshape(acts.shape)

    def read_reset(self, returned: Any) -> NDArray[np.float32]:
        """Return the observation of a reset; raises :class:`WrongValue` unless it returned (observation, info)."""
        if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], Mapping):
            raise WrongValue(f"{described(returned)}; it must return (observation, info), info being a dict")
        return self.read(returned[0])

    def read_step(self, returned: Any) -> tuple[NDArray[np.float32], float, bool, bool, Mapping[str, Any]]:
        """Return a step's observation, reward, terminated, truncated and info; raises :class:`WrongValue`."""
        if not isinstance(returned, tuple) or len(returned) != 5:
            old = ", as Gym had it before 0.26" if isinstance(returned, tuple) and len(returned) == 4 else ""
            raise WrongValue(
                f"{described(returned)}{old}; it must return (observation, reward, terminated, truncated, info)"
            )
        seen, reward, terminated, truncated, info = returned
        paid = number(reward)
        if paid is None:
            raise WrongValue(f"{described(reward)} as reward; it must be one finite number")
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, bool | np.bool_) and number(flag) not in (0.0, 1.0):
                raise WrongValue(f"{described(flag)} as {name}; it must be true or false")
        if not isinstance(info, Mapping):
            raise WrongValue(f"{described(info)} as info; it must be a dict")
        return self.read(seen), paid, bool(terminated), bool(truncated), info

    def difference(self, simulator: Any) -> str | None:
        """Describe how another simulator's spaces differ from these; ``None`` if they are equal."""
        for name, theirs in spaces_of(simulator).items():
            if theirs is not self.spaces[name] and theirs != self.spaces[name]:
                return differing(name, self.spaces[name], theirs)
        return None


def spaces_of(simulator: Any) -> dict[str, Any]:
    """Return the observation and action space of a simulator; raises :class:`UserError` if it has none."""
    from gymnasium.spaces import Space

    found = {}
    for name in ("observation", "action"):
        space = getattr(simulator, f"{name}_space", None)
        require(
            isinstance(space, Space),
            f"{named(simulator)} has {name}_space={short(space)}; it must be a space of gymnasium.spaces",
        )
        found[f"{name}s"] = space
    return found


def layout(shape: tuple[int, ...]) -> Channels:
    """Return whether an image shape has its channels first or last; raises :class:`UserError` if it is ambiguous."""
    if shape[2] <= MOST_CHANNELS:
        return "last"
    require(
        shape[0] <= MOST_CHANNELS,
        f"observations of shape {shape} are images, and their shape does not tell whether channels come first or "
        "last; say so: task.channels=first or task.channels=last (in a family of your own, its attribute 'channels')",
    )
    return "first"


def vector(space: Any, value: Any) -> NDArray[np.float32]:
    """Flatten a value of ``space`` to one vector: parts are concatenated, discrete values one-hot, bytes scaled to
    0..1.
    """
    from gymnasium import spaces
    from gymnasium.spaces.utils import flatten

    if isinstance(space, spaces.Box):
        return scaled(space, as_array(space, value))
    if isinstance(space, spaces.Dict):
        if not isinstance(value, Mapping) or value.keys() != space.spaces.keys():
            keys = f"keys {sorted(map(str, value))}" if isinstance(value, Mapping) else described(value)
            raise WrongValue(f"an observation of {keys}; it must have the keys {sorted(map(str, space.spaces))}")
        return np.concatenate([vector(part, value[key]) for key, part in space.spaces.items()])
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise WrongValue(f"an observation of {described(value)}; it must be a tuple of {len(space.spaces)}")
        return np.concatenate([vector(part, each) for part, each in zip(space.spaces, value, strict=True)])
    if not space.contains(value):
        raise WrongValue(f"an observation of {described(value)}; it must be of {short(space)}")
    return np.asarray(flatten(space, value), np.float32).ravel()


def as_array(space: Any, value: Any) -> NDArray[Any]:
    """Return a value of a Box as an array, checked for shape and dtype."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        raise WrongValue(f"an observation of {described(value)}; it must be an array of {space.shape}") from None
    if array.shape != space.shape or array.dtype.kind not in "biuf":
        found = "None" if value is None else f"shape {array.shape} and type {array.dtype}"
        raise WrongValue(f"an observation of {found}; it must be of shape {space.shape} and type {space.dtype}")
    if space.dtype.kind != "f" and array.dtype.kind == "f":
        raise WrongValue(f"an observation of type {array.dtype}; it must be of type {space.dtype}, as its space says")
    if space.dtype == np.uint8 and array.dtype != np.uint8 and (array.min(initial=0) < 0 or array.max(initial=0) > 255):
        raise WrongValue("an observation of bytes with values outside of 0..255")
    return array


def scaled(space: Any, array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        values = array.reshape(-1).astype(np.float32)
    return values * np.float32(1 / 255) if space.dtype == np.uint8 else values


def differing(name: str, ours: Any, theirs: Any) -> str:
    """Describe the difference between two spaces, with the name of the part that differs."""
    from gymnasium.spaces import Dict

    if isinstance(ours, Dict) and isinstance(theirs, Dict) and ours.spaces.keys() == theirs.spaces.keys():
        key = next(key for key in ours.spaces if ours.spaces[key] != theirs.spaces[key])
        return differing(f"{name}[{key!r}]", ours.spaces[key], theirs.spaces[key])
    return f"{name} {short(theirs)}, not {short(ours)}"


def number(value: Any) -> float | None:
    """Return ``value`` as a float if it is one finite number in the range of float32, else ``None``."""
    if not isinstance(value, int | float):
        array = np.asarray(value)
        if array.ndim or array.dtype.kind not in "biuf":
            return None
        value = array.item()
    return float(value) if abs(value) <= float(np.finfo(np.float32).max) else None


def described(value: Any) -> str:
    """Describe the type and shape of a value in a few words."""
    if value is None:
        return "None"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {tuple(value.shape)} and type {value.dtype}"
    return f"the {type(value).__name__} {short(value, 40)}"


def short(value: Any, length: int = 120) -> str:
    """Return ``value`` as one line of at most ``length`` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else text[: length - 3] + "..."


def named(simulator: Any) -> str:
    """Return the module and class of a simulator, without wrappers."""
    if simulator is None:
        return "None"
    kind = type(getattr(simulator, "unwrapped", simulator))
    return f"{kind.__module__}.{kind.__qualname__}"
