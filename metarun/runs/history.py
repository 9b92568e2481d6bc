"""Earlier runs of a configuration that found, or would find, the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from metarun import strict_json
from metarun.config.environment import resolved
from metarun.errors import UserError
from metarun.tracking.files import atomic_write
from metarun.tracking.rundir import RunDirectory
from metarun.untrusted import read_json

log = logging.getLogger("metarun")

EXECUTION_KEYS = (
    "runner.directory", "runner.device", "runner.devices", "runner.threads", "runner.tune_above", "runner.chunk",
    "runner.plots", "runner.log_every", "runner.checkpoint_seconds", "tracker",
)  # fmt: skip
"""Keys that affect only the execution of a run. Runs that differ in nothing else are the same experiment."""


MOST_RUNS = 10_000
"""Largest number of runs of a sweep."""


def experiment_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that identifies the experiment.

    The seed, the paper and the :data:`EXECUTION_KEYS` are left out.
    """
    kept = {key: value for key, value in config.items() if key not in ("seed", "paper", "experiment", *EXECUTION_KEYS)}
    hidden = [key.split(".")[1] for key in EXECUTION_KEYS if key.startswith("runner.")]
    # A key that is newer than a stored run is null in present ones.
    kept["runner"] = {k: value for k, value in config["runner"].items() if k not in hidden and value is not None}
    return kept


def runs_of(config: Mapping[str, Any], same_data: Callable[[RunDirectory], bool] | None = None) -> list[RunDirectory]:
    """Return the runs of ``config``, with its seed, in its directory, oldest first.

    Args:
        config: The configuration.
        same_data: Function that returns whether a run was made from the present data.
    """
    found, wanted, values = [], experiment_identity(config), resolved(config)
    for path in sorted(Path(values["runner"]["directory"], values["name"]).glob(f"*_s{values['seed']}")):
        try:
            if _identity(path, Path.cwd(), _version(path / "config.yaml"), _version(path / "meta.json")) != wanted:
                continue
            run = RunDirectory.open(path)
            same = same_data is None or same_data(run)
            run.summary()
        except (UserError, OSError) as error:
            log.warning("left out: %s", error)
            continue
        except (KeyError, AttributeError, TypeError):
            continue  # written by another version
        if same:
            found.append(run)
    return found


@lru_cache(maxsize=MOST_RUNS)
def _identity(path: Path, *state: object) -> dict[str, Any]:
    """Return the identity of the experiment in a run directory. A sweep compares each of its runs with many others.

    Args:
        path: The run directory, relative to the current one.
        state: Whatever the result depends on besides: the current directory and the versions of the files.
    """
    return experiment_identity(as_asked(RunDirectory.open(path)))


def _version(file: Path) -> tuple[int, int] | None:
    """Return the time and size of a file, which change when it is written; ``None`` if there is none."""
    if not file.is_file():
        return None
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def as_asked(run: RunDirectory) -> dict[str, Any]:
    """Return the configuration of a run, with defaults that were lowered to fit its data restored."""
    config = run.config()
    for key, (default, _) in run.meta().get("lowered", {}).items():
        section, name = key.split(".")
        config[section][name] = default
    return config


@dataclass(frozen=True)
class Job:
    """The state of a sweep's job, stored in ``jobs/<number>.json``.

    Attributes:
        asked: Overrides of the job.
        state: ``started`` means that the job is running, or died without a message.
        run: The run directory.
        why: Reason of a failure.
        log: File with the job's output.
    """

    asked: str
    state: Literal["started", "finished", "done before", "failed"]
    run: str | None = None
    why: str = ""
    log: str | None = None

    def write(self, sweep: Path, number: int) -> None:
        """Write the file, with paths relative to the sweep's directory, which may be moved together with its runs."""
        (sweep / "jobs").mkdir(parents=True, exist_ok=True)
        run = self.run and os.path.relpath(self.run, sweep)
        atomic_write(sweep / "jobs" / f"{number}.json", strict_json.dumps({**asdict(self), "run": run}).encode())

    @classmethod
    def read(cls, sweep: Path, number: int) -> Job | None:
        """Return the stored job; ``None`` if the file is missing or damaged."""
        file = sweep / "jobs" / f"{number}.json"
        try:
            return cls(**read_json(file)) if file.exists() else None
        except (UserError, TypeError):
            log.warning("%s is damaged; its job is ignored", file)
            return None


def runs_of_sweep(folder: Path) -> Iterator[Path]:
    """Yield the runs of the sweep with the directory ``<runs>/multirun/<time>/``. They store its time as their
    group.
    """
    folder = folder.resolve()
    if folder.parent.name != "multirun":
        return
    for path in sorted(folder.parent.parent.glob("*/*/meta.json")):
        try:
            group = read_json(path).get("group")
        except UserError as error:
            log.warning("left out: %s", error)
            continue
        if group == folder.name:
            yield path.parent
    for file in sorted(folder.glob("jobs/*.json")):
        job = Job.read(folder, int(file.stem)) if file.stem.isdecimal() else None
        if job and job.state == "done before" and job.run and (folder / job.run).is_dir():
            yield (folder / job.run).resolve()


def earlier(
    config: Mapping[str, Any], same_data: Callable[[RunDirectory], bool] | None = None
) -> tuple[RunDirectory | None, RunDirectory | None]:
    """Return the first finished run of ``config``, and the last one that was stopped after a checkpoint.

    Args:
        config: The configuration.
        same_data: As in :func:`runs_of`.
    """
    runs = runs_of(config, same_data)
    finished = next((run for run in runs if run.finished()), None)
    stopped = [run for run in runs if not run.finished() and (run.path / "checkpoints" / "last.pt").is_file()]
    return finished, stopped[-1] if stopped else None
