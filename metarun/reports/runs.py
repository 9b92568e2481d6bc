"""Run directories as a report reads them: found, loaded, or left out for a stated reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from metarun.config.schema import declaration
from metarun.config.trust import is_component
from metarun.errors import UserError, require
from metarun.tracking.history import HOW, runs_of_sweep
from metarun.tracking.rundir import RunDirectory

MARKS = ("config.yaml", "meta.json", ".lock")
"""What a run writes first: a folder with one of these is a run, finished or not."""


@dataclass(frozen=True)
class LeftOut:
    """A run that takes no part, and why."""

    path: Path
    state: str
    reason: str


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run."""

    path: Path
    config: dict[str, Any]
    meta: dict[str, Any]
    summary: dict[str, Any]
    validated: dict[int, dict[str, Any]]
    """Rows of metrics.jsonl with validation results, by iteration."""
    episodes: dict[str, Any] = field(repr=False)
    """Each metric of each test task, [n, k + 1]; empty of a run that did not store them."""

    def choice(self, group: str) -> str:
        """The option that made a section, or its class' name where the run was not made of options."""
        chosen = self.meta.get("choices", {}).get(group)
        return str(chosen or str(self.config.get(group, {}).get("_target_", "?")).rsplit(".", 1)[-1])

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])

    @cached_property
    def metric(self) -> str:
        """The task's."""
        return str(self.summary.get("metric") or self._declared("metric"))

    @cached_property
    def higher_is_better(self) -> bool:
        stated = self.summary.get("higher_is_better")
        return bool(self._declared("higher_is_better") if stated is None else stated)

    @cached_property
    def keys(self) -> dict[str, Any]:
        """The configuration, flat: ``{"algorithm.inner_lr": 0.01, ...}``."""
        keys = dict(flat(self.config))
        source = keys.get("runner.init_from")  # a run for every seed: its name tells, its directory does not
        return {**keys, "runner.init_from": Path(source).parent.name} if source else keys

    @cached_property
    def own_protocol(self) -> set[str]:
        """The part of the protocol that the learner and its selection bring; the rest says what it was judged on."""
        stated = self.summary.get("protocol_of_learner")
        if stated is None:  # a run from before this was kept: all that its task's section has no key for
            tasks = {key.rsplit(".", 1)[-1] for key in self.keys if key.startswith("task.")}
            stated = set(self.summary["protocol"]) - tasks - {"data", "classes", "test_episodes"}
        return {*stated, "selection"}

    @cached_property
    def judged_on(self) -> dict[str, Any]:
        """The part of the protocol that runs must share to be compared."""
        return {key: value for key, value in self.summary["protocol"].items() if key not in self.own_protocol}

    def _declared(self, attribute: str) -> Any:
        """What its task's class declares, of a run from before summaries kept it."""
        target = self.config["task"]["_target_"]
        if not is_component(target):
            raise KeyError(attribute)
        return declaration(target).attributes.get(attribute, True)


def flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted key."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def gather(words: Sequence[str]) -> tuple[list[Run], list[LeftOut]]:
    """The runs in and under the named folders; raises :class:`UserError` where there is none."""
    paths: dict[Path, Path] = {}
    for word in words:
        top = Path(word).expanduser()
        require(top.exists(), f"report: no folder at {word}")
        require(top.is_dir(), f"report: {word} is no folder; name run directories, or folders that hold them")
        found = list(runs_under(top)) or list(runs_of_sweep(top))
        require(bool(found), f"report: no run in {word}; a run's directory has a config.yaml")
        for path in found:
            paths.setdefault(path.resolve(), path)
    runs, left_out = [], []
    for path in paths.values():
        one = read(path)
        if isinstance(one, Run):
            runs.append(one)
        else:
            left_out.append(one)
    kept, doubled = latest(runs)
    return kept, left_out + doubled


def runs_under(top: Path) -> Iterator[Path]:
    """Run directories at or below ``top``."""
    for folder, inner, files in os.walk(top):
        if any(mark in files for mark in MARKS):
            inner.clear()
            yield Path(folder)
        inner[:] = sorted(name for name in inner if not name.startswith("."))


def read(path: Path) -> Run | LeftOut:
    """One run, or why it takes no part."""
    directory = RunDirectory(path)
    try:
        directory.refuse_links()
        if not (path / "config.yaml").is_file():
            return LeftOut(path, "damaged", "it has no config.yaml")
        status = directory.status()
        if status.get("state") != "finished" or not (path / "summary.json").is_file():
            return LeftOut(path, *unfinished(directory, status))
        summary = directory.summary()
        config = directory.config()
        run = Run(path, config, directory.meta(), summary or {}, dict(validations(directory)), directory.episodes())
        if run.summary["test"] == {}:
            return LeftOut(path, "untested", "runner.test_episodes=0")
        first = run.summary["test"][run.metric]
        complete = (run.seed, first["mean"], first["ci95"], first["n"], run.judged_on, run.higher_is_better, run.keys)
        assert complete
        assert all({"mean", "ci95", "n"} <= set(point) for point in run.summary["adaptation"])
    except ValueError as error:
        return LeftOut(path, "damaged", brief(error))
    except UserError as error:
        return LeftOut(path, "damaged", brief(error).removeprefix(f"{path}/"))
    except KeyError as error:
        return LeftOut(path, "damaged", f"summary.json or config.yaml lacks {error}")
    except (TypeError, AttributeError, IndexError, AssertionError, OverflowError, RecursionError):
        return LeftOut(path, "damaged", "summary.json or config.yaml is not what a run writes")
    except OSError as error:
        return LeftOut(path, "damaged", f"{Path(str(error.filename)).name} cannot be read: {error.strerror}")
    return run


def unfinished(directory: RunDirectory, status: Mapping[str, Any]) -> tuple[str, str]:
    """State and reason of a run without a result."""
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
    return state, brief(why) if why else f"no reason is stored; the last row is of {where}"


def validations(directory: RunDirectory) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with validation results, by iteration."""
    for row in directory.rows(having=b'"val/'):
        yield int(row["iteration"]), row


def latest(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
    """Of runs with one configuration, seed included, the last: a run made twice is no second seed."""
    kept: dict[str, Run] = {}
    doubled = []
    for run in sorted(runs, key=lambda run: str(run.meta.get("start"))):
        key = repr(sorted((k, repr(v)) for k, v in run.keys.items() if matters(k) or k == "seed"))
        key += repr(sorted(run.summary["protocol"].items()))
        if key in kept:
            doubled.append((kept[key], run))
        kept[key] = run
    order = [run for run in runs if run in kept.values()]
    return order, [LeftOut(old.path, "repeated", f"{new.path} is the same run made later") for old, new in doubled]


BOOKKEEPING = ("seed", "name", "paper", "experiment", "task.root", "task.file", *HOW)
"""Keys that may differ between runs of one row: they change where or how a run is computed, not what."""


def matters(key: str) -> bool:
    """Whether runs that differ in ``key`` are different experiments."""
    return key not in BOOKKEEPING and not key.startswith(("tracker.", "paper."))


def brief(text: object) -> str:
    """On one line, not too long."""
    line = " ".join(str(text).split())
    return line if len(line) <= 160 else line[:157] + "..."
