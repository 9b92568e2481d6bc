"""Execution of one run: in this process, or distributed over ``runner.devices`` processes."""

from __future__ import annotations

import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.config.check import check
from metarun.config.compose import Composed, named
from metarun.config.environment import resolved
from metarun.errors import Interrupted, RunFailed, UserError
from metarun.runs.stored import recorded
from metarun.streams import survive
from metarun.tracking.console import Verbosity, shown, verbosity
from metarun.training.signals import StopRequest

if TYPE_CHECKING:
    from torch.multiprocessing.spawn import ProcessContext

    from metarun.tasks.base import Task
    from metarun.tracking.rundir import RunDirectory

log = logging.getLogger("metarun")

GRACE = 5.0
"""Seconds that the other processes have to end by themselves after one is lost, and again after SIGTERM."""


def train(
    composed: Composed, facts: Mapping[str, Any] | None = None, directory: RunDirectory | None = None
) -> dict[str, Any]:
    """Check and carry out a composed configuration, as :func:`carry_out` does.

    Args:
        composed: The configuration with the facts of its composition.
        facts: Further entries of meta.json.
        directory: The run to go on with; ``None`` starts a new one.
    """
    config = named(composed)
    check(config)
    log.debug("options: %s", " ".join(f"{group}={name}" for group, name in composed.choices.items()))
    log.debug("keys of the command line: %s", ", ".join(composed.asked) or "none")
    return carry_out(config, {**composed.facts, **(facts or {})}, directory)


def carry_out(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    directory: RunDirectory | None = None,
    objects: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Execute the run of a checked configuration, or resume the one in ``directory``.

    Args:
        config: The configuration.
        facts: Further entries of meta.json.
        directory: The run to resume; ``None`` starts a new one.
        objects: Components that already exist, by section.

    Returns:
        The summary with the run's ``directory``; empty in processes other than the main one.

    Raises:
        Exception: Any exception that ends the run. Its attribute ``run_log`` is the path of the run's log.
    """
    from metarun import distributed
    from metarun.tracking.rundir import RunDirectory

    values = resolved(config)
    runner = values["runner"]
    spread = runner["devices"] > 1 and distributed.world_size() == 1
    if spread and objects:
        raise UserError(
            f"runner.devices={runner['devices']}: components that are Python objects ({', '.join(objects)}) need 1"
        )
    if directory is None and spread:
        directory = RunDirectory.create(runner["directory"], values["name"], values["seed"])
    try:
        if spread:
            assert directory is not None
            return _spread(config, facts, directory, runner["devices"])
        return _here(config, facts, directory, objects)
    except Exception as error:
        if directory is not None:
            error.run_log = directory.path / "metarun.log"  # type: ignore[attr-defined]
        raise


def _here(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    directory: RunDirectory | None,
    objects: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Execute this process's part of the run."""
    from metarun import distributed
    from metarun.config.build import build
    from metarun.tracking.rundir import RunDirectory

    with distributed.process_group():
        with distributed.main_process_first():
            experiment = build(config, facts, directory.path if directory else None, _same_data(directory), objects)
        if not distributed.is_main():
            return experiment.run()
        if directory is None:
            directory = RunDirectory.create(experiment.runner.directory, experiment.name, experiment.seed)
        try:
            return {**experiment.run(directory), "directory": str(directory.path)}
        except Exception as error:
            error.run_log = directory.path / "metarun.log"  # type: ignore[attr-defined]
            raise


def _same_data(directory: RunDirectory | None) -> Callable[[Task], None] | None:
    """Return a function that checks that a resumed run reads the data it began with."""
    if directory is None or not directory.meta():
        return None
    from metarun.tasks.same_data import settle_for_resume

    return partial(settle_for_resume, kept=recorded(directory))


def _spread(
    config: Mapping[str, Any], facts: Mapping[str, Any], directory: RunDirectory, devices: int
) -> dict[str, Any]:
    """Execute the run in ``devices`` processes on this machine. If one is lost, the others end too, with the reason."""
    from torch import multiprocessing
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    from metarun.distributed import OthersLost

    reports: Any = multiprocessing.get_context("spawn").SimpleQueue()
    arguments = (devices, _free_port(), dict(config), dict(facts), str(directory.path), reports, verbosity())
    context = multiprocessing.spawn(_rank, arguments, nprocs=devices, join=False)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    try:
        number = _wait(context)
    except (ProcessExitedException, ProcessRaisedException) as error:
        cause: Exception = RunFailed(f"one of the run's {devices} processes was lost: {error}")
        if not reports.empty() and not isinstance(reported := reports.get(), OthersLost):
            cause = reported
        if (directory.path / "config.yaml").is_file():
            directory.write_status("failed", str(cause))
        else:  # refused before it began
            directory.remove()
        raise cause from None
    if not reports.empty():  # stopped before the end
        raise Interrupted(number or reports.get())
    return {**(directory.summary() or {}), "directory": str(directory.path)}


def _rank(
    number: int,
    devices: int,
    port: int,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    directory: str,
    reports: Any,
    display: Verbosity,
) -> None:
    """Entry point of one process of a run. It reports a stop or a failure."""
    os.setpgrp()  # Ctrl-C then reaches only the starting process, which stops all others
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    survive()
    from metarun.tracking.rundir import RunDirectory

    try:
        with shown(display):
            if number > 0:
                logging.getLogger("metarun").setLevel(logging.ERROR)
            _here(config, facts, RunDirectory(Path(directory)))
    except Interrupted as error:
        if number == 0:
            reports.put(error.signal_number)
    except Exception as error:
        if os.environ.get("METARUN_DEBUG") == "1":
            traceback.print_exc()
        known = isinstance(error, (UserError, RunFailed))
        reports.put(error if known else RunFailed(f"{type(error).__name__}: {error}"))
        sys.exit(1)


def _wait(context: ProcessContext) -> int | None:
    """Wait for all processes and return the signal that stopped them, if any. A signal is passed on as SIGTERM."""
    with StopRequest() as stop:
        asked = False
        try:
            while not context.join(timeout=0.5, grace_period=GRACE):
                if stop.signal is not None and not asked:
                    asked = True
                    for process in context.processes:
                        process.terminate()
        except KeyboardInterrupt:  # the second signal
            for process in context.processes:
                process.kill()
            raise
    return stop.signal


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
