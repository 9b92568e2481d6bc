"""Rebuilding the experiment of an earlier run, with changed keys if requested."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.config.check import CLOSED, OPEN, check_objects
from metarun.config.compose import changed, compose
from metarun.config.environment import resolved
from metarun.config.locations import absolute, absolute_path, path_keys
from metarun.config.overrides import apply, read, read_single, value_at, word
from metarun.config.paths import option_file
from metarun.config.schema import declaration
from metarun.config.trust import Trust, admit
from metarun.errors import UserError, shortened
from metarun.runs.other_task import with_other_task
from metarun.tracking.rundir import RunDirectory

log = logging.getLogger("metarun")

if TYPE_CHECKING:
    from metarun.tasks.base import Task
    from metarun.tasks.record import DataRecord
    from metarun.training.experiment import Experiment


def rebuild(
    command: str,
    words: Sequence[str],
    allowed: Sequence[str],
    trust: Trust,
    settle: Callable[[Task, RunDirectory, Mapping[str, Any]], None] | None = None,
    objects: Mapping[str, Any] | None = None,
    other_task: bool = False,
) -> tuple[RunDirectory, Experiment, dict[str, Any]]:
    """Rebuild the experiment of a run.

    Args:
        command: Name of the command, for messages.
        words: The run directory, then overrides.
        allowed: Beginnings of the keys that may be changed.
        trust: Permissions for code that is not metarun's.
        settle: Function called with the task, the directory and the changes before a model is built.
        objects: Components that already exist, by section.
        other_task: True if a word ``task=NAME`` may name another task family.

    Returns:
        The run directory, the experiment, and the changed keys with their values.
    """
    directory, config, facts, changes = reread(command, words, allowed, trust, objects, other_task)
    refuse_lost_data(command, words[0], config, changes)
    from metarun.config.build import build

    config["runner"]["devices"] = 1  # only training uses several processes

    def given(task: Task) -> None:
        if settle is not None:
            settle(task, directory, changes)

    return directory, build(config, facts, directory.path, given, objects, trains=False), changes


def recorded(directory: RunDirectory) -> DataRecord | None:
    """Return the record of a run's data; ``None`` for runs older than the record."""
    from metarun.tasks.record import DataRecord

    stored = directory.data()
    try:
        return None if stored is None else DataRecord.of(stored)
    except ValueError as error:
        raise UserError(f"{directory.path / 'data.json'} is damaged: {error}") from None


def same_data(config: Mapping[str, Any]) -> Callable[[RunDirectory], bool]:
    """Return a function that tells whether a run was made from the data that ``config`` reads now.

    Runs without a record count as equal. The data are read when the first run with a record is compared.
    """

    @cache
    def found() -> DataRecord:
        from metarun.config.build import construct

        values = resolved(config)
        return construct(values["task"], seed=values["seed"]).record()

    def same(run: RunDirectory) -> bool:
        kept = recorded(run)
        if kept is None or not kept.places:
            return True
        return kept.classes == found().classes and not kept.changed(found())

    return same


