"""Sweeps as jobs of submitit, on this machine: as Hydra's own launcher makes them, preempted and killed ones too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from metarun.cli import main
from metarun.runs.history import runs_of_sweep
from tests.cli import slurm
from tests.cli.waiting import wait_for

pytest.importorskip("submitit", reason="SLURM's launcher is not installed: pip install 'metarun[slurm]'")

RECIPE = ["experiment=maml/sinusoid", "runner.iterations=700", "runner.validate_every=250", "runner.val_episodes=20",
          "runner.test_episodes=40", "runner.log_every=7", "runner.plots=false", "name=sines",
          "runner.tune_above=null"]  # fmt: skip
ONLY_WHEN_ASKED = "runner.checkpoint_seconds=1000"


def sweep(*words: str, launcher: str = "submitit_local") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "metarun", "-m", f"hydra/launcher={launcher}", *words],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def runs() -> list[Path]:
    return [config.parent for config in Path("outputs").glob("sines/*/config.yaml")]


def rows(run: Path) -> int:
    return (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").is_file() else 0


def status(run: Path) -> dict[str, object]:
    return json.loads((run / "status.json").read_text())


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_ends_as_if_undisturbed() -> None:
    process = sweep(*RECIPE, ONLY_WHEN_ASKED)
    wait_for(lambda: any(rows(run) > 20 for run in runs()), process)
    (run,) = runs()
    job = int(str(status(run)["pid"]))
    last = run / "checkpoints" / "last.pt"
    assert not last.exists()
    os.kill(job, signal.SIGTERM)  # announces it; SLURM may kill the job without another word
    wait_for(last.exists, process)
    announced = torch.load(last, weights_only=True)["progress"]["iteration"]
    reached = rows(run)
    wait_for(lambda: rows(run) > reached, process)  # goes on
    assert status(run)["state"] == "running"
    os.kill(job, signal.SIGUSR2)
    os.kill(job, signal.SIGUSR2)  # SLURM may well send it twice
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 0, told

    assert runs() == [run]
    log = (run / "metarun.log").read_text()
    assert "stopped after a checkpoint" in log
    (went_on,) = (line for line in log.splitlines() if "continuing after iteration" in line)
    assert announced < int(went_on.split()[-1]) < 700
    assert status(run)["pid"] != job
    (output,) = Path("outputs").glob("multirun/*/.submitit/*/*_log.out")
    assert "this job is preempted" in output.read_text() + output.with_suffix(".err").read_text()

    assert main([*RECIPE, "runner.directory=undisturbed"]) == 0
    assert_same(run)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds a process's parent under /proc")
def test_a_preempted_job_of_several_processes() -> None:
    words = [*RECIPE, "runner.devices=2", "runner.meta_batch=8", "runner.iterations=400"]
    process = sweep(*words, ONLY_WHEN_ASKED)
    wait_for(lambda: any(rows(run) > 20 for run in runs()), process)
    (run,) = runs()
    lead = int(str(status(run)["pid"]))
    job = int(Path(f"/proc/{lead}/stat").read_text().rsplit(")", 1)[1].split()[1])
    os.kill(job, signal.SIGUSR2)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 0, told
    assert runs() == [run]
    assert (run / "metarun.log").read_text().count("continuing after iteration") == 1
    assert main([*words, "runner.directory=undisturbed"]) == 0
    assert_same(run)


def assert_same(run: Path) -> None:
    """As the undisturbed run, to the bit."""
    (undisturbed,) = Path("undisturbed").glob("sines/*")
    assert (run / "metrics.jsonl").read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    for name in ("last.pt", "best.pt"):
        ours, theirs = (
            torch.load(r / "checkpoints" / name, weights_only=True)["algorithm"]["parameters"]
            for r in (run, undisturbed)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    ours, theirs = (json.loads((r / "summary.json").read_text())["test"] for r in (run, undisturbed))
    assert ours == theirs


@pytest.mark.slow
def test_failed_and_killed_jobs_are_named_and_run_again() -> None:
    """One diverges, one is killed, one finishes; the same command again leaves the last as it is."""
    words = [*RECIPE, "algorithm.inner_lr=1e30,0.01,0.02", "algorithm.test_steps=1", "runner.iterations=300"]
    process = sweep(*words)

    def at(rate: float) -> list[Path]:
        return [r for r in runs() if f"inner_lr: {rate}\n" in (r / "config.yaml").read_text()]

    wait_for(lambda: any(rows(run) > 5 for run in at(0.01)), process)
    (killed,) = at(0.01)
    os.kill(int(str(status(killed)["pid"])), signal.SIGKILL)
    told = process.communicate(timeout=240)[1]
    assert process.returncode == 1
    assert "2 of 3 runs failed" in told
    assert "Traceback" not in told
    failures = told.split("2 of 3 runs failed:\n")[1].splitlines()[:2]
    (diverged,) = (line for line in failures if "became NaN" in line)
    (died,) = (line for line in failures if "died without a message" in line)
    assert "inner_lr=0.01" in died
    assert "metarun: run 2" in Path(died.split("log: ")[1]).read_text()
    assert "RunFailed" in Path(diverged.split("log: ")[1]).read_text()
    (finished,) = at(0.02)
    before = (finished / "summary.json").read_bytes()

    again = sweep(*words)
    told = again.communicate(timeout=240)[1]
    assert again.returncode == 1
    assert "2 of 3 runs finished, 1 of them before" in told
    assert "1 of 3 runs failed" in told
    assert at(0.02) == [finished]
    assert (finished / "summary.json").read_bytes() == before
    newest = max(Path("outputs/multirun").iterdir())
    finished_there = {r for r in runs_of_sweep(newest) if (r / "summary.json").is_file()}
    assert finished.resolve() in finished_there
    assert len(finished_there) == 2


@pytest.mark.slow
def test_an_array_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As far as a stand-in of SLURM goes: one job is preempted and queued again, one is killed, one is left alone."""
    queue = slurm.install(tmp_path / "queue")
    monkeypatch.setenv("PATH", f"{queue}:{os.environ['PATH']}")
    former: list[int] = []

    def of(seed: int) -> list[Path]:
        return [run for run in runs() if run.name.endswith(f"_s{seed}")]

    def disturb() -> None:
        end = time.monotonic() + 240
        signals = {1: (signal.SIGKILL,), 0: (signal.SIGTERM, signal.SIGUSR2)}
        while signals and time.monotonic() < end:
            for seed in [seed for seed in signals if any(rows(run) > 3 for run in of(seed))]:
                former.append(int(str(status(of(seed)[0])["pid"])))
                for number in signals.pop(seed):
                    os.kill(former[-1], number)
            time.sleep(0.02)

    disturber = threading.Thread(target=disturb)
    disturber.start()
    limits = ["hydra.launcher.timeout_min=240", "hydra.launcher.max_num_timeout=10"]
    assert main(["-m", "hydra/launcher=submitit_slurm", *limits, *RECIPE, "seed=0,1,2"]) == 1
    disturber.join()
    told = capsys.readouterr().err
    assert "2 of 3 runs finished" in told
    died = told.split("1 of 3 runs failed:\n")[1].splitlines()[0]
    assert "seed=1: died without a message" in died
    assert "metarun: run 2" in Path(died.split("log: ")[1]).read_text()
    assert all((of(seed)[0] / "summary.json").is_file() for seed in (0, 2))
    assert [len(of(seed)) for seed in (0, 1, 2)] == [1, 1, 1]
    assert "continuing after iteration" in (of(0)[0] / "metarun.log").read_text()
    assert status(of(0)[0])["pid"] not in former
    asked = (queue / "submitted").read_text()
    assert all(f"#SBATCH --{flag}" in asked for flag in ("time=240", "signal=USR2@120", "open-mode=append"))
