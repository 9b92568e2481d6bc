"""Tab completion: what is offered, and the scripts in real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metarun.cli import completion, main
from metarun.cli.commands import SHELLS


def offered(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COMP_LINE", line)
    capsys.readouterr()
    assert main(["-sc", "query=bash"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def made_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    config = "task: {_target_: x, shot: 5}\nrunner: {iterations: 3, plots: true}\ntracker: {wandb: null}\n"
    (folder / "config.yaml").write_text(config)
    (folder / "meta.json").write_text("{}")
    return folder


# a line -> some of what is offered, and something that is not
LINES: list[tuple[str, list[str], str]] = [
    ("metarun ", ["train", "list", "task=", "algorithm="], "task=vision/omniglot"),
    ("metarun re", ["resume", "report", "reproduce"], "eval"),
    ("metarun ta", ["task=", "task."], "train"),
    ("metarun task=vis", ["task=vision/omniglot", "task=vision/glyphs"], "task=rl/maze"),
    ("metarun -m algorithm=maml,pro", ["algorithm=maml,protonet", "algorithm=maml,promp"], "algorithm=protonet"),
    ("metarun task=regression/sinusoid algorithm.inner_l", ["algorithm.inner_lr="], "algorithm.inner_steps="),
    ("metarun runner.sel", ["runner.select="], "runner.device="),
    ("metarun runner.select=", ["runner.select=best", "runner.select=last"], "runner.select=first"),
    ("metarun --cfg ", ["job", "all"], "task="),
    ("metarun --c", ["--cfg", "--config-dir"], "--multirun"),
    ("metarun no=such --worse algorithm.outer_l", ["algorithm.outer_lr="], "runner."),
    ("metarun list a", ["algorithms"], "tasks"),
    ("metarun list recipes status=pa", ["status=passed"], "status=missed"),
    ("metarun list algorithms task=rl/ma", ["task=rl/maze"], "task=rl/bandit"),
    ("metarun -q list mo", ["models"], "tasks"),
    ("metarun show protom", ["protomaml"], "maml"),
    ("metarun help tr", ["train", "tracking", "troubleshooting"], "tasks"),
    ("metarun search r", ["rates"], "protonet"),
    ("metarun search rates runner.it", ["runner.iterations="], "runner.device="),
    ("metarun reproduce maml/s", ["maml/sinusoid"], "rl2/gridnavi"),
    ("metarun reproduce maml/sinusoid --s", ["--seeds"], "--jobs"),
    ("metarun resume ", ["outputs/a/1_s0", "outputs/b/2_s0"], "outputs/a"),
    ("metarun eval outputs/b", ["outputs/b/2_s0"], "outputs/a/1_s0"),
    ("metarun eval elsewhere/", ["elsewhere/deep/3_s0"], "outputs/a/1_s0"),
    ("metarun eval outputs/a/1_s0 ", ["task.", "runner."], "tracker."),
    ("metarun eval outputs/a/1_s0 task.", ["task.shot="], "task._target_="),
    ("metarun resume outputs/a/1_s0 runner.plots=", ["runner.plots=true", "runner.plots=false"], "runner.plots="),
    ("metarun adapt outputs/a/1_s0 --su", ["--support"], "--query"),
    ("metarun report outputs/", ["outputs/a/1_s0", "outputs/a/"], "out="),
    ("metarun cache ", ["clear"], "--older-than"),
    ("metarun bench wor", ["workloads="], "rounds="),
    ("metarun doctor --j", ["--json"], "--quiet"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "some", "other"), LINES, ids=[line for line, *_ in LINES])
def test_what_is_offered(
    line: str,
    some: list[str],
    other: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("outputs/a/1_s0", "outputs/b/2_s0", "elsewhere/deep/3_s0"):
        made_run(tmp_path / name)
    found = offered(line, monkeypatch, capsys)
    assert set(some) <= set(found)
    assert other not in found
    assert all(each.startswith(line.rpartition(" ")[2]) for each in found)


WRONG = ["", "metarun", "metarun --config-dir", "metarun --config-dir nowhere ta", "metarun eval nowhere task.",
         "metarun task.way=[", "metarun task='", "x\0y"]  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_nothing_is_said_about_a_line_that_is_wrong(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "\0" in line:
        assert list(completion.candidates(line)) == []
    else:
        offered(line, monkeypatch, capsys)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the command ``metarun``, in a directory with one run."""
    made_run(tmp_path / "outputs" / "a" / "1_s0")
    command = tmp_path / "bin" / "metarun"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m metarun "$@"\n')
    command.chmod(0o755)
    root = Path(completion.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    return command.parent


BASH = """
eval "$(metarun -sc install=bash)"
try() {
    COMP_LINE=$1 COMP_POINT=${#1}
    IFS=' ' read -ra COMP_WORDS <<< "$1"
    _metarun
    printf '%s\\n' "${COMPREPLY[@]}"
    echo --
}
try 'metarun resu'
try 'metarun resume out'
try 'metarun task=vision/omn'
try 'metarun eval outputs/a/1_s0 runner.dev=x'
complete -p metarun
eval "$(metarun -sc uninstall=bash)"
complete -p metarun 2>/dev/null || echo gone
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.usefixtures("shell")
def test_bash() -> None:
    done = subprocess.run(["bash", "--norc", "-c", BASH], capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    resumed, run, task, nothing, *end = done.stdout.split("--\n")
    assert resumed.split() == ["resume"]
    assert run.split() == ["outputs/a/1_s0"]
    assert task.split() == ["vision/omniglot"]  # bash completes what follows the =
    assert nothing.split() == []
    assert end[0].split() == ["complete", "-o", "default", "-F", "_metarun", "metarun", "gone"]


@pytest.mark.parametrize("name", SHELLS)
def test_scripts_are_in_the_shells_language(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name}")
    for script in (completion.INSTALL[name], completion.UNINSTALL[name]):
        done = subprocess.run([name, "-n", "-c", script], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
