"""Origins of a configuration's values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metarun.config.catalogue import entry
from metarun.config.paths import conf_directory
from metarun.untrusted import read_yaml

COMMAND_LINE = "command line"


def origins(choices: Mapping[str, str], asked: Sequence[str] = ()) -> dict[str, str]:
    """Return the origin of each key that does not have its component's default.

    Args:
        choices: The chosen option of each group, ``{"task": "regression/sinusoid", ...}``.
        asked: Keys that the user set.

    Returns:
        ``{"algorithm.inner_lr": "tuned for regression/sinusoid", "runner.iterations": "task=regression/sinusoid"}``.
    """
    found: dict[str, str] = {}
    for group, option in _layers(choices):
        chosen = entry(group, option)
        label = f"tuned for {choices['task']}" if group == "tuned" else f"{group}={option}"
        for key, _ in leaves(chosen.settings if chosen else {}):
            found[key] = label
            if key.partition(".")[0] == group:
                del found[key]
    return {**found, **dict.fromkeys(asked, COMMAND_LINE)}


def origin_of(key: str, found: Mapping[str, str]) -> str | None:
    """Return the origin of a key according to :func:`origins`; ``None`` for its component's default."""
    above = [key] if key in found else []
    above += [each for each in found if found[each] == COMMAND_LINE and key.startswith(f"{each}.")]
    return found[above[-1]] if above else None


def tuned(config: Mapping[str, Any], choices: Mapping[str, str], asked: Sequence[str]) -> dict[str, Any]:
    """Return the keys and values that are tuned for this pair of task and algorithm (``conf/tuned``)."""
    found = origins(choices, asked)
    values = dict(leaves(config))
    return {key: values[key] for key in values if (origin_of(key, found) or "").startswith("tuned for ")}


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of everything that is not a section: ``("algorithm.outer.first_order", False)``."""
    for name, value in values.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def _layers(choices: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (group, option) in the order of precedence in ``config.yaml``, the strongest last."""
    for item in read_yaml(conf_directory() / "config.yaml")["defaults"]:
        group = next(iter(item)).rpartition(" ")[2] if isinstance(item, dict) else ""
        if group == "tuned":
            yield group, f"{choices.get('task')}/{choices.get('algorithm')}"
        elif group in choices:
            yield group, choices[group]
