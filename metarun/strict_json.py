"""JSON that every reader takes: no NaN and no Infinity, which Python writes and the standard does not know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON; numbers that are not finite become ``null``."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """``value`` with ``None`` in place of every number that is not finite."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def numbers(value: Any) -> Any:
    """The inverse of :func:`finite` where everything is a number: ``null`` is NaN again."""
    if value is None:
        return float("nan")
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items()}
    return type(value)(map(numbers, value)) if isinstance(value, (list, tuple)) else value
