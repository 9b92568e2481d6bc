"""``metarun reproduce`` on a recipe of the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metarun.cli import main
from metarun.config.check import check
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.reports.reproductions import recipes, record, sha256
from metarun.tracking.rundir import RunDirectory

RECIPE = """# @package _global_
defaults:
  - override /task: rl/bandit
model: {hidden: 4}
runner:
  {iterations: 4, meta_batch: 8, validate_every: 2, val_episodes: 4, test_episodes: 8, tune_above: 1000, plots: false}
paper:
  title: T
  arxiv: '1'
  where: table 1
  verified: recalled
  iterations: 5
  claims:
    good: {metric: return, step: 1, value: -100.0}
    bad: {metric: return, value: 100.0}
"""


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conf = tmp_path / "conf" / "experiment" / "mine"
    conf.mkdir(parents=True)
    (conf / "tiny.yaml").write_text(RECIPE)
    monkeypatch.setenv("METARUN_CONF", str(tmp_path / "conf"))


def result() -> dict[str, Any]:
    return json.loads(Path("outputs/reproduced/mine--tiny.json").read_text())


@pytest.mark.usefixtures("recipe")
def test_runs_are_made_kept_and_resumed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    how = ["tracker.wandb=disabled", "runner.threads=1"]
    assert main(["experiment=mine/tiny", "seed=0", *how]) == 0
    (zero,) = Path("outputs/mine-tiny").iterdir()
    before = json.loads((zero / "summary.json").read_text())
    (zero / "summary.json").unlink()  # a missing test is made from the last checkpoint

    words = ["reproduce", "mine/tiny", *how]
    assert main([*words, "--seeds", "2", "--jobs=2"]) == 1
    first = result()
    assert first["claims"]["bad"]["seeds"]["0"]["mean"] == before["test"]["return"]["mean"]
    printed = capfd.readouterr().out
    assert "budget not reached" in printed
    assert "memory" in printed
    assert "consistent" in printed
    assert "verdict" not in first, "a verdict is derived from what was found, never stored"
    assert set(first["claims"]["bad"]["seeds"]) == set(first["commits"]) == {"0", "1"}
    assert not first["clean"], "the recipe is no part of the project"
    assert "not counted" in printed
    assert first["recipe"] == {"mine/tiny": RECIPE}
    assert first["configuration"]["runner"]["iterations"] == 4
    assert first["configuration_sha256"] == sha256(first["configuration"])
    assert first["digest"] == sha256({key: value for key, value in first.items() if key != "digest"})
    runs = sorted(Path("outputs/mine-tiny").iterdir())
    assert [run.name[-2:] for run in runs] in (["s0", "s1"], ["s1", "s0"])

    assert main(["list", "experiments", "-v"]) == 0
    shown = capfd.readouterr().out
    ours = sum(seed["mean"] for seed in first["claims"]["good"]["seeds"].values()) / 2
    assert f"return after 1: (-100, from memory), ours {ours:.4g}" in shown
    assert "mine/tiny" in shown
    assert "uncommitted" in shown
    assert "proto_omniglot" not in shown

    other = compose(["experiment=mine/tiny", "name=mine-tiny", "algorithm.outer_lr=1", "tracker.wandb=disabled"]).config
    with pytest.raises(UserError, match=r"seed 0.* is not a run of mine/tiny"):
        record("mine/tiny", other, {0: RunDirectory.open(runs[0])})

    monkeypatch.setattr("sys.executable", "/none")  # finished runs stand: no other is started
    assert main([*words, "--seeds", "2"]) == 1
    assert sorted(Path("outputs/mine-tiny").iterdir()) == runs
    assert result()["claims"] == first["claims"]


@pytest.mark.usefixtures("recipe")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "reproduce takes one recipe, such as"),
        (["mine/tny"], "no recipe 'mine/tny' with a paper - did you mean 'mine/tiny'?"),
        (
            ["mine/tiny", "algorithm.outer_lr=1"],
            "reproduce cannot change 'algorithm.outer_lr', which is part of the protocol",
        ),
        (["mine/tiny", "--seeds", "none"], "--seeds needs an integer of at least 1, not 'none'"),
        (["mine/tiny", "--sedes=1"], "unknown option '--sedes=1' - did you mean '--seeds'?"),
    ],
)
def test_one_line_for_what_cannot_be(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("recipe")
def test_recipes_share_what_they_build_on(tmp_path: Path) -> None:
    mine = tmp_path / "conf" / "experiment" / "mine"
    shared, claims = RECIPE.split("  claims:\n")
    (mine / "shared.yaml").write_text(shared)
    own = "# @package _global_\ndefaults: [/experiment/mine/shared]\npaper:\n  where: table 2\n  claims:\n"
    (mine / "own.yaml").write_text(own + claims)
    papers = recipes()
    assert "mine/shared" not in papers
    assert (papers["mine/own"].title, papers["mine/own"].where) == ("T", "table 2")
    assert compose(["experiment=mine/own"]).config["paper"]["title"] == "T"
    check({**compose(["experiment=mine/shared"]).config, "name": "x"})


@pytest.mark.usefixtures("recipe")
def test_a_failed_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    refusing = tmp_path / "python"
    refusing.write_text("#!/bin/sh\nexit 2\n")
    refusing.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(refusing))
    assert main(["reproduce", "mine/tiny", "--seeds=2", "tracker.wandb=disabled"]) == 1
    assert "2 of 2 runs failed: seed 0 (exit 2), seed 1 (exit 2)" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("recipe")
def test_smoke_measures_every_claim_and_records_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "mine/tiny", "--smoke", "runner.threads=1"]
    assert main(words) == 0
    told = capfd.readouterr()
    assert told.out == "mine/tiny: works; it measures return after 1, return; nothing recorded\n"
    assert "trying two iterations of mine/tiny" in told.err
    assert "run directory" not in told.err, "it is temporary, and gone"
    assert not Path("outputs").exists()
    recipe = tmp_path / "conf" / "experiment" / "mine" / "tiny.yaml"
    recipe.write_text(RECIPE.replace("metric: return, value", "metric: accuracy, value"))
    assert main(words) == 2
    assert "paper.claims.bad: the run has no accuracy" in capfd.readouterr().err
