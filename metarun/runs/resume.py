"""Continuation of a stopped run, exactly as if it had not been stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metarun.config.check import check
from metarun.config.environment import resolved
from metarun.config.trust import Trust
from metarun.errors import UserError
from metarun.runs.history import EXECUTION_KEYS
from metarun.runs.launch import carry_out
from metarun.runs.stored import refuse_lost_data, reread
from metarun.tracking.rundir import RunDirectory


@dataclass(frozen=True)
class Resumed:
    """What a resume did.

    Attributes:
        summary: Summary of the run with its ``directory``; empty in processes other than the main one.
        longer: Key that trains the run longer if it had finished before; empty if the run was continued.
    """

    summary: dict[str, Any]
    longer: str = ""


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
        return done
    return Resumed(carry_out(config, {**facts, "changes": changes}, directory, objects))


def _finished(directory: RunDirectory, runner: Mapping[str, Any], changes: Mapping[str, Any]) -> Resumed | None:
    """Return the result of a finished run; ``None`` if the changes train it longer."""
    done = directory.summary() or {}
    iterations, minutes = runner["iterations"], runner["minutes"]
    try:
        if iterations < done["iterations"]:
            raise UserError(f"the run has {done['iterations']} iterations; runner.iterations can only be raised")
        # Rounded like the seconds in the summary, so that a used-up time budget is recognised.
        used_up = minutes is not None and round(60 * minutes, 1) <= done["wall_s"]
        out_of_time = done.get("ended_by") == "runner.minutes" and used_up
        if iterations > done["iterations"] and not out_of_time:
            return None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise UserError(f"{directory.path / 'summary.json'} is damaged: it lacks values that a run writes") from None
    _refuse_what_changes_nothing(changes)
    longer = "runner.minutes" if out_of_time else "runner.iterations"
    return Resumed({**done, "directory": str(directory.path)}, longer)


def _refuse_what_changes_nothing(changes: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for keys such as runner.test_episodes, which have no effect on a finished run."""
    limits = ("runner.iterations", "runner.minutes")
    unused = [key for key in changes if key not in limits and not key.startswith(EXECUTION_KEYS)]
    if unused:
        keys = " ".join(f"{key}={changes[key]}" for key in unused)
        raise UserError(f"the run has finished: {keys} has no effect   to evaluate: metarun eval RUN {keys}")
