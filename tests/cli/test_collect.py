"""``metarun collect``, and learning from what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from metarun.cli import main

ROOM = ["task=rl/darkroom", "task.size=3", "task.horizon=5", "task.episodes=2", "task.held_out=2"]
SOURCE = ["model=mlp_policy", "model.hidden=[8]", "algorithm=pretrain_trpo", "algorithm.rollouts=4",
          "runner.iterations=3", "runner.threads=1"]  # fmt: skip
QUICK = ["runner.iterations=2", "runner.meta_batch=3", "runner.validate_every=0", "runner.test_episodes=4",
         "runner.plots=false", "runner.device=cpu", "runner.threads=1", "tracker.wandb=disabled"]  # fmt: skip


def test_histories_are_collected_and_distilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["collect", *ROOM, *SOURCE, "--tasks", "2", "--out", "h"]) == 0
    assert "collected  2 histories" in capsys.readouterr().out
    first = np.load("h/00000.npy")
    assert first.shape == (4, 15, 6)
    assert not np.array_equal(first[:, :5, 2], first[:, 5:10, 2])
    # The same command continues: what is there stays, and what is missing is as it was.
    second = Path("h/00001.npy").read_bytes()
    Path("h/00001.npy").unlink()
    assert main(["collect", *ROOM, *SOURCE, "--tasks", "2", "--out", "h"]) == 0
    assert "collected  1 histories in h; 1 were there" in capsys.readouterr().out
    assert Path("h/00001.npy").read_bytes() == second

    words = [*ROOM, "algorithm=ad", "algorithm.context=5", "model=transformer_policy", "model.width=8", "model.heads=2"]
    assert main([*words, "algorithm.histories=h", *QUICK]) == 0
    run = next(Path("outputs").glob("*/*/summary.json")).parent
    assert json.loads((run / "summary.json").read_text())["protocol"]["context"] == 5
    assert main(["resume", str(run), "runner.iterations=3"]) == 0
    Path("h").rename("elsewhere")
    assert main(["eval", str(run), "task.episodes=5"]) == 0  # needs no histories
    capsys.readouterr()

    for wrong, why in (
        ([*ROOM, *SOURCE], "--out is missing"),
        (["task=regression/sinusoid", "--out", "x"], "leaves no learning history"),
        ([*ROOM, "algorithm=random", "--out", "x"], "leaves no learning history"),
        ([*ROOM, *SOURCE, "runner.iterations=0", "--out", "x"], "needs outer steps"),
        ([*ROOM, *SOURCE, "--out", "elsewhere/histories.json"], "no folder can be made"),
        ([*ROOM, *SOURCE, "--tasks", "0", "--out", "x"], "at least 1"),
    ):
        assert main(["collect", *wrong]) == 2
        assert why in capsys.readouterr().err
    assert main([*words, *QUICK, "name=none"]) == 2
    assert "metarun collect" in capsys.readouterr().err
