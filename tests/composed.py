"""Configurations for tests that build parts of them, each composed once."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

from metarun.config.compose import compose


def composed(*words: str) -> dict[str, Any]:
    """The configuration that these words of a command line compose, the caller's own to change."""
    return copy.deepcopy(_composed(words))


@cache
def _composed(words: tuple[str, ...]) -> dict[str, Any]:
    return compose(list(words)).config
