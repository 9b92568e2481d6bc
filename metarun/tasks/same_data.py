"""Checks that a resumed or evaluated run reads the data it began with, and that its test classes are held out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.record import DataRecord
from metarun.types import Split

log = logging.getLogger("metarun")
NAMED = 5
"""Number of classes that a message names; it counts the others."""


def settle_for_resume(task: Task, kept: DataRecord | None) -> None:
    """Give ``task`` the splits that the run began with; raises :class:`UserError` if its data are not the same."""
    if kept is None:
        log.info("the run is from before data.json was kept: nothing tells whether its data are still the same")
        return
    _keep_splits(task, kept)
    found = task.record()
    differs = _differences(kept, found)
    require(
        not differs,
        f"the data are not those that the run began with: {differs}   "
        f"put them back, or say where they lie (task.root=NEW, as the family calls it); read from: {_places(found)}",
    )


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation was asked for: ``split``; ``keys`` of the task that were changed; and two allowances.

    ``moved``: the user named where the data lie; such keys are not among ``keys``.
    ``allow_seen_classes``: also classes that the run
    meta-trained on. ``new_classes``: on the classes of the data that the run does not know, in place of its own.
    """

    split: Split = "test"
    keys: Sequence[str] = ()
    moved: bool = False
    allow_seen_classes: bool = False
    new_classes: bool = False


def settle_for_evaluation(task: Task, kept: DataRecord | None, asked: Evaluation) -> dict[str, Any]:
    """Give ``task`` the classes to evaluate on; returns what is to be printed and stored with the result.

    Without any changed key these are the run's own, read from the same data. Raises :class:`UserError` for data that
    differ unless the user named them, and for classes that the run meta-trained on unless these are allowed.
    """
    if kept is None:
        log.info("the run is from before data.json was kept: nothing tells whether it was trained on these classes")
        require(not asked.new_classes, "--new-classes: the run is from before data.json was kept")
        return {}
    told: dict[str, Any] = {}
    other_split = [key for key in asked.keys if not _of_an_episode(key)]
    found = task.record()
    if asked.new_classes:
        strange = sorted(name for name in task.class_names() if name not in kept.names)
        require(len(strange) >= 2, f"--new-classes: {_places(found)} has {len(strange)} classes that the run lacks")
        task.keep_classes({**kept.classes, asked.split: strange})
        told["new_classes"] = strange
    elif not other_split and (not asked.moved or kept.names <= set(task.class_names())):
        _keep_splits(task, kept)
    found = task.record()
    if differs := _differences(kept, found, classes=not asked.new_classes):
        require(
            asked.moved or bool(other_split) or asked.new_classes,
            f"the data are not those of the run: {differs}   put them back, or name the data to evaluate on "
            f"(task.root=PATH, or as the family calls it), also where they are now: {_places(found)}",
        )
        told["other_data"] = differs
        log.info("evaluated on other data than the run's: %s", differs)
    names = found.classes.get(asked.split, [])
    seen = kept.trained_on(names, found.content)
    rules = {key: (kept.rule.get(key), value) for key, value in found.rule.items() if kept.rule.get(key) != value}
    if seen or rules:
        which = (
            f"{len(seen)} of the {len(names)} classes of '{asked.split}' were meta-trained on: {named(seen)}"
            if seen
            else "; ".join(f"task.{key} was {was}, not {now}" for key, (was, now) in rules.items())
            + f": tasks of '{asked.split}' may have been meta-trained on"
        )
        require(
            asked.allow_seen_classes,
            f"{which}   such a result is not about new tasks; --allow-seen-classes evaluates all the same",
        )
        told["seen_classes"] = seen or list(rules)
        log.warning("not held out: %s", which)
    return told


def _of_an_episode(key: str) -> bool:
    """Whether a key of a task changes the episodes that are drawn, and no split: ``task.shot``, ``task.test_ways``."""
    name = key.split(".")[-1]
    return name.startswith("test_") or name in {each.name for each in fields(EpisodeShape)}


def named(names: Sequence[str]) -> str:
    """``'a', 'b', ... and 3 more``."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:NAMED]) + more


def _keep_splits(task: Task, kept: DataRecord) -> None:
    """The run's own splits, where the data now would be split otherwise: classes were added, or drawn differently."""
    if task.record().classes == kept.classes:
        return
    there = set(task.class_names())
    missing = sorted(kept.names - there)
    require(
        not missing,
        f"the data lack {len(missing)} of the {len(kept.names)} classes that the run has: {named(missing)}   "
        f"put them back, or name their place (task.root=NEW, as the family calls it); read from: "
        f"{_places(task.record())}",
    )
    extra = sorted(there - kept.names)
    task.keep_classes(kept.classes)
    if extra:
        log.info(
            "%d classes that the run does not know are ignored: %s   --new-classes of eval evaluates on them",
            len(extra),
            named(extra),
        )


def _differences(kept: DataRecord, found: DataRecord, classes: bool = True) -> str:
    """In words; empty where there are none."""
    words = []
    if classes and (missing := sorted(kept.names - found.names)):
        words.append(f"{len(missing)} classes are missing ({named(missing)})")
    if classes and (new := sorted(found.names - kept.names)):
        words.append(f"{len(new)} classes are new ({named(new)})")
    if changed := kept.changed(found):
        words.append(f"the examples of {len(changed)} classes have changed ({named(changed)})")
    if classes and not words and found.classes != kept.classes:
        words.append("classes are in other splits")
    return "; ".join(words)


def _places(record: DataRecord) -> str:
    return ", ".join(record.places) or "the family's own place"
