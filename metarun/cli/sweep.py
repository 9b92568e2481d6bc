"""``metarun -m``: every combination of values a run of its own, here or, through submitit, as jobs of a cluster.

What became of a job it writes to a file in the sweep's directory, since it may be a process on another machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun.cli.output import print_summary, set_up_logging
from metarun.cli.stored import same_data
from metarun.cli.train import named, train
from metarun.config.check import check
from metarun.config.compose import Composed, asked_keys, chosen, compose, multirun, resolve, sweep_directory
from metarun.errors import Interrupted, RunFailed, UserError, conceal
from metarun.escape import printable
from metarun.tracking.history import Job, earlier

_PRECHECKED = 32  # jobs of a sweep that are checked before the first starts


def sweep(overrides: list[str]) -> int:
    """Every combination is checked first, then run; failures are collected to the end.

    Combinations that an earlier sweep finished are skipped, those that were stopped go on.
    """
    jobs = _jobs(overrides)
    for each in jobs[:_PRECHECKED]:
        check(named(compose(each)))
    directory = sweep_directory(jobs[0])
    print(f"metarun: {len(jobs)} runs; what becomes of each is kept in {directory}", file=sys.stderr)
    broken: Exception | None = None
    try:
        multirun([*map(_late, overrides), f'hydra.sweep.dir="{directory}"'], job)
    except Exception as error:  # of a job that died without a word; the launcher waits for no other then
        if os.environ.get("METARUN_DEBUG") == "1":
            raise
        broken = error
        _wait(directory)
    return _tell(directory, len(jobs), broken)


def job(config: Any) -> None:
    """One of a sweep's runs, as Hydra calls it."""
    from hydra.core.hydra_config import HydraConfig

    from metarun.training.signals import hand_on

    hydra = HydraConfig.get()
    words = list(hydra.overrides.task)
    asked = " ".join(words)
    directory = Path(hydra.sweep.dir)
    sys.argv = ["metarun", *words]  # what the run keeps as its command
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
            note = Job(asked, "done before", run=str(finished.path))
        else:
            try:
                summary = train(composed, {"group": directory.name}, started)
            except Interrupted as error:
                hand_on(error.signal_number)
                raise
            print_summary(summary)
            note = Job(asked, "finished", run=summary["directory"])
    except Exception as error:
        why = conceal(("" if isinstance(error, (UserError, RunFailed)) else f"{type(error).__name__}: ") + str(error))
        print(printable(f"metarun: {why}"), file=sys.stderr)
        note = Job(asked, "failed", why=why, log=str(getattr(error, "run_log", note.log or "")) or None)
    note.write(directory, hydra.job.num)


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


def _late(override: str) -> str:
    """A key of a task, model or algorithm as a choice of one value.

    Hydra sets fixed values before it knows a job's options, and refuses what the default algorithm has no such key for.
    """
    key, _, value = override.partition("=")
    if not key.startswith(("task.", "model.", "algorithm.")) or len(_jobs([override])) > 1:
        return override
    return f"{key}=choice({value})"


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        return [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    except OverrideParseException as error:
        raise UserError(" ".join(str(error).split())) from None
