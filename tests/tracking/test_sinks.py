"""Trackers as copies of metrics.jsonl: what each holds, that it comes back after it was deleted, and their settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from wandb_file import is_media, read

import metarun.tracking.sinks
from metarun.cli import main
from metarun.errors import UserError
from metarun.tracking import sinks
from metarun.tracking.rundir import RunDirectory
from metarun.tracking.settings import Tracker

RUN = [
    "task=regression/sinusoid", "model.hidden=[4]", "name=x", "runner.iterations=4", "runner.validate_every=2",
    "runner.val_episodes=3", "runner.test_episodes=5", "runner.log_every=1", "runner.meta_batch=2", "runner.threads=1",
]  # fmt: skip


def only(folder: Path) -> RunDirectory:
    (run,) = folder.glob("outputs/x/*_s0")
    return RunDirectory(run)


def events(run: RunDirectory) -> list[tuple[int, dict[str, float]]]:
    """The scalars of a run's only event file, event by event, and the names of its images."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    (file,) = run.path.glob("tensorboard/*")
    found = [Event.FromString(raw) for raw in RawEventFileLoader(str(file)).Load()]
    assert found[0].file_version == "brain.Event:2"
    return [(event.step, {v.tag: v.simple_value for v in event.summary.value}) for event in found[1:]]


def rows(run: RunDirectory) -> list[tuple[int, dict[str, float]]]:
    return [(row["iteration"], {k: v for k, v in row.items() if k != "iteration"}) for row in run.rows()]


def test_tensorboard_holds_every_row_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    assert main([*RUN, "tracker.sinks=[tensorboard]"]) == 0
    run = only(tmp_path)
    written, pictures = rows(run), len(list(run.plots.glob("*")))
    assert pictures > 0
    for deleted in (False, True):
        if deleted:
            shutil.rmtree(run.path / "tensorboard")
            assert main(["resume", str(run.path)]) == 0
            assert "completed from metrics.jsonl: tensorboard" in capsys.readouterr().out
        found = events(run)
        assert len(found) == len(written) + pictures
        for (step, values), (iteration, row) in zip(found, written, strict=False):
            assert step == iteration
            assert values == pytest.approx(row, rel=1e-6)

    assert main(["resume", str(run.path), "runner.iterations=6"]) == 0  # one file, with each row once
    assert [step for step, _ in events(run)[: len(rows(run))]] == [iteration for iteration, _ in rows(run)]


def test_an_offline_run_holds_what_groups_and_compares_runs_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([*RUN, "tracker.notes=first", "tracker.tags=[mine]", "tracker.checkpoint=true"]) == 0
    run = only(tmp_path)
    summary = run.summary() or {}
    best = min((row for row in run.rows() if "val/mse" in row), key=lambda row: row["val/mse"])
    for deleted in (False, True):
        if deleted:
            shutil.rmtree(run.path / "wandb")
            assert main(["resume", str(run.path)]) == 0
            assert "completed from metrics.jsonl: wandb" in capsys.readouterr().out
        (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
        sent = read(file)
        history = [{k: v for k, v in row.items() if not k.startswith("_")} for row in sent.history]
        assert [row for row in history if not is_media(row)] == list(run.rows())
        assert sent.config["choices"]["algorithm"] == "maml"
        assert sent.config["protocol"] == summary["protocol"]
        assert sorted(sent.tags) == ["maml", "mine", "mlp", "regression/sinusoid"]
        assert sent.notes == "first"
        assert sent.summary["best/mse"] == best["val/mse"]
        assert sent.summary["best/iteration"] == best["iteration"]
        assert [key for key in sent.summary if key.startswith("test")].count("test/mse") == 1
        assert "test" not in sent.summary
        assert sorted(sent.artifacts) == ["model", "run_table"]
        (table,) = file.parent.glob("files/media/table/test/*.json")
        assert len(read_table(table)) == summary["test"]["mse"]["n"]
    assert main(["resume", str(run.path)]) == 0
    assert "completed" not in capsys.readouterr().out


def read_table(file: Path) -> list[Any]:
    import json

    table = json.loads(file.read_text())
    assert table["columns"] == ["task", "mse", "mse before adaptation"]
    return list(table["data"])


def test_every_tracker_can_be_named() -> None:
    folder = Path(metarun.tracking.sinks.__file__).parent
    names = {file.stem for file in folder.glob("*.py") if "_" not in file.stem}
    (literal,) = get_args(get_type_hints(Tracker)["sinks"])
    assert names == set(get_args(literal))


def test_a_tracker_whose_package_is_missing_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tensorboard is not installed: pip install 'metarun\[tensorboard\]'"):
        sinks.require_packages(Tracker(["tensorboard"], None, "x", None, None, [], None, False, 1, 1))
    monkeypatch.undo()
    assert main([*RUN, "tracker.sinks=[tensorbord]"]) == 2
    assert "tensorboard" in capsys.readouterr().err
