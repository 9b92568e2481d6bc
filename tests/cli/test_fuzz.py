"""A slice of the random command lines of scripts/fuzz.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_random_command_lines() -> None:
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "scripts" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    statuses, failures = fuzz.fuzz(seed=1, count=100)
    assert not failures, "\n".join(failures)
    assert statuses[0] > 5
    assert statuses[2] > 50
