"""Earlier runs of a configuration: those that found, or would find, the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from metarun import strict_json
from metarun.config.environment import resolved
from metarun.errors import UserError
from metarun.tracking.files import atomic_write
from metarun.tracking.rundir import RunDirectory
from metarun.untrusted import read_json

log = logging.getLogger("metarun")

HOW = (
    "runner.directory", "runner.device", "runner.devices", "runner.threads", "runner.tune_above", "runner.chunk",
    "runner.plots", "runner.log_every", "runner.checkpoint_seconds", "tracker",
)  # fmt: skip
"""Keys that say how a run is carried out and not what it finds: runs that differ in them are the same experiment."""


def substance(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without its seed, without what it is compared with, and without :data:`HOW`."""
    kept = {key: value for key, value in config.items() if key not in ("seed", "paper", "experiment", *HOW)}
    hidden = [key.split(".")[1] for key in HOW if key.startswith("runner.")]
    # A key that a run is too old to have is null in the runs of now.
    kept["runner"] = {k: value for k, value in config["runner"].items() if k not in hidden and value is not None}
    return kept


def runs_of(config: Mapping[str, Any], same_data: Callable[[RunDirectory], bool] | None = None) -> list[RunDirectory]:
    """The runs of ``config``, with its seed, that lie in its directory, the oldest first.

    ``same_data`` tells whether a run of this configuration was also made of the data that there are now.
    """
    found, wanted, values = [], substance(config), resolved(config)
    for path in sorted(Path(values["runner"]["directory"], values["name"]).glob(f"*_s{values['seed']}")):
        try:
            run = RunDirectory.open(path)
            same = substance(as_asked(run)) == wanted and (same_data is None or same_data(run))
            run.summary()
        except (UserError, OSError) as error:
            log.warning("left out: %s", error)
            continue
        except (KeyError, AttributeError, TypeError):
            continue  # of another version: no run of this
        if same:
            found.append(run)
    return found


def as_asked(run: RunDirectory) -> dict[str, Any]:
    """The configuration of a run with the defaults that were lowered to fit its data as they were."""
    config = run.config()
    for key, (default, _) in run.meta().get("lowered", {}).items():
        section, name = key.split(".")
        config[section][name] = default
    return config


@dataclass(frozen=True)
class Job:
    """What became of a job of a sweep: each keeps it in a file of its own, ``jobs/<number>.json``.

    A job that is only ``started`` is under way, or died without a word. ``run`` is where the run lies, ``log`` where
    what went wrong can be read.
    """

    asked: str
    state: Literal["started", "finished", "done before", "failed"]
    run: str | None = None
    why: str = ""
    log: str | None = None

    def write(self, sweep: Path, number: int) -> None:
        """Paths are kept relative to the sweep's directory: it may be moved, with its runs."""
        (sweep / "jobs").mkdir(parents=True, exist_ok=True)
        run = self.run and os.path.relpath(self.run, sweep)
        atomic_write(sweep / "jobs" / f"{number}.json", strict_json.dumps({**asdict(self), "run": run}).encode())

    @classmethod
    def read(cls, sweep: Path, number: int) -> Job | None:
        """What became of it; ``None`` where nothing is known."""
        file = sweep / "jobs" / f"{number}.json"
        try:
            return cls(**read_json(file)) if file.exists() else None
        except (UserError, TypeError):
            log.warning("%s is damaged: it says nothing of its run", file)
            return None


def runs_of_sweep(folder: Path) -> Iterator[Path]:
    """The runs of the sweep that ``<runs>/multirun/<time>/`` stands for: they keep its time as their group."""
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
    """The first finished run of ``config``, and the last one that was stopped after a checkpoint.

    ``same_data`` as in :func:`runs_of`.
    """
    runs = runs_of(config, same_data)
    finished = next((run for run in runs if run.finished()), None)
    stopped = [run for run in runs if not run.finished() and (run.path / "checkpoints" / "last.pt").is_file()]
    return finished, stopped[-1] if stopped else None
