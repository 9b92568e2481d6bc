"""What a run directory promises: whole files, rows that are there at once, one writer."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from metarun.cli import main
from metarun.errors import RunFailed
from metarun.runs.history import EXECUTION_KEYS, experiment_identity
from metarun.tracking.files import MetricsFile, atomic_write
from metarun.tracking.rundir import RunDirectory


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every moment; and it is on the disk before it takes its name."""
    path = tmp_path / "last.pt"
    atomic_write(path, b"old")
    happened: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        happened.append("synced")
        assert path.read_bytes() == b"old"
        assert os.fstat(descriptor).st_size == 3
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        happened.append("replaced")
        assert path.read_bytes() == b"old"
        assert Path(source).read_bytes() == b"new"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    atomic_write(path, b"new")
    assert happened == ["synced", "replaced"]
    assert path.read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    atomic_write(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"


IN_PLACE = {"metrics.jsonl", "metarun.log", ".lock"}
"""Files that grow, and the one that is only locked."""
opened: list[Path] = []
listening: list[Path] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and listening and isinstance(arguments[0], (str, os.PathLike)):
        path, flags = Path(os.fspath(arguments[0])).absolute(), arguments[2]
        if flags & (os.O_WRONLY | os.O_RDWR) and path.is_relative_to(listening[0]):
            opened.append(path)


sys.addaudithook(_note)


def test_a_run_writes_no_file_in_place(tmp_path: Path) -> None:
    """All that it opens for writing are rows, logs, pictures, and temporary files that are renamed when whole."""
    listening[:], opened[:] = [tmp_path / "outputs"], []
    try:
        words = ["task=regression/sinusoid", "runner.iterations=2", "runner.validate_every=1", "runner.val_episodes=2",
                 "runner.test_episodes=2", "runner.plots=false", "model.hidden=[4]"]  # fmt: skip
        assert main(words) == 0
        (run,) = tmp_path.glob("outputs/*/*")
        assert main(["eval", str(run)]) == 0
    finally:
        listening.clear()
    temporary = {path.name for path in opened} - IN_PLACE
    assert any("last.pt" in name for name in temporary)
    assert any("summary.json" in name for name in temporary)
    assert all(name.startswith(".") for name in temporary), temporary
    assert not [path for path in opened if path.name not in IN_PLACE and path.exists()]


def test_rows_are_there_at_once_and_those_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    file = MetricsFile(run.metrics)
    file.write({"iteration": 1})
    size = file.size
    file.write({"iteration": 2})
    assert [row["iteration"] for row in run.rows()] == [1, 2]
    file.close()
    again = MetricsFile(run.metrics, size)
    assert [row["iteration"] for row in run.rows()] == [1]
    again.write({"iteration": 3})
    assert [row["iteration"] for row in run.rows()] == [1, 3]
    again.close()
    with pytest.raises(RunFailed, match="shorter than when its checkpoint was written"):
        MetricsFile(run.metrics, 1000)


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    *parents, leaf = key.split(".")
    copy: dict[str, Any] = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    node = copy
    for parent in parents:
        node = node[parent]
    node[leaf] = "other"
    return copy


def test_how_a_run_is_carried_out_makes_no_other_experiment() -> None:
    runner = [key.split(".")[1] for key in EXECUTION_KEYS if key.startswith("runner.")]
    config = {
        "seed": 0, "name": "x", "paper": None, "experiment": None, "task": {"shot": 5}, "tracker": {"wandb": "offline"},
        "runner": dict.fromkeys([*runner, "threads", "device", "iterations", "meta_batch"], 1),
    }  # fmt: skip
    for key in (
        "seed",
        "tracker.wandb",
        "runner.threads",
        "runner.device",
        "runner.plots",
        "runner.directory",
        *EXECUTION_KEYS,
    ):
        assert experiment_identity(changed(config, key)) == experiment_identity(config), key
    for key in ("name", "task.shot", "runner.iterations", "runner.meta_batch"):
        assert experiment_identity(changed(config, key)) != experiment_identity(config), key
