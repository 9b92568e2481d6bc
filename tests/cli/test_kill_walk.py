"""Forty SIGKILLs at random moments, over learners of every family: each resumed run ends as the undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from metarun.cli import main
from tests.cli.test_kill import only
from tests.test_contracts import choices, own_data  # noqa: F401

CELLS = [
    ("regression/sinusoid", "imaml", "mlp"),
    ("regression/sinusoid", "reptile", "mlp"),
    ("regression/sinusoid", "lslr", "mlp"),
    ("vision/glyphs", "matching_fce", "conv4"),
    ("vision/glyphs", "feat", "conv4"),
    ("vision/glyphs", "laplacianshot", "conv4"),
    ("regression/gp", "anp", "mlp"),
    ("vision/glyphs", "snail", "conv4"),
    ("nlp/formal_languages", "in_context_language", "symbols"),
    ("vision/generation", "flow", "set_unet"),
    ("rl/navigation", "maml_ppo", "mlp_policy"),
    ("rl/bandit", "varibad", "belief_policy"),
    ("rl/mdp", "rl2_trpo", "gru_policy"),
    ("rl/pendulum", "pearl", "context_policy"),
    ("tabular/prior", "prior_fitted", "table_transformer"),
]
LENGTH = ["runner.iterations=24", "runner.validate_every=7", "runner.val_episodes=4", "runner.test_episodes=4",
          "runner.log_every=3", "runner.checkpoint_seconds=0", "runner.tune_above=null"]  # fmt: skip
KILLS = 40


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


def same(run: Path, undisturbed: Path) -> bool:
    """Whether rows, parameters and optimizers are the same to the bit."""
    states = [torch.load(r / "checkpoints/last.pt", weights_only=True)["algorithm"] for r in (run, undisturbed)]
    rows = [(r / "metrics.jsonl").read_bytes() for r in (run, undisturbed)]
    return rows[0] == rows[1] and repr_of(states[0]) == repr_of(states[1])


def repr_of(state: object) -> object:
    """The state with tensors as bytes, so that it can be compared."""
    if isinstance(state, torch.Tensor):
        return (state.dtype, tuple(state.shape), state.contiguous().numpy().tobytes())
    if isinstance(state, dict):
        return {key: repr_of(value) for key, value in state.items()}
    return [repr_of(value) for value in state] if isinstance(state, (list, tuple)) else state


@pytest.mark.slow
def test_forty_kills(
    tmp_path: Path,
    own_data: dict[str, list[str]],  # noqa: F811
    request: pytest.FixtureRequest,
) -> None:
    moments = random.Random(1)
    kills = attempts = 0
    undisturbed: dict[int, Path] = {}
    while kills < KILLS:
        number = attempts % len(CELLS)
        words = [*choices(CELLS[number], own_data, request), *LENGTH]
        if number not in undisturbed:
            root = tmp_path / f"whole{number}"
            assert ended(start([*words, f"runner.directory={root}"])) == 0, CELLS[number]
            undisturbed[number] = only(root)
        root = tmp_path / f"killed{attempts}"
        attempts += 1
        rows = moments.randrange(len((undisturbed[number] / "metrics.jsonl").read_bytes().splitlines()))
        process = start([*words, f"runner.directory={root}"])
        while (alive := os.waitpid(process, os.WNOHANG) == (0, 0)) and not reached(root, rows):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        if alive:
            os.kill(process, signal.SIGKILL)
        if not alive or ended(process) != -signal.SIGKILL:
            continue  # it had ended
        kills += 1
        run = only(root)
        assert ended(start(["resume", str(run)])) == 0, (CELLS[number], run)
        assert same(run, undisturbed[number]), (CELLS[number], run)
        print(f"kill {kills}: {CELLS[number][1]} after {rows} rows: identical", flush=True)


def reached(root: Path, rows: int) -> bool:
    files = list(root.glob("*/*/metrics.jsonl"))
    configured = bool(list(root.glob("*/*/meta.json")))
    return configured and bool(files) and files[0].read_bytes().count(b"\n") >= rows
