"""Settings given in Python, as words of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarun.config.check import OPEN
from metarun.config.overrides import word
from metarun.errors import require


def words_of(values: str | Mapping[str, Any], given: dict[str, Any], prefix: str = "") -> list[str]:
    """Return keys and values as words of a command line.

    Args:
        values: A word, or a mapping from keys to values. Inner mappings set the keys below theirs.
        given: Gets the components that are no names: classes and objects, by section.
        prefix: Beginning of the keys.
    """
    if isinstance(values, str):
        return [values]
    found = []
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, Path):
            value = str(value)
        if key in OPEN and not isinstance(value, str | Mapping):
            given[key] = value
        elif isinstance(value, Mapping):
            found += words_of(value, given, f"{key}.")
        else:
            found.append(word(key, value))
    return found


def value_words(command: str, *settings: str | Mapping[str, Any]) -> list[str]:
    """Return settings as words; raises :class:`UserError` if they hold components and not values only."""
    given: dict[str, Any] = {}
    words = [word for each in settings for word in words_of(each, given)]
    require(not given, f"{', '.join(given)}: {command} changes values and no components")
    return words
