"""Task families that consist of several others: names of options become their sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from metarun.errors import require

KEY = "domains"
"""Key of a task that names other tasks."""
SMALLEST = {"way": 2, "shot": 1, "query": 1, "test_ways": []}
"""Episode sizes of a domain itself. They have no effect, and fit any data."""
SET = "metarun.tasks.domains.DomainSet"


def with_sections(task: dict[str, Any], section_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Replace the names of a task's ``domains`` by the sections of these tasks.

    Args:
        task: The section of a task.
        section_of: Function that returns the section of a task by its name.

    Returns:
        The section. Its ``domains`` have the names of a mapping, ``{new: vision/folder, old: vision/folder}``, or the
        last parts of a list's names: ``vision/glyphs`` is ``glyphs``.

    Raises:
        UserError: It is empty, names something else, or a list names a task twice.
    """
    named = task.get(KEY)
    if not isinstance(named, list | Mapping) or (isinstance(named, Mapping) and SET in named.values()):
        return task
    tasks = [*named.values()] if isinstance(named, Mapping) else named
    require(
        bool(tasks) and all(isinstance(name, str) for name in tasks),
        f"task.{KEY}={named}: list names of tasks, such as [vision/glyphs, vision/omniglot], or name each domain, "
        "{new: vision/folder, old: vision/folder}",
    )
    short = [*named] if isinstance(named, Mapping) else [name.rpartition("/")[2] for name in tasks]
    require(
        len({*short}) == len(short),
        f"task.{KEY}={named}: each task can be listed once; {{new: vision/folder, old: vision/folder}} names domains",
    )
    sections = {key: section_of(name) for key, name in zip(short, tasks, strict=True)}
    for section in sections.values():
        section.update({key: value for key, value in SMALLEST.items() if key in section})
    nested = [key for key, section in sections.items() if KEY in section]
    require(not nested, f"task.{KEY}: '{', '.join(nested)}' consists of domains itself")
    return {**task, KEY: {"_target_": SET, **sections}}
