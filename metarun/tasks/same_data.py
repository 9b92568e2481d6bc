"""Checks that a resumed or evaluated run reads the same data as before and that its test classes are held out."""

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
"""Number of classes that a message names; the others are counted."""


def settle_for_resume(task: Task, kept: DataRecord | None) -> None:
    """Give ``task`` the splits of the run that is resumed.

    Args:
        task: The family, built anew.
        kept: The record stored with the run; ``None`` for runs older than data.json, which are not checked.

    Raises:
        UserError: The data differ from those of the run.
    """
    if kept is None:
        log.info("the run has no data.json, so its data cannot be compared with the present ones")
        return
    _keep_splits(task, kept)
    found = task.record()
    differs = _differences(kept, found)
    require(
        not differs,
        f"the data differ from those that the run began with: {differs}   restore them, or name their new location "
        f"(task.root=NEW, or the family's own key); read from: {_places(found)}",
    )


@dataclass(frozen=True)
class Evaluation:
    """The request of an evaluation.

    Attributes:
        split: The split to evaluate on.
        keys: Keys of the task that the user changed.
        moved: True if the user named a new location of the data. Such keys are not among ``keys``.
        allow_seen_classes: True if classes that the run meta-trained on are allowed.
        new_classes: True to evaluate on the classes of the data that the run does not know, instead of its own.
        other_task: Name of the family to evaluate on if it is not the run's.
    """

    split: Split = "test"
    keys: Sequence[str] = ()
    moved: bool = False
    allow_seen_classes: bool = False
    new_classes: bool = False
    other_task: str | None = None


def settle_for_evaluation(task: Task, kept: DataRecord | None, asked: Evaluation) -> dict[str, Any]:
    """Give ``task`` the classes to evaluate on.

    Unless a key is changed, these are the run's own, read from the same data.

    Args:
        task: The family, built anew.
        kept: The record stored with the run; ``None`` for runs older than data.json.
        asked: The request.

    Returns:
        Facts to print and to store with the result: new classes, differences of the data, classes seen in
        meta-training.

    Raises:
        UserError: The data differ though the user named no others, or classes were meta-trained on and that is not
            allowed.
    """
    if kept is None:
        log.info("the run has no data.json, so it is unknown whether it was meta-trained on these classes")
        require(not asked.new_classes, "--new-classes: the run has no data.json, so its classes are unknown")
        return {}
    facts: dict[str, Any] = {}
    other_split = [key for key in asked.keys if not _of_an_episode(key)]
    found = task.record()
    if asked.new_classes:
        new = sorted(name for name in task.class_names() if name not in kept.names)
        require(len(new) >= 2, f"--new-classes: {_places(found)} has {len(new)} classes that the run lacks")
        task.keep_classes({**kept.classes, asked.split: new})
        facts["new_classes"] = new
    elif not asked.other_task and not other_split and (not asked.moved or kept.names <= set(task.class_names())):
        _keep_splits(task, kept)
    found = task.record()
    if asked.other_task:
        facts["other_task"] = asked.other_task
    elif differs := _differences(kept, found, classes=not asked.new_classes):
        require(
            asked.moved or bool(other_split) or asked.new_classes,
            f"the data differ from those of the run: {differs}   restore them, or name the data to evaluate on "
            f"(task.root=PATH, or the family's own key), even if the location is unchanged: {_places(found)}",
        )
        facts["other_data"] = differs
        log.info("evaluating on data that differ from the run's: %s", differs)
    names = found.classes.get(asked.split, [])
    seen = kept.trained_on(names, found.content)
    rules = {key: (kept.rule.get(key), value) for key, value in found.rule.items() if kept.rule.get(key) != value}
    if asked.other_task:
        rules = {}
    if seen or rules:
        which = (
            f"{len(seen)} of the {len(names)} classes of '{asked.split}' were meta-trained on: {named(seen)}"
            if seen
            else "; ".join(f"task.{key} was {was}, not {now}" for key, (was, now) in rules.items())
            + f": tasks of '{asked.split}' may have been meta-trained on"
        )
        require(
            asked.allow_seen_classes,
            f"{which}   the result would not measure adaptation to new tasks; --allow-seen-classes evaluates anyway",
        )
        facts["seen_classes"] = seen or list(rules)
        log.warning("not held out: %s", which)
    return facts


def _of_an_episode(key: str) -> bool:
    """Return whether a key changes only the episodes and no split: ``task.shot``, ``task.test_ways``."""
    name = key.split(".")[-1]
    return name.startswith("test_") or name in {"episodes", *(each.name for each in fields(EpisodeShape))}


def named(names: Sequence[str]) -> str:
    """List names for a message: ``'a', 'b', ... and 3 more``."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:NAMED]) + more


def _keep_splits(task: Task, kept: DataRecord) -> None:
    """Restore the run's splits if the data would now be split differently, because classes were added for example."""
    if task.record().classes == kept.classes:
        return
    available = set(task.class_names())
    missing = sorted(kept.names - available)
    require(
        not missing,
        f"the data lack {len(missing)} of the {len(kept.names)} classes that the run has: {named(missing)}   "
        f"restore them, or name their new location (task.root=NEW, or the family's own key); read from: "
        f"{_places(task.record())}",
    )
    extra = sorted(available - kept.names)
    task.keep_classes(kept.classes)
    if extra:
        log.info(
            "%d classes that the run does not know are ignored: %s   metarun eval RUN --new-classes evaluates on them",
            len(extra),
            named(extra),
        )


def _differences(kept: DataRecord, found: DataRecord, classes: bool = True) -> str:
    """Describe the differences between two records; empty if there are none."""
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
