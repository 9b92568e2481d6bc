"""What a run keeps when things go wrong: changes at resume, results that are not finite, full disks, lost parents."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metarun import strict_json
from metarun.cli import main
from metarun.cli.lifeline import child
from metarun.config.compose import compose
from metarun.engine import tuning
from metarun.evaluation.evaluator import Result
from metarun.runs.history import earlier
from metarun.tracking import rundir
from metarun.tracking.rundir import RunDirectory
from metarun.training import experiment, loop
from tests.cli.test_kill import command, environment
from tests.cli.test_reproduce import RECIPE
from tests.cli.waiting import wait_for
from tests.test_life import stop_after

SHORT = ["task=regression/sinusoid", "runner.meta_batch=2", "runner.iterations=4", "runner.validate_every=2",
         "runner.val_episodes=4", "runner.test_episodes=4", "runner.log_every=1", "runner.plots=false",
         "algorithm.test_steps=1", "runner.tune_above=null", "runner.select=best", "name=short"]  # fmt: skip


def only(root: Path) -> RunDirectory:
    (config,) = root.glob("outputs/short/*/config.yaml")
    return RunDirectory(config.parent)


def strictly(text: str) -> Any:
    """Parsed as the standard has it: NaN and Infinity are no JSON."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_what_resume_was_given_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(SHORT) == 0
    run = only(tmp_path)
    stop_after(6, monkeypatch)
    assert main(["resume", str(run.path), "runner.iterations=8", "tracker.tags=[longer]"]) == 143
    stored = yaml.safe_load((run.path / "config.yaml").read_text())
    assert (stored["runner"]["iterations"], stored["tracker"]["tags"]) == (8, ["longer"])
    (change,) = run.meta()["changes"]
    assert change["iteration"] == 4
    assert change["keys"]["runner.iterations"] == {"from": 4, "to": 8}
    # By both configurations: not the run of 4 iterations any more, and the one of 8 has not finished.
    assert earlier({**compose(SHORT).config, "name": "short"}) == (None, None)
    finished, stopped = earlier({**compose([*SHORT, "runner.iterations=8"]).config, "name": "short"})
    assert finished is None
    assert stopped is not None
    assert main(["resume", str(run.path)]) == 0
    assert (run.summary() or {})["iterations"] == 8
    assert main([*SHORT, "runner.iterations=8", "runner.directory=straight"]) == 0
    (straight,) = Path("straight").glob("short/*/metrics.jsonl")
    assert run.metrics.read_bytes() == straight.read_bytes()


def test_resume_of_a_finished_run_says_what_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SHORT) == 0
    assert main(["resume", str(only(tmp_path).path), "runner.test_episodes=9"]) == 2
    assert "runner.test_episodes=9 has no effect" in capsys.readouterr().err
    assert main(["resume", str(only(tmp_path).path), "runner.iterations=3"]) == 2


def spoilt(value: float, times: int) -> Callable[..., Result]:
    """``evaluate`` whose first results are ``value``."""
    original, left = loop.evaluate, [value] * times

    def evaluate(*arguments: Any, **options: Any) -> Result:
        result = original(*arguments, **options)
        if left:
            result = Result({name: torch.full_like(curve, left.pop()) for name, curve in result.curves.items()})
        return result

    return evaluate


@pytest.mark.parametrize("value", [nan, -inf])
def test_what_is_not_finite_never_wins(value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate", spoilt(value, 1))
    assert main(SHORT) == 0
    run = only(tmp_path)
    assert (run.summary() or {})["best_iteration"] == 4
    rows = [strictly(line) for line in run.metrics.read_text().splitlines()]
    assert [row["val/mse"] is None for row in rows if "val/mse" in row] == [True, False]
    assert [isnan(row["val/mse"]) for row in run.rows() if "val/mse" in row] == [True, False]
    assert [loop.better(a, b, True) for a, b in ((nan, None), (inf, 1.0), (1.0, nan), (1.0, None), (0.0, 1.0))] == [
        False, False, True, True, False,
    ]  # fmt: skip


def test_a_result_that_is_not_finite_is_said_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "evaluate", spoilt(inf, 1))
    assert main(SHORT) == 1
    last = "metarun: the result is not finite: test mse"
    assert capsys.readouterr().err.splitlines()[-1] == last
    run = only(tmp_path)
    for file in ("summary.json", "status.json", "meta.json"):
        strictly((run.path / file).read_text())
    assert strictly((run.path / "summary.json").read_text())["test"]["mse"]["mean"] is None
    assert isnan((run.summary() or {})["test"]["mse"]["mean"])
    assert run.status()["state"] == "finished"
    assert "not finite" in run.status()["why"]
    assert main(["-m", *SHORT]) == 1  # found by the sweep as done before, and not taken for a success
    assert main(["report", str(run.path)]) == 0
    # A file from before JSON was strict.
    text = (run.path / "summary.json").read_text()
    (run.path / "summary.json").write_text(text.replace('"mean": null', '"mean": NaN'))
    assert isnan((run.summary() or {})["test"]["mse"]["mean"])


def test_strict_json_there_and_back() -> None:
    assert strict_json.dumps({"a": [1.5, nan, (inf, 2)], "b": "NaN"}) == '{"a": [1.5, null, [null, 2]], "b": "NaN"}'
    assert isnan(strict_json.numbers({"a": [None]})["a"][0])


