"""Continuation of a stopped run, exactly as if it had not been stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metarun.config.check import check
from metarun.config.environment import resolved
from metarun.config.trust import Trust
from metarun.errors import UserError
from metarun.runs.history import EXECUTION_KEYS
from metarun.runs.launch import carry_out
from metarun.runs.stored import refuse_lost_data, reread
from metarun.runs.tracked import complete_copies
from metarun.tracking.rundir import RunDirectory


@dataclass(frozen=True)
class Resumed:
    """The result of continuing a run.

    Attributes:
        summary: Summary of the run with its ``directory``; empty in processes other than the main one.
        longer: Key that trains the run longer if it had finished before; empty if the run was continued.
        completed: Trackers whose copies of a finished run were completed.
    """

    summary: dict[str, Any]
    longer: str = ""
    completed: Sequence[str] = ()


def resume_run(words: Sequence[str], trust: Trust, objects: Mapping[str, Any] | None = None) -> Resumed:
    """Continue a run until its end.

    Args:
        words: The run directory, then overrides of ``runner.`` or ``tracker.`` keys.
        trust: Which code beside metarun's own the stored configuration may call.
        objects: Components that exist already, by section.

    Raises:
        UserError: The run cannot be continued with these changes, or its data are not those it was made of.
        RunFailed: Training failed.
    """
    objects = objects or {}
    allowed = ("runner.", "tracker.")
    directory, config, facts, changes = reread("resume", words, allowed, trust, objects)
    refuse_lost_data("resume", str(directory.path), config, changes)
    check(config, objects)
    if directory.finished() and (done := _finished(directory, resolved(config)["runner"], changes)) is not None:
        return replace(done, completed=complete_copies(directory, config, facts, changes))
    return Resumed(carry_out(config, {**facts, "changes": changes}, directory, objects))


def _finished(directory: RunDirectory, runner: Mapping[str, Any], changes: Mapping[str, Any]) -> Resumed | None:
    """Return the result of a finished run; ``None`` if the changes train it longer."""
    done = directory.summary() or {}
    try:
        if runner["iterations"] < done["iterations"]:
            raise UserError(f"the run has {done['iterations']} iterations; runner.iterations can only be raised")
        limit = _limit(runner, done, directory.config()["runner"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise UserError(f"{directory.path / 'summary.json'} is damaged: it lacks values that a run writes") from None
    if limit is None:
        return None
    _refuse_what_changes_nothing(changes)
    return Resumed({**done, "directory": str(directory.path)}, limit)


def _limit(runner: Mapping[str, Any], done: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    """Return the key whose limit a finished run has reached; ``None`` if it can be trained longer.

    Args:
        runner: The runner's keys, with the requested changes.
        done: The summary of the run.
        before: The runner's keys as stored.
    """
    if runner["iterations"] == done["iterations"]:
        return "runner.iterations"
    minutes, patience = runner["minutes"], runner["patience"]
    # Rounded like the seconds in the summary, so that a used-up time budget is recognised.
    out_of_time = minutes is not None and round(60 * minutes, 1) <= done["wall_s"]
    out_of_patience = patience is not None and patience <= (before.get("patience") or 0)
    reached = {"runner.minutes": out_of_time, "runner.patience": out_of_patience}
    return next((key for key, holds in reached.items() if holds and key == done.get("ended_by")), None)


def _refuse_what_changes_nothing(changes: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for keys such as runner.test_episodes, which have no effect on a finished run."""
    limits = ("runner.iterations", "runner.minutes", "runner.patience")
    unused = [key for key in changes if key not in limits and not key.startswith(EXECUTION_KEYS)]
    if unused:
        keys = " ".join(f"{key}={changes[key]}" for key in unused)
        raise UserError(f"the run has finished: {keys} has no effect   to evaluate: metarun eval RUN {keys}")
