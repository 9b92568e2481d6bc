"""Sweeps as jobs of Ray, on this machine, through Hydra's own launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.waiting import wait_for

pytest.importorskip("ray", reason="Ray's launcher is not installed: pip install 'metarun[ray]'")


@pytest.mark.slow
def test_a_job_that_diverges_is_named_and_a_killed_one_goes_on() -> None:
    words = ["task=regression/sinusoid", "algorithm=maml", "algorithm.inner_lr=1e30,0.01", "algorithm.test_steps=1",
             "runner.iterations=1000", "runner.validate_every=0", "runner.test_episodes=20", "runner.plots=false",
             "runner.tune_above=null", "runner.checkpoint_seconds=0.2", "name=sines"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "metarun", "-m", "hydra/launcher=ray", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    def at_work() -> list[Path]:
        kept = (checkpoint.parents[1] for checkpoint in Path("outputs").glob("sines/*/checkpoints/last.pt"))
        return [run for run in kept if "inner_lr: 0.01\n" in (run / "config.yaml").read_text()]

    (run,) = wait_for(at_work, process)
    killed = json.loads((run / "status.json").read_text())["pid"]
    os.kill(killed, signal.SIGKILL)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 1
    assert "1 of 2 runs finished" in told
    (diverged,) = (line for line in told.split("1 of 2 runs failed:\n")[1].splitlines() if "inner_lr" in line)
    assert "became NaN" in diverged
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["pid"] != killed
    assert (run / "metarun.log").read_text().count("continuing after iteration") == 1