def refuse_lost_data(command: str, run: str, config: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` if a run's data no longer exist; the message says how to name their new location."""
    for key in data_keys(config):
        place = value_at(config, key)
        known = isinstance(place, str) and "${" not in place
        if known and key not in changes and not Path(place).exists():
            raise UserError(
                f"the run's data are gone: {key}={place} does not exist   to name their new location: "
                f"metarun {command} {run} {key}=NEW"
            )


def data_keys(config: Mapping[str, Any], shipped: bool = False) -> list[str]:
    """Return the keys of a run's task that locate its data; ``shipped`` as in :func:`path_keys`."""
    return [key for key, always in path_keys(config, shipped).items() if always and key.startswith("task.")]


def reread(
    command: str,
    words: Sequence[str],
    allowed: Sequence[str],
    trust: Trust,
    objects: Mapping[str, Any] | None = None,
    other_task: bool = False,
) -> tuple[RunDirectory, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Read a stored run and apply overrides.

    Keys that locate the data may always be changed. Code named by the configuration must be metarun's, named by a
    change, or permitted by ``trust``; sections in ``objects`` are not checked.

    Args:
        command: Name of the command, for messages.
        words: The run directory, then overrides.
        allowed: Beginnings of the keys that may be changed.
        trust: Permissions for code that is not metarun's.
        objects: Components that already exist, by section.
        other_task: True if a word ``task=NAME`` may name another task family.

    Returns:
        The run directory, its configuration, its facts, and the changed keys with their values.
    """
    if not words or "=" in words[0]:
        raise UserError(f"{command} needs a run directory: metarun {command} RUN [key=value ...]{latest_here()}")
    directory = RunDirectory.open(words[0])
    config = directory.config()
    meta = directory.meta()
    _add_new_keys(config, meta.get("choices", {}))
    name, rest = None, list(words[1:])
    if other_task:
        config, name, rest = with_other_task(config, meta.get("choices", {}), rest)
    config, changes = change(command, config, rest, (*allowed, *data_keys(config, shipped=True)))
    own = [*changes, *(["task"] if name else []), *(objects or ())]
    check_objects(config, objects or {})
    admit(config, str(directory.path / "config.yaml"), trust, own=own)
    for key in changes.keys() & path_keys(config).keys():
        changes[key] = absolute_path(changes[key])
        apply(config, read([word(f"++{key}", changes[key])]))
    config = absolute(config, Path(str(meta.get("directory") or Path.cwd())))
    facts: dict[str, Any] = {key: meta[key] for key in ("choices", "group") if key in meta}
    if name is not None:
        changes = {"task": name, **changes}
        facts["choices"] = {**facts.get("choices", {}), "task": name}
        facts["adjustable"] = sorted({"task.test_ways"} - changes.keys())  # which the other data may be too small for
    return directory, config, facts, changes


def _add_new_keys(config: dict[str, Any], choices: Mapping[str, str]) -> None:
    """Add the keys that are newer than a run, with the values that its options give them now."""
    now = _composed_anew(choices)
    for group in (*OPEN, *CLOSED):
        added = list(_new_keys(group, config.get(group), now.get(group)))
        if added and group not in CLOSED:
            defaults = ", ".join(f"{key}={value}" for key, value in added)
            log.info("the run is older than some keys, which get their defaults: %s", defaults)


def _composed_anew(choices: Mapping[str, str]) -> dict[str, Any]:
    """Compose the configuration of these options anew, without options that no longer exist or fit."""
    known = choices if isinstance(choices, Mapping) else {}
    groups = (*OPEN, *CLOSED, "images", "experiment")
    groups = tuple(group for group in groups if group not in CLOSED or known.get(group) != "default")  # chosen anyway
    existing = [f"{group}={known[group]}" for group in groups if option_file(group, str(known.get(group)))]
    try:
        return compose(existing).config
    except UserError:
        return compose([]).config


def _new_keys(where: str, stored: Any, now: Any) -> Iterator[tuple[str, Any]]:
    """Copy the keys of ``now`` that its class requires and ``stored`` lacks, recursively, and yield them."""
    if not isinstance(stored, dict) or not isinstance(now, dict) or stored.get("_target_") != now.get("_target_"):
        return
    target = CLOSED.get(where) or now.get("_target_")
    parameters = declaration(target).parameters if target else {}
    for key, value in now.items():
        if key in stored:
            yield from _new_keys(f"{where}.{key}", stored[key], value)
        elif key in parameters and parameters[key].required:
            stored[key] = value
            yield f"{where}.{key}", value


def trained(directory: RunDirectory, experiment: Experiment) -> tuple[Path, int]:
    """Load the learner that a run tests into ``experiment``; return the checkpoint and its iteration."""
    chosen = tested_checkpoint(directory, experiment.runner.select)
    return chosen, experiment.load(chosen)


def tested_checkpoint(directory: RunDirectory, select: str) -> Path:
    """Return the checkpoint that a run tests: the best on validation if ``select`` is ``best``, else the last."""
    best, last = (directory.path / "checkpoints" / f"{name}.pt" for name in ("best", "last"))
    return best if select == "best" and best.is_file() else last


def change(
    command: str, config: dict[str, Any], words: Sequence[str], allowed: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Apply overrides to a stored configuration.

    Args:
        command: Name of the command, for messages.
        config: The stored configuration.
        words: Overrides.
        allowed: Beginnings of the keys that may be changed.

    Returns:
        The configuration, and the changed keys with their values (``None`` if deleted).
    """
    overrides = read_single(words)
    for override in overrides:
        if not override.key.startswith(tuple(allowed)):
            can = f"it can change {', '.join(f'{each}*' for each in allowed)}" if allowed else "it changes no key"
            raise UserError(f"{command} cannot change '{shortened(override.key)}'; {can}")
    config = changed(config, overrides)
    return config, {override.key: value_at(config, override.key) for override in overrides}


def latest_here() -> str:
    """Return a line that names the newest run below ``outputs``; empty if there is none."""
    runs = sorted(Path("outputs").glob("*/*/config.yaml"), key=lambda p: p.lstat().st_mtime)
    return f"\n  the latest here: {runs[-1].parent}" if runs else ""
