"""A slice of the random command lines of scripts/fuzz.py."""

from __future__ import annotations

from tests.script import script


def test_random_command_lines() -> None:
    statuses, failures = script("fuzz").fuzz(seed=1, count=40)
    assert not failures, "\n".join(failures)
    assert statuses[0] > 1
    assert statuses[2] > 20
