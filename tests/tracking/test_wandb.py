"""W&B as it is: real offline files, a loopback server, wandb's helper process killed and stopped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb_file import OfflineRun, read
from wandb_server import API_KEY, ServedRun, WandbServer

from metarun.tracking.sinks import wandb as sink_module
from metarun.tracking.sinks import wandb_mode
from metarun.tracking.sinks.wandb import WandbSink
from metarun.tracking.sinks.wandb_mode import requested_mode

HUNG = 300  # seconds after which a test counts as hung, however busy the machine


class Recorder:
    """What the training loop does: each row is written to ``metrics.jsonl``, then given to the sink."""

    def __init__(self, directory: Path, mode: str | None = "offline", **changes: Any) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        arguments: dict[str, Any] = {
            "mode": mode,
            "project": "metarun-test",
            "entity": None,
            "group": "sweep",
            "tags": ["sinusoid", "maml"],
            "name": "sinusoid-maml-s0",
            "job_type": "train",
            "config": {"seed": 0, "task": {"shot": 5}},
            "finish_timeout": 120.0,
            "init_timeout": 60.0,
        }
        self.sink = WandbSink.start(directory, **(arguments | changes))

    def rows(self, start: int, stop: int) -> None:
        with (self.directory / "metrics.jsonl").open("a") as file:
            for i in range(start, stop):
                row = {"iteration": i, "loss": 1 / (1 + i), "split": "train"}
                file.write(json.dumps(row) + "\n")
                file.flush()
                self.sink.log(row)

    def finish(self, exit_code: int = 0) -> None:
        self.sink.finish(exit_code)


def keep_rows(directory: Path, count: int) -> None:
    """What resuming does: cut ``metrics.jsonl`` at the checkpoint."""
    file = directory / "metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:count]))


def run_id(directory: Path) -> str:
    return (directory / "wandb_id").read_text().split()[0]


def offline_runs(directory: Path) -> list[OfflineRun]:
    """The finished offline files that ``wandb sync`` would find, oldest first."""
    files = sorted(directory.glob("wandb/offline-run-*/*.wandb"))
    # wandb's helper process closes a file a moment after wandb says so, and before this process could end.
    wait_until(lambda: all(read(file).exit_code is not None for file in files))
    return [read(file) for file in files]


def iterations(run: OfflineRun | ServedRun) -> list[int]:
    """Those of the metric rows; an image's row holds no loss."""
    return [row["iteration"] for row in run.history if "loss" in row]


def expected(count: int) -> list[int]:
    return list(range(count))


def helper_processes() -> list[int]:
    """wandb's live helper processes that are ours."""
    command = ["ps", "--ppid", str(os.getpid()), "-o", "pid=,stat=,comm="]
    lines = [line.split() for line in subprocess.check_output(command, text=True).splitlines()]
    return [int(pid) for pid, state, name in lines if name.startswith("wandb") and "Z" not in state]


