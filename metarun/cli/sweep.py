"""``metarun -m``: one run for every combination of values, in this process or, by submitit, as cluster jobs.

Each job writes its state to a file in the sweep's directory, since it may run on another machine.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from metarun.cli.output import print_summary
from metarun.config.check import check
from metarun.config.compose import (
    compose,
    described,
    for_hydra,
    launch,
    named,
    of_sweeps,
    sweep_directory,
)
from metarun.config.overrides import Override, read, word
from metarun.errors import Interrupted, RunFailed, UserError, conceal, shortened
from metarun.escape import printable
from metarun.runs.history import MOST_RUNS, Job, earlier
from metarun.runs.launch import train
from metarun.runs.stored import same_data
from metarun.streams import survive
from metarun.tracking.console import set_up_logging
from metarun.tracking.rundir import RunDirectory, not_finite

log = logging.getLogger("metarun")


def sweep(words: list[str]) -> int:
    """Check every combination, then run them all and report failures at the end.

    Combinations that an earlier sweep finished are skipped; stopped ones are resumed.
    """
    settings, jobs = _jobs(words)
    if len(jobs) > 100:
        log.info("metarun: checking %d combinations", len(jobs))
    configs = []
    for each in jobs:
        try:
            configs.append(named(compose(each)))
            check(configs[-1])
        except UserError as error:
            own = [asked for asked in each if any(asked not in other for other in jobs)]
            why = f"{error}   this is the run of {shortened(' '.join(own))}" if own else str(error)
            raise UserError(why) from None
    directory = sweep_directory(settings, jobs[0])
    log.info("metarun: %d runs; the state of each is kept in %s", len(jobs), directory)
    left, before = [], 0
    for each, config in zip(jobs, configs, strict=True):  # those of before come first, as launchers count on from them
        finished = _finished(config)
        if finished is None:
            left.append(each)
        else:
            _done_before(" ".join(each), finished).write(directory, before)
            before += 1
    launcher = next((each.word for each in settings if each.key == "hydra/launcher"), None)
    settings = [*settings, *read([word("hydra.sweep.dir", str(directory))])]
    broken: Exception | None = None
    try:
        if left:
            launch(settings, left, partial(job, len(jobs)), before)
    except Exception as error:  # a job died without a message; the launcher then stops waiting for the others
        if os.environ.get("METARUN_DEBUG") == "1":
            raise
        broken = error
        _wait(directory)
    return _report(directory, len(jobs), broken, launcher)


def job(count: int, config: Any) -> None:
    """Run one of a sweep's ``count`` jobs; Hydra calls this."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from metarun.training.signals import hand_on

    hydra = HydraConfig.get()
    words = OmegaConf.to_container(hydra.overrides.task)  # not resolved: a value may name a secret
    assert isinstance(words, list)
    asked = " ".join(words)
    directory = Path(hydra.sweep.dir)
    sys.argv = ["metarun", *words]  # stored as the run's command
    if _output():
        survive()
    set_up_logging()
    log.info("")
    log.info("metarun: run %d of %d: %s", hydra.job.num + 1, count, asked)
    note = Job(asked, "started", log=_output())
    note.write(directory, hydra.job.num)
    try:
        composed = described(config, hydra.runtime.choices, words, {})
        wanted = named(composed)
        finished, started = earlier(wanted, same_data(wanted))
        if finished is not None:
            note = _done_before(asked, finished)
        else:
            try:
                summary = train(composed, {"group": directory.name}, started)
            except Interrupted as error:
                hand_on(error.signal_number)
                raise
            print_summary(summary)
            note = _ended(asked, "finished", summary["directory"], summary)
    except Exception as error:
        why = conceal(("" if isinstance(error, (UserError, RunFailed)) else f"{type(error).__name__}: ") + str(error))
        print(printable(f"metarun: {why}"), file=sys.stderr)
        note = Job(asked, "failed", why=why, log=str(getattr(error, "run_log", note.log or "")) or None)
    note.write(directory, hydra.job.num)


