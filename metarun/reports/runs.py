"""Loading of run directories for a report. Runs that cannot be used are excluded with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from metarun.config.schema import declaration
from metarun.config.trust import is_component
from metarun.errors import UserError, nearest_path, require
from metarun.progress import track
from metarun.runs.history import EXECUTION_KEYS, runs_of_sweep
from metarun.tracking.rundir import RunDirectory

RUN_FILES = ("config.yaml", "meta.json", ".lock")
"""Files that a run writes first. A folder with one of them is a run directory, finished or not."""


@dataclass(frozen=True)
class ExcludedRun:
    """A run that a report cannot use.

    Attributes:
        path: The run directory.
        state: ``damaged``, ``untested``, ``repeated``, or the state of an unfinished run.
        reason: Explanation for the user, on one line.
    """

    path: Path
    state: str
    reason: str


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run with its configuration and results."""

    path: Path
    config: dict[str, Any]
    meta: dict[str, Any]
    summary: dict[str, Any]
    validated: dict[int, dict[str, Any]]
    """Rows of metrics.jsonl with validation results, by iteration."""
    episodes: dict[str, Any] = field(repr=False)
    """Values of each metric on the n test tasks after 0..k steps, [n, k + 1]. Empty if the run did not store them."""

    def choice(self, group: str) -> str:
        """Return the option chosen for a group, such as ``maml``, or the name of its class if there is none."""
        chosen = self.meta.get("choices", {}).get(group)
        return str(chosen or str(self.config.get(group, {}).get("_target_", "?")).rsplit(".", 1)[-1])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.summary["seed"])

    @cached_property
    def metric(self) -> str:
        """Name of the task's metric."""
        return str(self.summary.get("metric") or self._declared("metric"))

    @cached_property
    def higher_is_better(self) -> bool:
        """True if a higher value of the task's metric is better."""
        stated = self.summary.get("higher_is_better")
        return bool(self._declared("higher_is_better") if stated is None else stated)

    @cached_property
    def keys(self) -> dict[str, Any]:
        """The configuration with dotted keys: ``{"algorithm.inner_lr": 0.01, ...}``."""
        keys = dict(flatten(self.config))
        source = keys.get(
            "runner.init_from"
        )  # each seed has its own source run: compare their names, not their directories
        return {**keys, "runner.init_from": Path(source).parent.name} if source else keys

    @cached_property
    def learner_protocol(self) -> set[str]:
        """Protocol entries that belong to the learner and its selection. The other entries describe the test tasks."""
        stated = self.summary.get("protocol_of_learner")
        if (
            stated is None
        ):  # an older run did not store it: take all entries without a key of the same name in the task section
            tasks = {key.rsplit(".", 1)[-1] for key in self.keys if key.startswith("task.")}
            stated = set(self.summary["protocol"]) - tasks - {"data", "classes", "test_episodes"}
        return {*stated, "selection"}

    @cached_property
    def task_protocol(self) -> dict[str, Any]:
        """Protocol entries that runs must share to be compared."""
        return {key: value for key, value in self.summary["protocol"].items() if key not in self.learner_protocol}

    def _declared(self, attribute: str) -> Any:
        """Return an attribute of the task's class, for older runs whose summary does not hold it."""
        target = self.config["task"]["_target_"]
        if not is_component(target):
            raise KeyError(attribute)
        return declaration(target).attributes.get(attribute, True)


def flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of a nested section with its dotted key."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def gather(folders: Sequence[str]) -> tuple[list[Run], list[ExcludedRun]]:
    """Load the runs in and below folders.

    Args:
        folders: Run directories, folders that hold run directories, or folders of sweeps.

    Returns:
        The finished runs, and the runs that a report cannot use.

    Raises:
        UserError: A folder does not exist or holds no run.
    """
    paths: dict[Path, Path] = {}
    for word in folders:
        top = Path(word).expanduser()
        require(top.exists(), f"report: {word} does not exist{nearest_path(top)}")
        require(top.is_dir(), f"report: {word} is not a folder; give run directories, or folders that hold them")
        found = list(runs_under(top)) or list(runs_of_sweep(top))
        require(bool(found), f"report: no run in {word}; a run directory holds a config.yaml")
        for path in found:
            paths.setdefault(path.resolve(), path)
    runs, excluded = [], []
    for path in track(paths.values(), "reading", len(paths), "runs"):
        run = load_run(path)
        if isinstance(run, Run):
            runs.append(run)
        else:
            excluded.append(run)
    kept, repeated = drop_repeated(runs)
    return kept, excluded + repeated


