"""Forty SIGKILLs at random moments, over learners of every family: each resumed run ends as the undisturbed one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.cli.test_kill import ended, killed_after, only, start
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
        if not killed_after(rows, words, root, 0.03):
            continue  # it had ended
        kills += 1
        run = only(root)
        assert ended(start(["resume", str(run)])) == 0, (CELLS[number], run)
        assert same(run, undisturbed[number]), (CELLS[number], run)
        print(f"kill {kills}: {CELLS[number][1]} after {rows} rows: identical", flush=True)
