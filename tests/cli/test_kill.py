"""Killed at any moment and resumed, a run ends as if nothing had happened; SIGTERM is a clean stop."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metarun.cli import main
from tests.cli.waiting import wait_for
from tests.slow import slow_but

FAST = [
    "runner.checkpoint_seconds=0.1",
    "runner.plots=false",
    "runner.test_episodes=40",
    "runner.val_episodes=20",
    "runner.tune_above=0",  # the engine at its fastest, as a long run has it
]
RUNS = {
    "sinusoid": [
        "task=regression/sinusoid", "algorithm.test_steps=2", "runner.meta_batch=4",
        "runner.iterations=200", "runner.validate_every=50", "runner.log_every=7",
    ],
    "glyphs": [
        "task=vision/glyphs", "model.width=8", "algorithm.train_way=5", "task.test_ways=[]",
        "runner.iterations=160", "runner.validate_every=30", "runner.log_every=7",
    ],
    "bfloat16": [
        "task=regression/sinusoid", "runner.precision=bfloat16",
        "runner.iterations=400", "runner.validate_every=60", "runner.log_every=7",
    ],
    "bandit": [
        "task=rl/bandit", "runner.meta_batch=50",
        "runner.iterations=60", "runner.validate_every=15", "runner.log_every=7",
    ],
}  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "metarun", *words]


def environment(mode: str = "disabled") -> dict[str, str]:
    return {**os.environ, "WANDB_MODE": mode, "OMP_NUM_THREADS": "1"}


def finish(*words: str) -> None:
    """Run to the end, in this process: only those that are killed need one of their own."""
    assert main([*words]) == 0


def start(words: list[str]) -> int:
    """A process of its own that runs the command; forked, since importing takes longer than these runs."""
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        torch.set_num_threads(1)
        status = main(words)
    except BaseException:
        status = 70
    os._exit(status)


def ended(process: int) -> int:
    """The exit status of the process; negative, that of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_after(rows: int, words: list[str], root: Path, latest: float) -> bool:
    """Run the command and kill it up to ``latest`` seconds after ``rows`` rows; whether it had not ended before."""
    process = start([*words, f"runner.directory={root}"])
    while (alive := os.waitpid(process, os.WNOHANG) == (0, 0)) and not reached(root, rows):
        time.sleep(0.002)
    time.sleep(random.uniform(0, latest))
    if alive:
        os.kill(process, signal.SIGKILL)
    return alive and ended(process) == -signal.SIGKILL


def reached(root: Path, rows: int) -> bool:
    files = list(root.glob("*/*/metrics.jsonl"))
    configured = bool(list(root.glob("*/*/meta.json")))
    return configured and bool(files) and files[0].read_bytes().count(b"\n") >= rows


def only(root: Path) -> Path:
    (config,) = root.glob("*/*/config.yaml")
    return config.parent


def assert_same(run: Path, undisturbed: Path) -> None:
    assert (run / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (
            torch.load(r / "checkpoints" / name, weights_only=True)["algorithm"]["parameters"]
            for r in (run, undisturbed)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours if isinstance(ours[k], torch.Tensor))
    ours, theirs = (json.loads((r / "meta.json").read_text()).get("step") for r in (run, undisturbed))
    assert ours == theirs
    assert ours is None or ours["milliseconds"] is not None  # bandits have no choice; the others searched
    ours, theirs = (json.loads((r / "meta.json").read_text()).get("gradient_error") for r in (run, undisturbed))
    assert ours == theirs
    ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (run, undisturbed))
    assert ours["test"] == theirs["test"]


def kill_and_resume(family: str, root: Path, undisturbed: Path, moment: float) -> bool:
    """Kill when a share ``moment`` of the undisturbed run's rows is written; whether the kill came in time."""
    rows = max(1, int(moment * len((undisturbed / "metrics.jsonl").read_bytes().splitlines())))
    killed = killed_after(rows, [*RUNS[family], *FAST], root, 0.05)
    run = only(root)
    finish("resume", str(run))
    assert_same(run, undisturbed)
    return killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of each family that nobody disturbed, made on demand."""
    root = tmp_path_factory.mktemp("undisturbed")

    class Made(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            finish(*RUNS[family], *FAST, f"runner.directory={root / family}")
            self[family] = only(root / family)
            return self[family]

    return Made()


@pytest.mark.parametrize("family", slow_but(["sinusoid"], RUNS))
def test_killed_once(family: str, tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    assert kill_and_resume(family, tmp_path, undisturbed[family], 0.5)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    random.seed(0)
    killed = 0
    for trial in range(20):
        family = list(RUNS)[trial % len(RUNS)]
        root = tmp_path / str(trial)
        moment = random.random()
        killed += kill_and_resume(family, root, undisturbed[family], moment)
        print(f"trial {trial + 1}: {family}, killed at {moment:.0%}, resumed: identical")
    assert killed >= 18  # a kill in the last rows can come after the end


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_cleanly(number: int, tmp_path: Path, undisturbed: dict[str, Path]) -> None:
    process = subprocess.Popen(
        command(*RUNS["sinusoid"], *FAST, f"runner.directory={tmp_path}"),
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment("offline"),
    )  # fmt: skip
    wait_for(lambda: any(f.stat().st_size for f in tmp_path.glob("*/*/metrics.jsonl")), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 128 + number
    assert "metarun resume" in said
    assert "Traceback" not in said
    run = only(tmp_path)
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    finish("resume", str(run))
    assert_same(run, undisturbed["sinusoid"])