def runs_under(top: Path) -> Iterator[Path]:
    """Yield the run directories at or below ``top``."""
    for folder, inner, files in os.walk(top):
        if any(name in files for name in RUN_FILES):
            inner.clear()
            yield Path(folder)
        inner[:] = sorted(name for name in inner if not name.startswith("."))


def load_run(path: Path) -> Run | ExcludedRun:
    """Load a run directory, or return the reason why it cannot be used."""
    directory = RunDirectory(path)
    try:
        directory.refuse_links()
        if not (path / "config.yaml").is_file():
            return ExcludedRun(path, "damaged", "it has no config.yaml")
        status = directory.status()
        if status.get("state") != "finished" or not (path / "summary.json").is_file():
            return ExcludedRun(path, *unfinished(directory, status))
        summary = directory.summary()
        config = directory.config()
        run = Run(path, config, directory.meta(), summary or {}, dict(validation_rows(directory)), directory.episodes())
        if run.summary["test"] == {}:
            return ExcludedRun(path, "untested", "runner.test_episodes=0")
        first = run.summary["test"][run.metric]
        test = (first["mean"], first["ci95"], first["n"])
        complete = (run.seed, test, run.task_protocol, run.higher_is_better, run.keys)
        assert complete
        assert all({"mean", "ci95", "n"} <= set(point) for point in run.summary["adaptation"])
    except ValueError as error:
        return ExcludedRun(path, "damaged", one_line(error))
    except UserError as error:
        return ExcludedRun(path, "damaged", one_line(error).removeprefix(f"{path}/"))
    except KeyError as error:
        return ExcludedRun(path, "damaged", f"summary.json or config.yaml lacks {error}")
    except (TypeError, AttributeError, IndexError, AssertionError, OverflowError, RecursionError):
        return ExcludedRun(path, "damaged", "summary.json or config.yaml is not what a run writes")
    except OSError as error:
        return ExcludedRun(path, "damaged", f"{Path(str(error.filename)).name} cannot be read: {error.strerror}")
    return run


def unfinished(directory: RunDirectory, status: Mapping[str, Any]) -> tuple[str, str]:
    """Return the state of a run without a result and the reason to report."""
    state, why = str(status.get("state", "")), str(status.get("why") or "")
    if not state:
        return "damaged", "status.json is missing or cannot be read"
    last = max((row.get("iteration", 0) for row in directory.rows()), default=0)
    where = f"iteration {last}"
    if state == "running":
        return state, f"at {where}"
    if state == "killed":
        return state, f"after {where}; it can be resumed"
    if state == "pruned":
        return state, f"after {where}"
    if state == "finished":
        return "damaged", "status.json says finished, but there is no summary.json"
    if state == "interrupted":
        return state, f"{why or 'stopped'} after {where}; it can be resumed"
    return state, one_line(why) if why else f"no reason is stored; the last row is of {where}"


def validation_rows(directory: RunDirectory) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the iteration and the row of each validation."""
    for row in directory.rows(having=b'"val/'):
        yield int(row["iteration"]), row


def drop_repeated(runs: Sequence[Run]) -> tuple[list[Run], list[ExcludedRun]]:
    """Keep the latest of the runs with the same configuration and seed, so that no seed counts twice."""
    kept: dict[str, Run] = {}
    repeated = []
    for run in sorted(runs, key=lambda run: str(run.meta.get("start"))):
        key = repr(sorted((k, repr(v)) for k, v in run.keys.items() if is_experiment_key(k) or k == "seed"))
        key += repr(sorted(run.summary["protocol"].items()))
        if key in kept:
            repeated.append((kept[key], run))
        kept[key] = run
    order = [run for run in runs if run in kept.values()]
    return order, [ExcludedRun(old.path, "repeated", f"{new.path} is the same run made later") for old, new in repeated]


BOOKKEEPING = ("seed", "name", "paper", "experiment", "task.root", "task.file", *EXECUTION_KEYS)
"""Keys that may differ between the runs of one row. They change where or how a run is computed, not its result."""


def is_experiment_key(key: str) -> bool:
    """Return whether runs with different values of ``key`` are different experiments."""
    return key not in BOOKKEEPING and not key.startswith(("tracker.", "paper."))


def one_line(text: object) -> str:
    """Join the lines of a text and cut it to 160 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= 160 else line[:157] + "..."
