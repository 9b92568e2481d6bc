"""Search spaces, as the files of ``conf/search`` describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from metarun.errors import UserError, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIRECTIONS = ("maximize", "minimize")
_RANGE = ("low", "high", "log", "step")
TYPES = {int: "an integer", bool: "true or false", Mapping: "a section"}
"""Descriptions of the types of a search's keys."""


@dataclass(frozen=True)
class Search:
    """A checked search section.

    Attributes:
        trials: Largest number of trials. If the space has no more combinations, each is tried once.
        prune: If true, stop trials that validate worse than the median at the same iteration.
        startup: Finished trials before any is pruned and before the sampler learns from them.
        objectives: ``maximize`` or ``minimize`` for each objective, or ``None`` for the task's own metric.
        space: Choices (a list) or a range ``{low, high, log, step}`` for each key of the configuration. If ``low`` and
            ``high`` are integers, so are the values.
    """

    trials: int
    prune: bool
    startup: int
    objectives: Mapping[str, str] | None
    space: Mapping[str, Any]

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Search:
        """Make a search from the content of a file.

        Raises:
            UserError: A key is unknown or missing, or a value is not allowed.
        """
        fields = {"trials": int, "prune": bool, "startup": int, "objectives": Mapping, "space": Mapping}
        for name in section:
            if name not in fields:
                raise UserError(f"unknown key 'search.{name}'{nearest(name, fields)}   allowed: {', '.join(fields)}")
        for name, kind in fields.items():
            if name not in section:
                raise UserError(f"search.{name} is missing")
            value = section[name]
            fits = isinstance(value, kind) and not (kind is int and value is True)
            if not fits and not (name == "objectives" and value is None):
                raise UserError(f"search.{name}={value!r}: must be {TYPES[kind]}")
        search = cls(**section)
        if search.trials < 1 or search.startup < 0:
            raise UserError(f"search.trials={search.trials}, search.startup={search.startup}: must be at least 1 and 0")
        if not search.space:
            raise UserError("search.space is empty: name at least one key to search")
        for name, direction in (search.objectives or {}).items():
            if direction not in DIRECTIONS:
                raise UserError(f"search.objectives.{name}={direction!r}: must be {' or '.join(DIRECTIONS)}")
        for key, values in search.space.items():
            _check(f"search.space.{key}", values)
        return search

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the distributions for Optuna. Choices are represented by their index."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {}
        for key, values in self.space.items():
            if isinstance(values, Sequence):
                found[key] = CategoricalDistribution(range(len(values)))
                continue
            low, high, log, step = (values.get(name) for name in _RANGE)
            if isinstance(low, int) and isinstance(high, int):
                found[key] = IntDistribution(low, high, bool(log), 1 if step is None else step)
            else:
                found[key] = FloatDistribution(float(low), float(high), bool(log), step)
        return found

    def combinations(self) -> list[dict[str, Any]]:
        """Return the parameters of all combinations of values, if there are at most ``trials``; else an empty list."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        values: list[Sequence[Any]] = []
        for each in self.distributions().values():
            if isinstance(each, CategoricalDistribution):
                values.append(each.choices)
            elif isinstance(each, IntDistribution):
                values.append(range(each.low, each.high + 1, each.step))
            else:
                return []
        if prod(map(len, values)) > self.trials:
            return []
        return [dict(zip(self.space, chosen, strict=True)) for chosen in product(*values)]

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each key for the parameters of an Optuna trial."""
        return {
            key: self.space[key][value] if isinstance(self.space[key], Sequence) else value
            for key, value in parameters.items()
        }


def _check(where: str, values: Any) -> None:
    """Raise a :class:`~metarun.errors.UserError` if ``values`` is neither a list of choices nor a range."""
    if isinstance(values, Sequence) and not isinstance(values, str):
        if len(values) < 2:
            raise UserError(f"{where}: a list needs at least two choices")
        return
    if not isinstance(values, Mapping):
        raise UserError(f"{where}={values!r}: must be a list of choices or a range {{low, high, log, step}}")
    for name in values:
        if name not in _RANGE:
            raise UserError(f"unknown key '{where}.{name}'{nearest(str(name), _RANGE)}   allowed: {', '.join(_RANGE)}")
    low, high = values.get("low"), values.get("high")
    if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in (low, high)) or low >= high:  # type: ignore[operator]
        raise UserError(f"{where}: low={low} and high={high} must be numbers with low < high")
    if values.get("log") and low <= 0:  # type: ignore[operator]
        raise UserError(f"{where}: low={low} must be greater than 0 in a logarithmic range")
    if values.get("log") and values.get("step") is not None:
        raise UserError(f"{where}: log and step cannot be combined")
