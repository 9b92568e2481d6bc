"""Standard JSON, without the NaN and Infinity that Python writes by default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """Serialise ``value``; non-finite numbers become ``null``."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Replace non-finite numbers in ``value`` by ``None``."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def numbers(value: Any) -> Any:
    """Replace ``None`` by NaN, the inverse of :func:`finite` for data that consist of numbers."""
    if value is None:
        return float("nan")
    if isinstance(value, dict):
        return {key: numbers(each) for key, each in value.items()}
    return type(value)(map(numbers, value)) if isinstance(value, (list, tuple)) else value
