"""The run directory: all files of a run, written so that a kill at any moment loses nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import yaml

from metarun import strict_json
from metarun.errors import RunFailed, UserError, conceal, nearest_path
from metarun.locks import try_lock
from metarun.moved import in_words, updated
from metarun.tracking.files import atomic_write
from metarun.untrusted import (
    open_regular,
    open_to_append,
    parse_json,
    read_arrays,
    read_json,
    read_yaml,
    refuse_links,
)

LONGEST_ROW = 1 << 22
"""Largest size of a row of metrics.jsonl, in bytes."""
CONFIGURES = {"matplotlibrc": "matplotlib", "wandb/settings": "W&B (also where results go)", ".wandb/settings": "W&B"}
"""Files that libraries read from the current directory, which may be a run's. No run writes them."""
META: dict[str, Callable[[Any], bool]] = {
    "choices": lambda value: isinstance(value, dict) and all(isinstance(name, str) for name in value.values()),
    "group": lambda value: isinstance(value, str),
    "tuned": lambda value: isinstance(value, dict),
    "threads": lambda value: type(value) is int and 1 <= value <= 4096,
    "step": lambda value: isinstance(value, dict) and isinstance(value.get("plan"), dict),
    "git": lambda value: isinstance(value, dict),
    "versions": lambda value: isinstance(value, dict),
    "resumed": lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value),
}
"""Checks of the entries of meta.json that are not null."""

State = Literal["running", "finished", "interrupted", "pruned", "failed"]
RESULTS = ("test", "references", "adaptation", "robust")
"""Entries of a summary that hold numbers only."""
TEMPORARY = re.compile(r"\..+\.\d+")
"""Names of the temporary files of :func:`atomic_write`."""


