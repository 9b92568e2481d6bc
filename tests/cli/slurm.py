"""A stand-in for SLURM on one machine: ``sbatch``, ``srun``, ``scontrol requeue`` and ``sacct``, as submitit has them.

Jobs run at once; one is run again as long as it asks for it. It says nothing of a real cluster's queues and networks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scontrol", "sacct")


def install(folder: Path) -> Path:
    """Put the commands into ``folder``, which is to be first on the PATH; returns where jobs' states are kept."""
    folder.mkdir()
    for name in COMMANDS:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {folder} {name} "$@"\n')
        script.chmod(0o755)
    return folder


def sbatch(folder: Path, script: str) -> None:
    """Start every job of the array, each watched by a process of its own."""
    content = Path(script).read_text()
    (line,) = (line for line in content.splitlines() if "--array=" in line)
    (folder / "submitted").write_text(content)
    for index in range(int(line.split("=0-")[1].split("%")[0]) + 1):
        (folder / f"7_{index}.state").write_text("RUNNING")
        subprocess.Popen(
            [sys.executable, __file__, str(folder), "watch", script, str(index)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    print("Submitted batch job 7")


def watch(folder: Path, script: str, index: str) -> None:
    env = {
        "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": index, "SLURM_JOB_ID": str(70 + int(index)),
        "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    }  # fmt: skip
    asked = folder / f"7_{index}.requeue"
    while True:
        code = subprocess.run(["bash", script], env={**os.environ, **env}).returncode
        if not asked.exists():
            break
        asked.unlink()
    (folder / f"7_{index}.state").write_text("FAILED" if code else "COMPLETED")


def srun(folder: Path, *words: str) -> None:
    """``srun --unbuffered --output FILE --error FILE command``."""
    rest = [word for word in words if word != "--unbuffered"]
    for number in (1, 2):
        _, pattern, *rest = rest
        for key, value in (("%A", "7"), ("%a", os.environ["SLURM_ARRAY_TASK_ID"]), ("%t", "0")):
            pattern = pattern.replace(key, value)
        Path(pattern).parent.mkdir(parents=True, exist_ok=True)
        os.dup2(os.open(pattern, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.execvp(rest[0], rest)


def scontrol(folder: Path, verb: str, job: str) -> None:
    assert verb == "requeue"
    (folder / f"{job}.requeue").touch()


def sacct(folder: Path, *_: str) -> None:
    print("JobID|State|NodeList")
    for state in sorted(folder.glob("*.state")):
        print(f"{state.stem}|{state.read_text()}|here")


if __name__ == "__main__":
    globals()[sys.argv[2]](Path(sys.argv[1]), *sys.argv[3:])
