"""Adjustment of defaults to small data: episode sizes that the user did not set are lowered, and the log says so."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metarun.config.overrides import value_at
from metarun.errors import UserError

if TYPE_CHECKING:
    from metarun.tasks.episode import EpisodeShape
    from metarun.tasks.fewshot import DoesNotFit

log = logging.getLogger("metarun")

SMALLEST = {"way": 2, "shot": 1, "query": 1}
"""Smallest value to which each part of an episode's shape is lowered."""


def adjustable(facts: Mapping[str, Any]) -> set[str]:
    """Return the keys of an episode's size that may be lowered.

    These are ``facts["adjustable"]``, or the keys that the user left at their defaults, according to
    ``facts["asked"]``. There are none if these facts are missing, as for evaluated or resumed runs, or if a recipe sets
    the values.
    """
    if "adjustable" in facts:
        return set(facts["adjustable"])
    if "asked" not in facts or facts.get("choices", {}).get("experiment"):
        return set()
    keys = {f"task.{part}" for part in (*SMALLEST, "test_ways")} | {f"algorithm.train_{part}" for part in SMALLEST}
    return keys - set(facts["asked"])


def lowered(
    config: Mapping[str, Any], error: DoesNotFit, free: set[str], train: EpisodeShape | None = None
) -> dict[str, Any]:
    """Return ``config`` with adjustable keys lowered so that the episode fits.

    Args:
        config: The configuration.
        error: The error about the episode.
        free: The adjustable keys.
        train: Shape of the meta-training episodes, if these do not fit.

    Raises:
        UserError: No adjustable key can be lowered far enough.
    """
    if error.parts == ("test_ways",) and "task.test_ways" in free:
        asked = value_at(config, "task.test_ways")
        ways = [way for way in asked if way <= error.limit]
        log.info("task.test_ways is %s instead of %s: %s", ways, list(asked), error.why)
        return {**config, "task": {**config["task"], "test_ways": ways}}
    values: dict[str, int] = {}
    for part in error.parts:
        trained = f"algorithm.train_{part}"
        if train is not None and value_at(config, trained) is not None:
            values[trained] = getattr(train, part)
        elif train is not None:
            values[f"task.{part}"] = getattr(train, part)
        elif isinstance(now := value_at(config, f"task.{part}"), int):
            values[f"task.{part}"] = now
    excess, new = sum(values.values()) - error.limit, dict(values)
    for key, value in values.items():
        if key in free and excess > 0:
            least = SMALLEST[key.rpartition(".")[2].removeprefix("train_")]
            new[key] = max(min(value, least), value - excess)
            excess -= value - new[key]
    if excess > 0 or new == values:
        fixed = " + ".join(f"{key}={value}" for key, value in values.items())
        raise UserError(f"{fixed} does not fit the data: {error}" if train is not None else str(error)) from None
    changed = dict(config)
    for key, value in new.items():
        if value != values[key]:
            section, name = key.split(".")
            changed[section] = {**changed[section], name: value}
            log.info("%s is lowered from its default %d to %d: %s", key, values[key], value, error.why)
    return changed
