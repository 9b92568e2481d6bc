"""Task families that consist of several others: names of options become their sections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metarun.errors import require

KEY = "domains"
"""Key of a task that lists names of other tasks."""
SMALLEST = {"way": 2, "shot": 1, "query": 1, "test_ways": []}
"""Episode sizes of a domain itself. They have no effect, and fit any data."""
SET = "metarun.tasks.domains.DomainSet"


def with_sections(task: dict[str, Any], section_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Replace the names of a task's ``domains`` by the sections of these tasks.

    Args:
        task: The section of a task.
        section_of: Function that returns the section of a task by its name.

    Returns:
        The section, whose ``domains`` have the last part of each name as key: ``vision/glyphs`` is ``glyphs``.

    Raises:
        UserError: The list is empty, names something else, or names a task twice.
    """
    listed = task.get(KEY)
    if not isinstance(listed, list):
        return task
    require(
        bool(listed) and all(isinstance(name, str) for name in listed),
        f"task.{KEY}={listed}: list names of tasks, such as [vision/glyphs, vision/omniglot]",
    )
    short = [name.rpartition("/")[2] for name in listed]
    require(len(set(short)) == len(short), f"task.{KEY}={listed}: each task can be listed once")
    sections = {key: section_of(name) for key, name in zip(short, listed, strict=True)}
    for section in sections.values():
        section.update({key: value for key, value in SMALLEST.items() if key in section})
    nested = [key for key, section in sections.items() if KEY in section]
    require(not nested, f"task.{KEY}: '{', '.join(nested)}' consists of domains itself")
    return {**task, KEY: {"_target_": SET, **sections}}
