"""``metarun -m``: every combination of values a run of its own, here or, through submitit, as jobs of a cluster.

What became of a job it writes to a file in the sweep's directory, since it may be a process on another machine.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from metarun.cli.output import print_summary
from metarun.config.check import check
from metarun.config.compose import (
    Composed,
    asked_keys,
    chosen,
    compose,
    for_hydra,
    launch,
    named,
    of_sweeps,
    resolve,
    sweep_directory,
)
from metarun.config.overrides import Override, read, word
from metarun.errors import Interrupted, RunFailed, UserError, conceal, shortened
from metarun.escape import printable
from metarun.runs.history import Job, earlier
from metarun.runs.launch import train
from metarun.runs.stored import same_data
from metarun.streams import survive
from metarun.tracking.console import set_up_logging
from metarun.tracking.rundir import not_finite

MOST_RUNS = 10_000
"""Runs of a sweep."""


def sweep(words: list[str]) -> int:
    """Every combination is checked first, then run; failures are collected to the end.

    Combinations that an earlier sweep finished are skipped, those that were stopped go on.
    """
    settings, jobs = _jobs(words)
    if len(jobs) > 100:  # which takes as many quarters of a second
        print(f"metarun: checking {len(jobs)} combinations", file=sys.stderr)
    for each in jobs:
        check(named(compose(each)))
    directory = sweep_directory(settings, jobs[0])
    print(f"metarun: {len(jobs)} runs; what becomes of each is kept in {directory}", file=sys.stderr)
    settings = [*settings, *read([word("hydra.sweep.dir", str(directory))])]
    broken: Exception | None = None
    try:
        launch(settings, jobs, job)
    except Exception as error:  # of a job that died without a word; the launcher waits for no other then
        if os.environ.get("METARUN_DEBUG") == "1":
            raise
        broken = error
        _wait(directory)
    return _tell(directory, len(jobs), broken)


def job(config: Any) -> None:
    """One of a sweep's runs, as Hydra calls it."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from metarun.training.signals import hand_on

    hydra = HydraConfig.get()
    words = OmegaConf.to_container(hydra.overrides.task)  # without resolving: a value may be a password's name
    assert isinstance(words, list)
    asked = " ".join(words)
    directory = Path(hydra.sweep.dir)
    sys.argv = ["metarun", *words]  # what the run keeps as its command
    if _output():
        survive()
    set_up_logging()
    print(printable(f"\nmetarun: run {hydra.job.num + 1}: {asked}"), file=sys.stderr)
    note = Job(asked, "started", log=_output())
    note.write(directory, hydra.job.num)
    try:
        composed = Composed(resolve(config), chosen(hydra.runtime.choices), asked_keys(words))
        wanted = named(composed)
        finished, started = earlier(wanted, same_data(wanted))
        if finished is not None:
            print(printable(f"metarun: done before: {finished.path}"), file=sys.stderr)
            note = _noted(asked, "done before", str(finished.path), finished.summary() or {})
        else:
            try:
                summary = train(composed, {"group": directory.name}, started)
            except Interrupted as error:
                hand_on(error.signal_number)
                raise
            print_summary(summary)
            note = _noted(asked, "finished", summary["directory"], summary)
    except Exception as error:
        why = conceal(("" if isinstance(error, (UserError, RunFailed)) else f"{type(error).__name__}: ") + str(error))
        print(printable(f"metarun: {why}"), file=sys.stderr)
        note = Job(asked, "failed", why=why, log=str(getattr(error, "run_log", note.log or "")) or None)
    note.write(directory, hydra.job.num)


def _noted(asked: str, state: Literal["finished", "done before"], run: str, summary: Mapping[str, Any]) -> Job:
    """A job that came to its end: failed, if what it found is not finite."""
    if bad := not_finite(summary):
        return Job(asked, "failed", run=run, why=bad, log=str(Path(run, "metarun.log")))
    return Job(asked, state, run=run)


def _tell(directory: Path, count: int, broken: Exception | None) -> int:
    """One line of how many ended how; raises :class:`RunFailed` with what failed."""
    noted = [Job.read(directory, number) for number in range(count)]
    failures = []
    for number, each in enumerate(noted):
        if each is None:
            failures.append(f"run {number + 1}: never started")
        elif each.state == "failed":
            failures.append(f"{each.asked}: {each.why}" + (f"   log: {each.log}" if each.log else ""))
        elif each.state == "started":
            failures.append(f"{each.asked}: died without a word" + (f"   log: {each.log}" if each.log else ""))
    before = sum(each is not None and each.state == "done before" for each in noted)
    print(
        f"\nmetarun: {count - len(failures)} of {count} runs finished, {before} of them before; "
        f"to compare them: metarun report {directory}",
        file=sys.stderr,
    )
    if failures:
        why = f"\n({' '.join(str(broken).split())[:300]})" if broken else ""
        raise RunFailed(f"{len(failures)} of {count} runs failed:\n  " + "\n  ".join(failures) + why)
    return 0


def _output() -> str | None:
    """The file that takes what a job of submitit prints; None for one of this process."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "SUBMITIT_FOLDER" not in os.environ:
        return None
    import submitit

    return str(submitit.JobEnvironment().paths.stderr)


def _wait(directory: Path) -> None:
    """Until the jobs of submitit have ended: its launcher stops waiting at the first that died."""
    for folder in sorted(directory.glob(".submitit/*")):
        if folder.name.isdigit():  # of the local executor, and its process a child of this one
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(folder.name), 0)
        elif re.fullmatch(r"\d+_\d+", folder.name):  # one of an array of jobs
            import submitit

            submitit.SlurmJob(folder, folder.name).wait()


def _jobs(words: Sequence[str]) -> tuple[list[Override], list[list[str]]]:
    """The words about the sweep itself, and the words of each of its runs."""
    overrides = read(words)
    settings = [override for override in overrides if of_sweeps(override)]
    for override in settings:
        if override.sweeps:
            raise UserError(f"{shortened(override.word)}: a sweep has one value of this key")
    own = {
        (override.sign, override.key): override for override in overrides if not of_sweeps(override)
    }  # the last word counts
    counts = {override.word: override.count() for override in own.values()}
    for asked, count in counts.items():
        if not count:
            raise UserError(f"{shortened(asked)}: no value is in this range, so there is nothing to run")
    if math.prod(counts.values()) > MOST_RUNS:
        told = " x ".join(f"{count:,}" for count in counts.values() if count > 1)
        raise UserError(f"this would be {told} runs; a sweep has at most {MOST_RUNS:,}")
    each = [[for_hydra(one).text for one in override.expanded()] for override in own.values()]
    return settings, [list(job) for job in itertools.product(*each)]
