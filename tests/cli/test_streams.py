"""What a run prints decides nothing: it goes on without a reader, a terminal, an open descriptor or a free disk."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metarun.streams import Surviving
from tests.cli.test_kill import environment
from tests.cli.waiting import wait_for
from tests.slow import slow_but

SHORT = ["task=regression/gp", "algorithm=cnp", "model=mlp", "model.hidden=[4]", "runner.meta_batch=2",
         "runner.iterations=60", "runner.validate_every=20", "runner.val_episodes=4", "runner.test_episodes=4",
         "runner.log_every=1", "runner.plots=false", "runner.tune_above=null"]  # fmt: skip
COMMAND = " ".join([sys.executable, "-m", "metarun", *SHORT])

LINES = {
    "reader gone": f"{COMMAND} 2>&1 | head -n 1",
    "closed": f"{COMMAND} >&- 2>&- <&-; echo $?",
    "disk full": f"{COMMAND} >/dev/full 2>/dev/full; echo $?",
}


def state(root: Path) -> str:
    (status,) = root.glob("outputs/*/*/status.json")
    return str(json.loads(status.read_text())["state"])


@pytest.mark.parametrize("line", slow_but([*LINES.values()][:1], LINES.values()), ids=LINES)
def test_a_run_goes_on_to_its_end(line: str, tmp_path: Path) -> None:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment(), timeout=600)
    assert state(tmp_path) == "finished"
    assert done.stdout.strip() == "0" or "|" in line
    (run,) = tmp_path.glob("outputs/*/*")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 64
    assert all(json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines())


def test_a_closed_terminal_stops_a_run_after_a_checkpoint(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    words = [*COMMAND.split(), "runner.iterations=1000000"]
    process = subprocess.Popen(
        words, stdin=slave, stdout=slave, stderr=slave, env=environment(), start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )  # fmt: skip
    os.close(slave)
    try:
        wait_for(lambda: any(f.stat().st_size for f in tmp_path.glob("outputs/*/*/metrics.jsonl")), process)
        os.close(master)
        for _ in range(2):  # from the terminal, and from the shell that ran in it
            process.send_signal(signal.SIGHUP)
        assert process.wait(300) == 128 + signal.SIGHUP
    finally:
        process.kill()
    assert state(tmp_path) == "interrupted"


def test_listings_end_well_for_a_reader_that_had_enough_and_fail_on_a_full_disk() -> None:
    listing = f"{sys.executable} -m metarun list algorithms"
    said = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {listing} | head -n 1 && {listing} > /dev/full"],
        capture_output=True, text=True, env=environment(), timeout=300,
    )  # fmt: skip
    assert said.stdout == "control\n"
    assert said.returncode == 1
    assert said.stderr == "metarun: cannot write to standard output: No space left on device\n"


def test_surviving_keeps_the_first_failure(tmp_path: Path) -> None:
    file = (tmp_path / "out").open("w")
    stream = Surviving(file)  # type: ignore[arg-type]
    assert stream.write("kept\n") == 5
    file.close()
    assert stream.write("lost\n") == 5
    stream.flush()
    assert isinstance(stream.error, ValueError)
    assert (tmp_path / "out").read_text() == "kept\n"
    assert Surviving(None).write("nowhere") == 7
    assert not Surviving(None).isatty()
