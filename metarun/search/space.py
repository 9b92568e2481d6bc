"""What is searched, as a file of ``conf/search`` says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metarun.errors import UserError, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIRECTIONS = ("maximize", "minimize")
_RANGE = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Search:
    """``space``: for each key of the configuration its choices (a list), or a range {low, high, log, step}.

    Whole ends make a range of whole numbers.
    """

    trials: int
    prune: bool
    startup: int
    objectives: Mapping[str, str] | None
    space: Mapping[str, Any]

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Search:
        """Of a file's content; raises :class:`~metarun.errors.UserError` for the first thing wrong with it."""
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
                raise UserError(f"search.{name}={value!r}: not what belongs there ({kind.__name__.lower()})")
        search = cls(**section)
        if search.trials < 1 or search.startup < 0:
            raise UserError(f"search.trials={search.trials}, search.startup={search.startup}: at least 1 and 0")
        if not search.space:
            raise UserError("search.space is empty: nothing to search")
        for name, direction in (search.objectives or {}).items():
            if direction not in DIRECTIONS:
                raise UserError(f"search.objectives.{name}={direction!r}: {' or '.join(DIRECTIONS)}")
        for key, values in search.space.items():
            _check(f"search.space.{key}", values)
        return search

    def distributions(self) -> dict[str, BaseDistribution]:
        """The same for Optuna. Choices that are lists or sections are known to it by their position."""
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

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial's parameters stand for."""
        return {
            key: self.space[key][value] if isinstance(self.space[key], Sequence) else value
            for key, value in parameters.items()
        }


def _check(where: str, values: Any) -> None:
    if isinstance(values, Sequence) and not isinstance(values, str):
        if len(values) < 2:
            raise UserError(f"{where}: one choice is none")
        return
    if not isinstance(values, Mapping):
        raise UserError(f"{where}={values!r}: a list of choices, or a range {{low, high, log, step}}")
    for name in values:
        if name not in _RANGE:
            raise UserError(f"unknown key '{where}.{name}'{nearest(str(name), _RANGE)}   allowed: {', '.join(_RANGE)}")
    low, high = values.get("low"), values.get("high")
    if any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in (low, high)) or low >= high:  # type: ignore[operator]
        raise UserError(f"{where}: low={low} and high={high} are no range")
    if values.get("log") and low <= 0:  # type: ignore[operator]
        raise UserError(f"{where}: a logarithmic range starts above 0, not at {low}")
    if values.get("log") and values.get("step") is not None:
        raise UserError(f"{where}: log and step exclude each other")