def _finished(config: Mapping[str, Any]) -> RunDirectory | None:
    try:
        return earlier(config, same_data(config))[0]
    except Exception:  # the job itself says why
        return None


def _done_before(asked: str, finished: RunDirectory) -> Job:
    log.info("metarun: done before: %s", finished.path)
    return _ended(asked, "done before", str(finished.path), finished.summary() or {})


def _ended(asked: str, state: Literal["finished", "done before"], run: str, summary: Mapping[str, Any]) -> Job:
    """Return the note of a job that ended; it counts as failed if a result is not finite."""
    if bad := not_finite(summary):
        return Job(asked, "failed", run=run, why=bad, log=str(Path(run, "metarun.log")))
    return Job(asked, state, run=run)


def _report(directory: Path, count: int, broken: Exception | None, launcher: str | None) -> int:
    """Print how many jobs finished; raises :class:`RunFailed` that lists the failed ones.

    Args:
        directory: The sweep's directory.
        count: Number of jobs.
        broken: What the launcher raised.
        launcher: The word that chose the launcher.
    """
    noted = [Job.read(directory, number) for number in range(count)]
    failures = []
    for number, each in enumerate(noted):
        if each is None:
            failures.append(f"run {number + 1}: never started")
        elif each.state == "failed":
            failures.append(f"{each.asked}: {each.why}" + (f"   log: {each.log}" if each.log else ""))
        elif each.state == "started":
            failures.append(f"{each.asked}: died without a message" + (f"   log: {each.log}" if each.log else ""))
    before = sum(each is not None and each.state == "done before" for each in noted)
    log.info("")
    log.info(
        "metarun: %d of %d runs finished, %d of them before; to compare them: metarun report %s",
        count - len(failures), count, before, directory,
    )  # fmt: skip
    if failures:
        why = f"\n({' '.join(str(broken).split())[:300]})" if broken else ""
        if broken and launcher and all(each is None for each in noted):
            why += f"\nthe launcher did not start; without {shortened(launcher)} the runs are made here, one by one"
        raise RunFailed(f"{len(failures)} of {count} runs failed:\n  " + "\n  ".join(failures) + why)
    return 0


def _output() -> str | None:
    """Return the file that receives the output of a submitit job; ``None`` for a job in this process."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "SUBMITIT_FOLDER" not in os.environ:
        return None
    import submitit

    return str(submitit.JobEnvironment().paths.stderr)


def _wait(directory: Path) -> None:
    """Wait for all submitit jobs, whose launcher stops waiting at the first that died."""
    for folder in sorted(directory.glob(".submitit/*")):
        if folder.name.isdigit():  # the local executor's job is a child process
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(folder.name), 0)
        elif re.fullmatch(r"\d+_\d+", folder.name):  # one of an array of jobs
            import submitit

            submitit.SlurmJob(folder, folder.name).wait()


def _jobs(words: Sequence[str]) -> tuple[list[Override], list[list[str]]]:
    """Split the words into the sweep's own settings and the words of each run."""
    overrides = read(words)
    settings = [override for override in overrides if of_sweeps(override)]
    for override in settings:
        if override.sweeps:
            raise UserError(f"{shortened(override.word)}: a sweep has one value of this key")
    own = {
        (override.sign, override.key): override for override in overrides if not of_sweeps(override)
    }  # the last one wins
    counts = {override.word: override.count() for override in own.values()}
    for asked, count in counts.items():
        if not count:
            raise UserError(f"{shortened(asked)}: the range is empty, so there is nothing to run")
    if math.prod(counts.values()) > MOST_RUNS:
        product = " x ".join(f"{count:,}" for count in counts.values() if count > 1)
        raise UserError(f"this would be {product} runs; a sweep has at most {MOST_RUNS:,}")
    each = [[for_hydra(one).text for one in override.expanded()] for override in own.values()]
    return settings, [list(job) for job in itertools.product(*each)]
