"""A link, pipe or device in a run directory is refused, and what it points to stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from metarun.cli import main
from metarun.errors import UserError
from metarun.runs.history import runs_of
from metarun.tracking.files import MetricsFile, atomic_write
from metarun.tracking.rundir import RunDirectory
from metarun.untrusted import read_json, read_text

NAMES = (".lock", "metarun.log", "metrics.jsonl", "status.json", "summary.json", "meta.json", "test.npz", "config.yaml",
         "checkpoints", "checkpoints/last.pt", "plots", "evaluations", "adapted", "wandb", "wandb_id")  # fmt: skip
COMMANDS = (["resume", "runner.iterations=4"], ["eval"], ["adapt", "--support=s.csv"], ["export", "--to=optimizer"])


def attack(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command on ``run``: refused in one line, but for a report, which leaves it out."""
    Path("s.csv").write_text("x,y\n1,2\n2,3\n")
    for command, *words in COMMANDS:
        assert main([command, str(run), *words]) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert str(run) in said or "no config.yaml" in said
    assert main(["report", str(run)]) in (0, 2)


@pytest.mark.parametrize("name", NAMES)
def test_symbolic_links(run: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = run / name
    if path.is_dir() or path.exists():
        shutil.move(path, outside / "kept")
    else:
        (outside / "kept").mkdir()
    path.symlink_to(outside / "kept")
    before = {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()}
    listed = sorted(outside.rglob("*"))
    attack(run, capsys)
    assert {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()} == before
    assert sorted(outside.rglob("*")) == listed


@pytest.mark.parametrize("name", [".lock", "metarun.log", "metrics.jsonl"])
def test_hard_links_are_not_written_to(run: Path, name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    shutil.move(run / name, victim)
    os.link(victim, run / name)
    before = victim.read_bytes()
    assert main(["resume", str(run), "runner.iterations=4"]) == 2
    assert victim.read_bytes() == before


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = os.getcwd()
        os.chdir(path.parent)
        made.bind(path.name)  # its address must be short
        os.chdir(before)


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, listener, link_to_device])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "status.json", "test.npz", ".lock"])
def test_pipes_and_devices(
    run: Path, name: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).unlink()
    make(run / name)
    attack(run, capsys)


def test_a_pipe_without_the_scan_is_not_waited_for(tmp_path: Path) -> None:
    pipe(tmp_path / "status.json")
    with pytest.raises(UserError, match="not a file"):
        read_json(tmp_path / "status.json")
    with pytest.raises(UserError, match="not a file"):
        MetricsFile(tmp_path / "status.json")


def test_files_are_not_opened_through_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="is a link"):
        read_text(tmp_path / "link")
    with pytest.raises(UserError, match="is a link"):
        MetricsFile(tmp_path / "link")


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / f".status.json.{os.getpid()}").symlink_to(victim)
    atomic_write(tmp_path / "status.json", b"new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "status.json").read_text() == "new"


def test_the_directory_itself_may_lie_behind_a_link(run: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "outputs", tmp_path / "scratch")
    (tmp_path / "outputs").symlink_to(tmp_path / "scratch")
    assert main(["resume", str(run), "runner.iterations=3"]) == 0
    (tmp_path / "short").symlink_to(run)
    assert main(["resume", "short", "runner.iterations=4"]) == 0


def test_links_of_wandb_stay_inside_of_its_folder(run: Path, tmp_path: Path) -> None:
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    (run / "wandb" / "run-1" / "logs").mkdir()
    (run / "wandb" / "run-1" / "logs" / "debug-core.log").symlink_to(tmp_path / "cache" / "core-debug.log")
    RunDirectory.open(run)
    (run / "wandb" / "up").symlink_to("../../../..")
    with pytest.raises(UserError, match="is a link"):
        RunDirectory.open(run)


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
def test_settings_of_wandb_are_not_taken_from_a_run(run: Path, folder: str) -> None:
    (run / folder).mkdir()
    (run / folder / "settings").write_text("[default]\nbase_url = http://localhost:1\n")
    with pytest.raises(UserError, match="would configure W&B"):
        RunDirectory.open(run)


def test_matplotlib_is_not_configured_by_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "matplotlibrc").write_text("text.usetex: True\n")
    attack(run, capsys)


def test_a_linked_search_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from metarun.search.space import Search
    from metarun.search.study import SearchFolder

    folder = SearchFolder(tmp_path / "search")
    search = Search(trials=1, prune=False, startup=0, objectives=None, space={"algorithm.inner_lr": [0.1]})
    folder.begin(search, {})
    (tmp_path / "victim").write_text("mine")
    (folder.path / "journal.log").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="is a link"):
        folder.begin(search, {})
    assert (tmp_path / "victim").read_text() == "mine"


def test_an_earlier_run_that_is_linked_is_named_and_left_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    config = RunDirectory(run).config()
    assert [found.path for found in runs_of(config)] == [run.relative_to(Path.cwd())]
    (run / "meta.json").rename("meta.json")
    (run / "meta.json").symlink_to(Path("meta.json").absolute())
    logging.getLogger("metarun").addHandler(caplog.handler)
    assert runs_of(config) == []
    logging.getLogger("metarun").removeHandler(caplog.handler)
    assert "meta.json is a link" in caplog.text
    assert json.loads(Path("meta.json").read_text())
