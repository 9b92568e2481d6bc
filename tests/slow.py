"""Marking what the quick run of the tests leaves out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(kept: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Return the cases for ``pytest.mark.parametrize``; all but the ``kept`` ones are marked slow."""
    cases = [*cases]
    missing = [each for each in kept if each not in cases]
    assert not missing, f"no such cases: {missing}"
    return [
        each if each in kept else pytest.param(*(each if isinstance(each, tuple) else [each]), marks=pytest.mark.slow)
        for each in cases
    ]
