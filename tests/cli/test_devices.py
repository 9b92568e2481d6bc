"""One run in several processes: the same as in one, to rounding; it stops, dies and goes on as a whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarun.cli import main
from tests.cli.waiting import wait_for
from tests.slow import slow_but

COMMON = [
    "runner.precision=float64", "runner.plots=false", "runner.test_episodes=20", "runner.val_episodes=20",
    "runner.validate_every=25", "runner.log_every=5", "runner.tune_above=null", "runner.checkpoint_seconds=0",
]  # fmt: skip
RUNS = {
    "gp": [
        "task=regression/gp", "algorithm=cnp", "model=mlp", "model.hidden=[16]", "runner.meta_batch=4",
        "runner.iterations=25",
    ],
    "sinusoid": ["task=regression/sinusoid", "runner.meta_batch=4", "runner.iterations=50"],
    "bandit": [
        "task=rl/bandit", "algorithm.minibatches=1", "runner.meta_batch=8", "runner.iterations=50",
        "runner.select=last", "runner.validate_every=0",
    ],
}  # fmt: skip
ENVIRONMENT = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}


def spawn(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "metarun", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(*words: str) -> str:
    process = spawn(*words)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def only(root: Path) -> Path:
    (config,) = root.glob("*/*/config.yaml")
    return config.parent


def distance(a: Path, b: Path) -> float:
    """Between the meta-parameters of two runs, relative."""
    ours, theirs = (
        torch.cat([t.flatten() for t in torch.load(run / "checkpoints/last.pt")["algorithm"]["parameters"].values()])
        for run in (a, b)
    )
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs in one process, made on demand."""
    root = tmp_path_factory.mktemp("alone")

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            assert main([*RUNS[name], *COMMON, f"runner.directory={root / name}", "tracker.wandb=disabled"]) == 0
            self[name] = only(root / name)
            return self[name]

    return Made()


@pytest.mark.parametrize("name", slow_but(["gp"], RUNS))
def test_two_processes_learn_what_one_learns(name: str, tmp_path: Path, alone: dict[str, Path]) -> None:
    words = [*RUNS[name], *COMMON, "runner.devices=2", f"runner.directory={tmp_path}"]
    assert main(words) == 0
    assert distance(only(tmp_path), alone[name]) < 1e-9
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (only(tmp_path), alone[name])
    )
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert all(row[key] == pytest.approx(other[key], rel=1e-6) for key in row)


def wait_for_rows(root: Path, process: subprocess.Popen[str], count: int) -> None:
    def reached() -> bool:
        return any(f.read_bytes().count(b"\n") >= count for f in root.glob("*/*/metrics.jsonl"))

    wait_for(reached, process)


def members(process: subprocess.Popen[str]) -> list[int]:
    """The processes that share the run, by their numbers in it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = dict(w.split("=", 1) for w in (path / "environ").read_text().split("\0") if "=" in w)
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            said = (path / "cmdline").read_text()
        except (OSError, ValueError):
            continue
        if parent == process.pid and "spawn_main" in said:
            found[int(path.name)] = words
    return sorted(found)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds processes under /proc")
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_and_the_run_goes_on_in_one(
    victim: int, tmp_path: Path, alone: dict[str, Path]
) -> None:
    process = spawn(*RUNS["sinusoid"], *COMMON, "runner.devices=2", f"runner.directory={tmp_path}")
    wait_for_rows(tmp_path, process, 3)
    both = members(process)
    assert len(both) == 2
    os.kill(both[victim], signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert f"process {victim} terminated with signal SIGKILL" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in both)
    status = json.loads((only(tmp_path) / "status.json").read_text())
    assert status["state"] == "failed"
    assert "SIGKILL" in status["why"]
    assert main(["resume", str(only(tmp_path)), "runner.devices=1"]) == 0
    assert distance(only(tmp_path), alone["sinusoid"]) < 1e-9


@pytest.mark.slow
def test_a_signal_stops_them_all_after_a_checkpoint_and_more_processes_go_on(
    tmp_path: Path, alone: dict[str, Path]
) -> None:
    process = spawn(*RUNS["sinusoid"], *COMMON, "runner.devices=2", f"runner.directory={tmp_path}")
    wait_for_rows(tmp_path, process, 3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "metarun resume" in said
    assert "Traceback" not in said
    assert json.loads((only(tmp_path) / "status.json").read_text())["state"] == "interrupted"
    finish("resume", str(only(tmp_path)), "runner.devices=4")
    assert distance(only(tmp_path), alone["sinusoid"]) < 1e-9


@pytest.mark.slow
def test_torchrun(tmp_path: Path, alone: dict[str, Path]) -> None:
    words = [*RUNS["sinusoid"], *COMMON, f"runner.directory={tmp_path}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "metarun", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("meta-test") == 1
    assert distance(only(tmp_path), alone["sinusoid"]) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runner.meta_batch=5"], "cannot be divided evenly among 2 processes (runner.devices); use 4 or 6"),
        (["algorithm=reptile", "runner.meta_batch=4"], "needs the full meta-batch; use runner.devices=1"),
    ],
)
def test_what_cannot_be_divided_is_refused(words: list[str], says: str, tmp_path: Path) -> None:
    process = spawn("task=regression/sinusoid", *words, "runner.devices=2", f"runner.directory={tmp_path}/runs")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 2
    assert says in said
    assert said.count("\n") == 1
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_all_begin_from_the_model_of_another_run(tmp_path: Path, alone: dict[str, Path]) -> None:
    words = [*RUNS["sinusoid"], *COMMON, "runner.iterations=10", f"runner.init_from={alone['sinusoid']}"]
    finish(*words, "runner.devices=2", f"runner.directory={tmp_path}/two")
    assert main([*words, f"runner.directory={tmp_path}/one"]) == 0
    assert distance(only(tmp_path / "two"), only(tmp_path / "one")) < 1e-9