def test_time_is_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "runner.iterations=1000000", "runner.minutes=0.002", "runner.log_every=1000"]) == 0
    run = only(tmp_path)
    summary = run.summary() or {}
    done = summary["iterations"]
    assert summary["ended_by"] == "runner.minutes"
    assert 0 < done < 1_000_000
    assert run.status()["state"] == "finished"
    assert (run.path / "checkpoints" / "best.pt").is_file()
    rows = list(run.rows())
    assert [row["iteration"] for row in rows[-2:]] == [done, done]  # validated and tested where it ended
    assert "val/mse" in rows[-2]
    assert "train/mse" in rows[-3]
    capsys.readouterr()
    assert main(["resume", str(run.path)]) == 0
    assert "metarun resume RUN runner.minutes=N" in capsys.readouterr().out
    assert main(["resume", str(run.path), "runner.minutes=null", f"runner.iterations={done + 1}"]) == 0
    summary = run.summary() or {}
    assert (summary["iterations"], summary["ended_by"]) == (done + 1, None)


def test_time_counts_over_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(2, monkeypatch)
    assert main([*SHORT, "runner.iterations=1000000"]) == 143
    run = only(tmp_path)
    state = torch.load(run.path / "checkpoints/last.pt", weights_only=True)
    state["progress"]["seconds"] = 60.0  # as if that had been a minute
    torch.save(state, run.path / "checkpoints/last.pt")
    assert main(["resume", str(run.path), "runner.minutes=1.0"]) == 0
    assert (run.summary() or {})["iterations"] == 2


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    assert main(SHORT) == 0
    run = only(tmp_path)
    left = [run.path / "checkpoints/.last.pt.4711", run.path / ".status.json.4711"]
    for file in left:
        file.write_text("half")
    assert main(["resume", str(run.path), "runner.iterations=5"]) == 0
    assert not any(file.exists() for file in left)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(2, monkeypatch)
    assert main([*SHORT, "runner.iterations=6"]) == 143
    run = only(tmp_path)
    run.write_status("running")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(rundir.os, "fsync", full)
        assert main(["resume", str(run.path)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not [file for file in run.path.rglob(".*") if file.name != ".lock"]
    assert run.status()["state"] == "killed"  # no room for the word failed either, and nobody runs it
    with run.locked():
        assert run.status()["state"] == "running"
    assert main(["resume", str(run.path)]) == 0


def test_no_memory_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "peak", greedy)
    assert main(SHORT) == 1
    assert "metarun: out of memory" in capsys.readouterr().err
    status = only(tmp_path).status()
    assert status["state"] == "failed"
    assert "can't allocate memory" in status["why"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux")
@pytest.mark.slow
def test_a_meta_batch_larger_than_memory_is_told(tmp_path: Path) -> None:
    """Without a limit the system would kill the process, and nothing would be said."""
    lines = [
        "import sys",
        "from metarun.training import device",
        "device.physical_memory = lambda: 2_000_000_000",
        "from metarun.cli import main",
        "sys.exit(main(sys.argv[1:]))",
    ]
    large = [*SHORT, "task.shot=1000000"]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *large],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, "metarun: out of memory" in result.stderr) == (1, True), result.stderr
    assert only(tmp_path).status()["state"] == "failed"


@pytest.mark.parametrize("trouble", ["cache is a file", "no home"])
def test_a_run_needs_no_cache(trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    if trouble == "no home":
        monkeypatch.delenv("METARUN_CACHE", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    else:
        monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file"))
    assert main(SHORT) == 0


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment" / "mine"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(RECIPE.replace("iterations: 4, validate_every: 2", "iterations: 10000000"))
    words = command("reproduce", "mine/tiny", "--seeds=1", "runner.log_every=1", "tracker.wandb=disabled")
    parent = subprocess.Popen(
        words, env={**environment(), "METARUN_CONF": str(tmp_path / "conf")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: any(f.stat().st_size for f in tmp_path.glob("outputs/*/*/metrics.jsonl")), parent)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    (run,) = map(RunDirectory, tmp_path.glob("outputs/mine-tiny/*"))
    ended = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(240)"])
    try:
        wait_for(lambda: run.status()["state"] == "interrupted", ended)
    finally:
        ended.kill()
        ended.wait()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("..", "begin with '.'"), ("../out", "'/'"), ("/tmp/out", "'/'"), ("", "empty"), (".hidden", "'.'"),
        ("-m", "'-'"), ("a\nb", "control characters"), ("a\x1b[31m", "control characters"), ("multirun", "uses itself"),
        ("x" * 201, "200 bytes"), ("trailing ", "spaces"),
    ],
)  # fmt: skip
def test_a_name_stays_among_the_outputs(name: str, reason: str) -> None:
    from metarun.config.check import check
    from metarun.errors import UserError

    with pytest.raises(UserError, match=reason) as refused:
        check({**compose(SHORT).config, "name": name})
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_a_child_process_gets_the_signals_of_its_parent_alone() -> None:
    """Ctrl-C reaches every process of a terminal's group: a child in it would get a second signal and stop at once."""
    code = "import os, sys; sys.exit(os.getsid(0) != os.getpid())"
    with child([sys.executable, "-c", code], os.environ) as process:
        assert process.wait() == 0