class RunDirectory:
    """``outputs/<name>/<time>_s<seed>/`` and its files; it is locked while a run writes to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.plots = path / "plots"

    @classmethod
    def create(cls, root: str | Path, name: str, seed: int) -> RunDirectory:
        """Create a new directory, named by the time in microseconds because sweeps start several runs a second."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        path = Path(root) / name / f"{stamp}_s{seed}"
        try:
            (path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot create the run directory {path}: {error.strerror} (runner.directory)") from None
        return cls(path)

    def remove(self) -> None:
        """Delete the directory of a run that never began."""
        shutil.rmtree(self.path)
        with contextlib.suppress(OSError):  # it contains other runs
            self.path.parent.rmdir()

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """Open an existing run; raises :class:`UserError` if ``path`` is not a run directory."""
        directory = cls(Path(path))
        if not directory.path.is_dir():
            raise UserError(f"no run directory at {path}{nearest_path(path)}")
        if not (directory.path / "config.yaml").is_file():
            held = [file.parent for depth in ("*", "*/*") for file in directory.path.glob(f"{depth}/config.yaml")]
            newest = f"; the newest run in it: {max(held, key=lambda run: run.name)}" if held else ""
            raise UserError(f"{path} is not a run directory: it has no config.yaml{newest}")
        directory.refuse_links()
        return directory

    def refuse_links(self) -> None:
        """Raise :class:`UserError` for links by which a run would read or write elsewhere; ``path`` itself may be
        one.
        """
        refuse_links(self.path)
        for name, what in CONFIGURES.items():
            if found := next(self.path.rglob(name), None):
                raise UserError(f"{found} would configure {what} if this is the current directory; remove it")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory's lock. The system releases it when the process ends for any reason."""
        self.refuse_links()
        try:
            handle = open_to_append(self.path / ".lock")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written to: {error.strerror}") from None
        with handle:
            try:
                free = try_lock(handle)
            except OSError as error:
                raise UserError(f"{self.path} cannot be locked: {error.strerror}") from None
            if not free:
                raise UserError(f"{self.path} is in use by another running process")
            self._remove_leftovers()
            yield

    def _remove_leftovers(self) -> None:
        """Delete unfinished files of a killed process. The lock is held, so no other process uses them."""
        for folder in (self.path, self.path / "checkpoints"):
            for file in folder.glob(".*"):
                if TEMPORARY.fullmatch(file.name):
                    with contextlib.suppress(OSError):
                        file.unlink()

    def in_use(self) -> bool:
        """Return whether a process holds the lock."""
        try:
            with os.fdopen(open_regular(self.path / ".lock", os.O_RDONLY), "rb") as file:
                return not try_lock(file, shared=True)
        except (OSError, UserError):
            return False

    def config(self) -> dict[str, Any]:
        """Return the stored configuration, with the present import paths of metarun's components."""
        path = self.path / "config.yaml"
        loaded = read_yaml(path)
        if not isinstance(loaded, dict):
            raise UserError(f"{path} is empty or not a configuration")
        return updated(loaded)

    def write_config(self, config: Mapping[str, Any]) -> None:
        self._write("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def meta(self) -> dict[str, Any]:
        """Return the content of meta.json. Entries that are used again are checked."""
        path = self.path / "meta.json"
        found = read_json(path) if path.exists() else {}
        for key, fits in META.items():
            if found.get(key) is not None and not fits(found[key]):
                raise UserError(f"{path} is damaged: '{key}' has an invalid value")
        return found

    def write_meta(self, **values: Any) -> None:
        """Merge ``values`` into meta.json."""
        self._write("meta.json", strict_json.dumps({**self.meta(), **values}, indent=1))

    def change(self, asked: Mapping[str, Any], after: int) -> bool:
        """Store keys changed by a resume.

        config.yaml gets the new values, and meta.json a history of changes.

        Args:
            asked: The keys and their values.
            after: The iteration after which they hold.

        Returns:
            True if any value differs from the stored one.
        """
        config, changed = self.config(), {}
        for key, value in asked.items():
            *parents, leaf = key.split(".")
            node = config
            for parent in parents:
                node = node.setdefault(parent, {})
            if leaf not in node or node[leaf] != value:
                changed[key] = {"from": node.get(leaf), "to": value}
                node[leaf] = value
        if changed:
            changes = [*self.meta().get("changes", []), {"time": now(), "iteration": after, "keys": changed}]
            self.write_meta(changes=changes)
            self.write_config(config)
        return bool(changed)

    def inputs(self) -> dict[str, Any] | None:
        """Return the stored input conversion of the run's learner; ``None`` for runs older than it."""
        return read_json(self.path / "inputs.json") if (self.path / "inputs.json").exists() else None

    def write_inputs(self, values: Mapping[str, Any]) -> None:
        self._write("inputs.json", strict_json.dumps(values, indent=1))

    def data(self) -> dict[str, Any] | None:
        """Return the record of the run's data, data.json; ``None`` for runs older than it."""
        return read_json(self.path / "data.json") if (self.path / "data.json").exists() else None

    def write_data(self, record: Mapping[str, Any]) -> None:
        self._write("data.json", json.dumps(record, indent=1, ensure_ascii=False))

    def status(self) -> dict[str, Any]:
        """Return the status of the run; empty if it is unknown.

        A run that is stored as ``running`` but has no process is ``killed``.
        """
        try:
            stored = read_json(self.path / "status.json")
        except UserError:
            return {}
        if stored.get("state") == "running" and not self.in_use():
            stored["state"] = "killed"
        return stored

    def write_status(self, state: State, why: str = "", **values: Any) -> None:
        self._write(
            "status.json",
            strict_json.dumps({"state": state, "why": conceal(why), "time": now(), "pid": os.getpid(), **values}),
        )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write("summary.json", strict_json.dumps(summary, indent=1))

    def write_episodes(self, curves: Mapping[str, Any]) -> None:
        """Store each metric of each test task, [n, k + 1]. Test tasks of one seed are the same for every learner."""
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(buffer, **curves)
        self._write("test.npz", buffer.getvalue())

    def episodes(self) -> dict[str, Any]:
        """Return what :meth:`write_episodes` stored; empty for runs older than it."""
        path = self.path / "test.npz"
        return read_arrays(path) if path.exists() else {}

    def summary(self) -> dict[str, Any] | None:
        """Return the summary, or ``None`` if the run has not finished. Non-finite results are NaN."""
        if not (self.path / "summary.json").exists():
            return None
        stored = read_json(self.path / "summary.json")
        stored |= {key: strict_json.numbers(stored[key]) for key in RESULTS if key in stored}
        if isinstance(protocol := stored.get("protocol"), dict):
            stored["protocol"] = {key: in_words(value) for key, value in protocol.items()}
        return stored

    def finished(self) -> bool:
        """Return whether the run has a result. A finished run that is trained longer has none until it ends again."""
        return self.status().get("state") == "finished" and (self.path / "summary.json").is_file()

    def rows(self, having: bytes = b"") -> Iterator[dict[str, Any]]:
        """Yield the rows of metrics.jsonl that contain ``having``, with NaN for non-finite values.

        An incomplete last line is skipped.
        """
        if not self.metrics.exists():
            return
        with os.fdopen(open_regular(self.metrics, os.O_RDONLY), "rb") as file:
            number = 0
            while (line := file.readline(LONGEST_ROW)).endswith(b"\n"):
                number += 1
                if having in line:
                    yield strict_json.numbers(parse_json(line, f"{self.metrics}, line {number}"))
            if len(line) == LONGEST_ROW:
                raise UserError(f"{self.metrics}, line {number + 1} is damaged: it has more than {LONGEST_ROW:,} bytes")

    def _write(self, name: str, content: str | bytes) -> None:
        try:
            atomic_write(self.path / name, content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise RunFailed(f"cannot write {self.path / name}: {error.strerror}") from None


def not_finite(summary: Mapping[str, Any]) -> str:
    """Return a sentence that names the non-finite test results; empty if all are finite."""
    bad = [name for name, estimate in summary.get("test", {}).items() if not isfinite(estimate["mean"])]
    return f"the result is not finite: test {', '.join(bad)}" if bad else ""


def now() -> str:
    """Return the current UTC time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