def own_helper() -> dict[str, str]:
    """An environment in which a child does not share the helper process of this one."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + HUNG / 2
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "metarun")


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    """What waits for W&B for good fails; how long it takes otherwise depends on the machine."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"still waiting after {HUNG} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HUNG)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a key nor settings of whoever runs the tests; the modes are chosen by each test."""
    for name in [name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_SERVICE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setattr(wandb_mode, "_reported", set())
    monkeypatch.setattr(sink_module, "FALLBACK", 300.0)  # a busy machine takes its time to start W&B
    # Whatever an earlier test set up: messages go to caplog and nowhere else.
    monkeypatch.setattr(logging.getLogger("metarun"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("metarun"), "propagate", True)
    caplog.set_level(logging.INFO, logger="metarun")


def forget() -> None:
    """Let wandb read its environment anew, which it does once."""
    with contextlib.suppress(ConnectionError):  # of a helper process that a test has killed
        wandb.teardown()


def use(monkeypatch: pytest.MonkeyPatch, url: str, key: str | None) -> None:
    """Make ``url`` the W&B server from here on."""
    monkeypatch.setenv("WANDB_BASE_URL", url)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    forget()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as serving:
        use(monkeypatch, serving.url, API_KEY)
        yield serving
    forget()


# Offline.


def test_offline_file_holds_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(tmp_path / "run")
    recorder.rows(0, 300)
    recorder.sink.result({"test": {"accuracy": {"mean": 0.9}}, "iterations": 3000}, tmp_path / "best.pt")
    recorder.finish(exit_code=3)
    (run,) = offline_runs(tmp_path / "run")
    assert [(row["iteration"], row["loss"], row["split"]) for row in run.history] == [
        (i, 1 / (1 + i), "train") for i in range(300)
    ]
    assert (run.run_id, run.group, run.job_type) == (run_id(tmp_path / "run"), "sweep", "train")
    assert sorted(run.tags) == ["maml", "sinusoid"]
    assert run.config["task"] == {"shot": 5}
    assert run.exit_code == 3
    assert run.summary["iterations"] == 3000
    assert "test" not in run.summary  # it is a row
    directory = next((tmp_path / "run").glob("wandb/offline-run-*"))
    assert f"wandb sync {directory}" in messages(caplog)


def test_offline_after_a_hard_kill_and_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGKILL loses W&B's file of a process; the resumed run's file holds all that metrics.jsonl holds."""
    directory = tmp_path / "run"
    script = (
        "import sys, time, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from test_wandb import Recorder\n"
        "recorder = Recorder(pathlib.Path(sys.argv[2])); recorder.rows(0, 100)\n"
        "while recorder.sink._reached < 990: time.sleep(0.02)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(directory)],
        stdout=subprocess.PIPE,
        env=own_helper(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.kill()
    process.wait()
    first = run_id(directory)

    keep_rows(directory, 60)
    resumed = Recorder(directory)
    resumed.rows(60, 120)
    resumed.finish()
    (run,) = offline_runs(directory)  # what the killed process left is out of wandb sync's way
    assert iterations(run) == expected(120)
    assert run.run_id == first
    assert len(list(directory.glob("wandb/replaced-offline-run-*"))) == 1
    assert "continuing offline" not in messages(caplog)


def test_resume_after_an_upload_is_a_new_run(tmp_path: Path) -> None:
    """What wandb sync has uploaded must not go up twice under one id."""
    directory = tmp_path / "run"
    recorder = Recorder(directory)
    recorder.rows(0, 5)
    recorder.finish()
    first = run_id(directory)
    file = next(directory.glob("wandb/offline-run-*/*.wandb"))
    file.with_name(f"{file.name}.synced").touch()

    resumed = Recorder(directory)
    resumed.rows(5, 8)
    resumed.finish()
    assert run_id(directory) != first
    runs = {run.run_id: iterations(run) for run in offline_runs(directory)}
    assert runs == {first: expected(5), run_id(directory): expected(8)}


def test_two_runs_in_one_process_share_a_group_only(tmp_path: Path) -> None:
    recorders = [Recorder(tmp_path / f"run{seed}", name=f"s{seed}") for seed in (0, 1)]
    for seed, recorder in enumerate(recorders):
        recorder.rows(0, 3 + seed)
        recorder.finish()
    (one,), (two,) = (offline_runs(recorder.directory) for recorder in recorders)
    assert one.run_id != two.run_id
    assert one.group == two.group == "sweep"
    assert (iterations(one), iterations(two)) == (expected(3), expected(4))


def test_images_take_no_row_s_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from PIL import Image

    picture = tmp_path / "curve.png"
    Image.new("RGB", (4, 4)).save(picture)
    recorder = Recorder(tmp_path / "run")
    recorder.rows(0, 3)
    recorder.sink.image("curve", picture)
    recorder.sink.image("missing", tmp_path / "missing.png")
    recorder.rows(3, 6)
    recorder.sink.image("curve", picture)
    recorder.finish()
    (run,) = offline_runs(tmp_path / "run")
    assert iterations(run) == expected(6)
    assert len([row for row in run.history if any(key.startswith("curve") for key in row)]) == 2
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*/files/media/images/*.png"))) == 2
    assert "missing.png left out" in messages(caplog)


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "sys.modules['wandb'] = None\n"
        "from metarun.tracking.sinks.wandb import WandbSink\n"
        "sink = WandbSink.start(pathlib.Path(sys.argv[2]), mode='disabled', project='p', entity=None,"
        " group=None, tags=[], name='n', job_type='train', config={}, finish_timeout=1, init_timeout=1)\n"
        "sink.log({'loss': 1.0}); sink.result({}, None); sink.image('x', pathlib.Path('x')); sink.finish(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


# The choice of the mode.


@pytest.mark.parametrize(
    ("argument", "environment", "mode"),
    [
        (None, "", None),
        (None, "offline", "offline"),
        (None, "Disabled", "disabled"),
        (None, "dryrun", "offline"),
        (None, "shared", "online"),
        (None, "ofline", None),
        ("offline", "disabled", "offline"),
        ("online", "offline", "online"),
        ("disabled", "online", "disabled"),
    ],
)
def test_requested_mode(argument: str | None, environment: str, mode: str | None) -> None:
    assert requested_mode(argument, {"WANDB_MODE": environment}) == mode
    if not environment:
        assert requested_mode(argument, {}) == mode


def test_no_key_means_offline_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with WandbServer() as server:
        use(monkeypatch, server.url, None)
        for name in ("a", "b"):
            recorder = Recorder(tmp_path / name, mode=None)
            recorder.rows(0, 2)
            recorder.finish()
            assert iterations(offline_runs(tmp_path / name)[0]) == expected(2)
        assert messages(caplog).count("no API key") == 1
        recorder = Recorder(tmp_path / "c", mode="online")
        recorder.rows(0, 2)
        recorder.finish()
        assert iterations(offline_runs(tmp_path / "c")[0]) == expected(2)
        assert "online mode needs an API key" in messages(caplog)
        assert server.runs == {}


# Online.


def test_online_then_resumed(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A key and no other wish: online. All of it arrives, and a resumed run adds what is missing, no more."""
    from PIL import Image

    directory = tmp_path / "run"
    picture = tmp_path / "curve.png"
    Image.new("RGB", (4, 4)).save(picture)
    recorder = Recorder(directory, mode=None)
    recorder.rows(0, 50)
    recorder.sink.image("curve", picture)
    recorder.sink.result({"iterations": 50}, tmp_path / "best.pt")
    recorder.finish(exit_code=130)
    (run,) = server.runs.values()
    assert run.name == run_id(directory)
    assert iterations(run) == expected(50)
    assert run.config["task"] == {"shot": 5}
    assert run.attributes["groupName"] == "sweep"
    assert run.attributes["jobType"] == "train"
    assert sorted(run.attributes["tags"]) == ["maml", "sinusoid"]
    assert run.attributes["displayName"] == "sinusoid-maml-s0"
    assert run.summary["iterations"] == 50
    assert run.exit_code == 130
    assert [name for name in run.files if name.endswith(".png")]
    assert not [name for name in run.files if name.endswith((".py", ".patch"))]
    assert "sync" not in messages(caplog)

    keep_rows(directory, 30)  # W&B is ahead of the checkpoint
    resumed = Recorder(directory, mode=None)
    resumed.rows(30, 70)
    resumed.finish()
    assert list(server.runs) == [run.name]
    assert iterations(run) == expected(70)
    assert run.exit_code == 0

    del run.lines[max(run.lines)]  # W&B is behind it
    run.summary["_step"] = run.history[-1]["_step"]
    again = Recorder(directory, mode=None)
    again.rows(70, 80)
    again.finish()
    assert iterations(run) == expected(80)
    assert capfd.readouterr() == ("", "")  # wandb's own chatter stays off the terminal


def test_finished_run_trained_longer(tmp_path: Path, server: WandbServer) -> None:
    """Its last row and pictures, past the checkpoint, are at W&B; the rows that follow are none of these."""
    from PIL import Image

    directory = tmp_path / "run"
    picture = tmp_path / "curve.png"
    Image.new("RGB", (4, 4)).save(picture)
    recorder = Recorder(directory, mode="online")
    recorder.rows(0, 10)
    recorder.rows(9, 10)  # the test, of the same iteration
    recorder.sink.image("curve", picture)
    recorder.sink.image("fit", picture)
    recorder.finish()
    keep_rows(directory, 10)
    longer = Recorder(directory, mode="online")
    longer.rows(10, 20)
    longer.rows(19, 20)
    longer.sink.image("curve", picture)
    longer.finish()
    (run,) = server.runs.values()
    assert iterations(run) == [*range(10), 9, *range(10, 20), 19]
    assert [sorted({"curve", "fit"} & set(row)) for row in run.history if "loss" not in row] == [
        ["curve", "fit"],
        ["curve"],
    ]


def test_server_stops_in_mid_run(tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "run"
    recorder = Recorder(directory, mode=None, finish_timeout=4.0)
    recorder.rows(0, 20)
    wait_until(lambda: recorder.sink._reached == 190)
    online = run_id(directory)
    server.stop()
    recorder.rows(20, 200)
    recorder.sink.result({"iterations": 200}, tmp_path / "best.pt")
    recorder.finish()
    (run,) = offline_runs(directory)
    assert iterations(run) == expected(200)
    assert run.summary["iterations"] == 200
    assert run.exit_code == 0
    assert run.run_id != online  # the server may have some rows of that one
    assert f"wandb sync {next(directory.glob('wandb/offline-run-*'))}" in messages(caplog)


def test_synced_copy_is_complete(tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture) -> None:
    """The line that is printed, carried out: W&B then has every row once."""
    recorder = Recorder(tmp_path / "run")
    recorder.rows(0, 10)
    recorder.finish()
    keep_rows(tmp_path / "run", 6)
    resumed = Recorder(tmp_path / "run")
    resumed.rows(6, 15)
    resumed.finish()
    command = messages(caplog).rpartition("wandb sync ")[2]
    subprocess.run([sys.executable, "-m", "wandb", "sync", command], check=True, capture_output=True)
    assert iterations(server.runs[run_id(tmp_path / "run")]) == expected(15)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_helper_process_killed_in_mid_run(
    mode: str, tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "run"
    recorder = Recorder(directory, mode=mode)
    recorder.rows(0, 20)
    wait_until(lambda: recorder.sink._reached == 190)
    for process in helper_processes():
        os.kill(process, signal.SIGKILL)
    recorder.rows(20, 40)
    recorder.finish()
    (run,) = offline_runs(directory)
    assert iterations(run) == expected(40)
    assert run.exit_code == 0
    assert "continuing offline" in messages(caplog)
    assert "wandb sync" in messages(caplog)


def test_helper_process_stuck(tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture) -> None:
    """The worst case: wandb blocks for good. The run does not."""
    recorder = Recorder(tmp_path / "run", mode="online", finish_timeout=2.0)
    recorder.rows(0, 5)
    wait_until(lambda: recorder.sink._reached == 40)
    stuck = helper_processes()
    assert stuck
    try:
        for process in stuck:
            os.kill(process, signal.SIGSTOP)
        recorder.rows(5, 3000)  # these would hang if they waited for W&B
        recorder.finish()
    finally:
        for process in stuck:
            with contextlib.suppress(ProcessLookupError):  # the run has ended it
                os.kill(process, signal.SIGKILL)
    assert "wandb sync" in messages(caplog)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3000


@pytest.mark.parametrize("status", [404, 500])
def test_server_refuses_the_history(
    status: int, tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuse_stream = status
    recorder = Recorder(tmp_path / "run", mode="online", finish_timeout=8.0)  # busy machines take seconds
    recorder.rows(0, 20)
    recorder.finish()
    (run,) = offline_runs(tmp_path / "run")
    assert iterations(run) == expected(20)
    assert "wandb sync" in messages(caplog)


@pytest.mark.parametrize("trouble", ["server stopped", "helper process stuck"])
def test_process_ends_in_time(trouble: str, tmp_path: Path) -> None:
    """wandb waits for its uploads and its helper at the end of the process too."""
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from test_wandb import *\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "server = WandbServer().__enter__()\n"
        "os.environ.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=API_KEY)\n"
        "sink_module.FALLBACK = 300.0\n"
        "recorder = Recorder(pathlib.Path(sys.argv[2]), mode='online', finish_timeout=3.0)\n"
        "recorder.rows(0, 20)\n"
        "wait_until(lambda: recorder.sink._reached == 190)\n"
        "if sys.argv[3] == 'server stopped': server.stop()\n"
        "else: [os.kill(process, signal.SIGSTOP) for process in helper_processes()]\n"
        "recorder.rows(20, 200)\n"
        "recorder.finish(); print('finished', flush=True)\n"
    )
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "run"), trouble],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=own_helper(),
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "finished\n"
        assert process.wait(timeout=HUNG) == 0
        process.stdout.close()
    assert "wandb sync" in (tmp_path / "said").read_text()
    if trouble == "server stopped":
        assert iterations(offline_runs(tmp_path / "run")[0]) == expected(200)


@pytest.mark.parametrize("failure", ["refused key", "malformed key", "no server"])
def test_start_fails_to_offline(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with WandbServer() as server:
        use(monkeypatch, server.url, {"refused key": "x" * 40, "malformed key": "x y"}.get(failure, API_KEY))
        if failure == "no server":
            server.stop()
        recorder = Recorder(tmp_path / "run", mode=None, init_timeout=1.0)
        recorder.rows(0, 10)
        recorder.finish()
    (run,) = offline_runs(tmp_path / "run")
    assert iterations(run) == expected(10)
    assert run.run_id == run_id(tmp_path / "run")
    assert messages(caplog).count("continuing offline") == 1
    assert "wandb sync" in messages(caplog)


def test_nothing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(**_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(wandb, "init", broken)
    recorder = Recorder(tmp_path / "run")
    recorder.rows(0, 10)
    recorder.finish()
    assert "no space left on device; turned off" in messages(caplog)


def test_neither_start_nor_rows_wait_for_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B does not get as far as its mode before the run has started it and logged its rows."""
    logged = threading.Event()

    def choose(argument: str | None) -> str:
        assert logged.wait(HUNG), "the run waits for W&B"
        return "offline"

    monkeypatch.setattr(sink_module, "choose_mode", choose)
    recorder = Recorder(tmp_path / "run")
    recorder.rows(0, 10)
    logged.set()
    recorder.finish()
    assert iterations(offline_runs(tmp_path / "run")[0]) == expected(10)


@pytest.mark.parametrize("port", ["closed", "silent"])
def test_unreachable_server_costs_no_patience(port: str, tmp_path: Path) -> None:
    """The run neither waits for its timeouts, of hours here, nor loses a row, and its result is the last thing said.
    The server is asked once: W&B's own reports would wait for it after the result.
    """
    script = (
        "import atexit, itertools, sys, pathlib, socket; sys.path.insert(0, sys.argv[1])\n"
        "@atexit.register  # before W&B is imported, so it runs last\n"
        "def count():\n"
        "    if sys.argv[3] == 'closed': return\n"
        "    listening.setblocking(False)\n"
        "    try:\n"
        "        for asked in itertools.count(): listening.accept()\n"
        "    except BlockingIOError: print('asked', asked)\n"
        "from test_wandb import *\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "listening = socket.create_server(('127.0.0.1', 0))\n"
        "os.environ['WANDB_BASE_URL'] = 'http://127.0.0.1:%d' % listening.getsockname()[1]\n"
        "os.environ['WANDB_API_KEY'] = API_KEY\n"
        "if sys.argv[3] == 'closed': listening.close()\n"
        "sink_module.FALLBACK = 300.0\n"
        "recorder = Recorder(pathlib.Path(sys.argv[2]), mode=None, finish_timeout=3600.0, init_timeout=3600.0)\n"
        "recorder.rows(0, 43)\n"
        "recorder.finish()\n"
        "print('the result', file=sys.stderr, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "run"), port],
        capture_output=True, text=True, env=own_helper(), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = offline_runs(tmp_path / "run")
    assert iterations(run) == expected(43)
    assert run.exit_code == 0
    assert "continuing offline" in done.stderr
    assert "wandb sync" in done.stderr
    assert done.stderr.splitlines()[-1] == "the result"
    assert done.stdout == ("asked 1\n" if port == "silent" else "")
