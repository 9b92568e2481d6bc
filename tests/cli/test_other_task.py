"""``metarun eval RUN task=OTHER``: a learner on the tasks of another family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metarun
from metarun.cli import main
from metarun.errors import UserError

QUICK = ["runner.iterations=1", "runner.validate_every=0", "runner.test_episodes=3", "runner.plots=false",
         "runner.threads=1", "runner.meta_batch=1", "runner.device=cpu", "tracker.wandb=disabled"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for c in range(9):
        (root / f"c{c}").mkdir()
        for i in range(6):
            Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(root / f"c{c}" / f"{i}.png")
    return root


def run_of(root: Path, *words: str) -> Path:
    assert main([*words, *QUICK, "name=run", f"runner.directory={root}"]) == 0
    (run,) = root.glob("run/*")
    return run


@pytest.mark.parametrize("algorithm", ["protonet", "simpleshot"])
def test_a_learner_of_letters_on_photographs(
    algorithm: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=vision/glyphs", "task.way=2", "task.query=4", "task.test_ways=[4]", f"algorithm={algorithm}"]
    # These data are too small to meta-train on: nine classes, of which seven are to be trained on.
    run = run_of(tmp_path, *words, "algorithm.train_way=9", "model.width=4")
    grey = ["task=vision/folder", f"task.root={photos}", "task.colour=grey", "task.size=28"]
    capsys.readouterr()
    assert main(["eval", str(run), *grey]) == 0
    said = capsys.readouterr()
    assert f"data={photos.name}, way=2, shot=1, query=4" in said.out
    assert "task.test_ways is [] instead of [4]: " in said.err, "the run's further ways do not fit these data"
    (stored,) = run.glob("evaluations/*.json")
    result = json.loads(stored.read_text())
    assert result["changes"]["task"] == "vision/folder"
    assert result["data"]["other_task"] == "vision/folder"
    assert "seen_classes" not in result["data"]
    assert result["test"]["accuracy"]["n"] == 3
    with pytest.raises(UserError, match=r"task.test_ways=\[3\]: way=3 is more than the 2 classes"):
        metarun.evaluate(run, *grey, "task.test_ways=[3]")
    with pytest.raises(UserError, match="reads images of 1 channel, and these have 3") as error:
        metarun.evaluate(run, "task=vision/folder", f"task.root={photos}", "task.size=28")
    assert "\n" not in str(error.value)


def test_inputs_of_another_size_have_one_line(tmp_path: Path, photos: Path) -> None:
    run = run_of(tmp_path, "task=vision/glyphs", "task.way=2", "task.query=4", "task.test_ways=[]", "algorithm=maml",
                 "algorithm.test_steps=1", "model.width=4")  # fmt: skip
    with pytest.raises(UserError, match=r"this run's learner does not fit: .* use images of the run's own task\.size"):
        metarun.evaluate(run, "task=vision/folder", f"task.root={photos}", "task.colour=grey", "task.size=60")


def test_the_runs_own_family_is_no_change(tmp_path: Path) -> None:
    run = run_of(tmp_path, "task=regression/sinusoid", "algorithm=maml", "task.shot=7")
    own = metarun.evaluate(run, "task=regression/sinusoid")
    assert own["changes"] == {}
    assert own["protocol"]["shot"] == 7
    assert own["test"] == json.loads((run / "summary.json").read_text())["test"]
    other = metarun.evaluate(run, "task=regression/gp", "runner.test_episodes=4")
    assert other["protocol"]["shot"] == [3, 7]  # the largest is the run's
    assert other["changes"] == {"task": "regression/gp", "runner.test_episodes": 4}
