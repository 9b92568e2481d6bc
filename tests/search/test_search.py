"""``metarun search``: what a space may be, pruning, and a search that is killed and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from metarun.cli import main
from metarun.errors import UserError
from metarun.search.space import Search

pytest.importorskip("optuna", reason="search needs optuna: pip install 'metarun[search]'")

SECTION: dict[str, Any] = {
    "trials": 5, "prune": True, "startup": 2, "objectives": None,
    "space": {"algorithm.inner_lr": {"low": 0.001, "high": 0.1, "log": True}, "model.hidden": [[8], [12, 12]]},
}  # fmt: skip
WORDS = [
    *("task=regression/sinusoid", "runner.iterations=10", "runner.validate_every=2", "runner.val_episodes=10"),
    *(
        "runner.meta_batch=4",
        "runner.test_episodes=12",
        "runner.tune_above=1000",
        "tracker.wandb=disabled",
        "runner.threads=1",
    ),
]


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    (tmp_path / "conf" / "search").mkdir(parents=True)
    path = tmp_path / "conf" / "search" / "mine.yaml"
    path.write_text(json.dumps(SECTION))
    monkeypatch.setenv("METARUN_CONF", str(tmp_path / "conf"))
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trails": 3}, "unknown key 'search.trails' - did you mean 'trials'?"),
        ({"trials": "many"}, "search.trials='many': must be an integer"),
        ({"space": {}}, "search.space is empty"),
        ({"objectives": {"mse": "small"}}, "search.objectives.mse='small': must be maximize or minimize"),
        ({"space": {"a": [1]}}, "search.space.a: a list needs at least two choices"),
        ({"space": {"a": {"low": 2, "high": 1}}}, "search.space.a: low=2 and high=1 must be numbers with low < high"),
        ({"space": {"a": {"low": 0, "high": 1, "log": True}}}, "low=0 must be greater than 0 in a logarithmic range"),
        ({"space": {"a": {"lo": 0, "high": 1}}}, "unknown key 'search.space.a.lo' - did you mean 'low'?"),
    ],
)
def test_what_a_space_may_not_be(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Search.of({**SECTION, **changed})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "search takes one space: "),
        (["mime"], "no search space 'mime' - did you mean 'mine'?"),
        (["mine", "--trails=3"], "unknown option '--trails=3' - did you mean '--trials'?"),
        (["mine", *WORDS, "algorithm=ridge"], "algorithm.inner_lr"),
        (["mine", *WORDS, "runner.validate_every=0"], "a search selects by validation"),
    ],
)
def test_one_line_for_what_cannot_be(
    words: list[str], message: str, space: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *words]) == 2
    assert message in capsys.readouterr().err


def test_learners_that_are_not_trained_are_compared() -> None:
    """Here by how they are fine-tuned on each task."""
    words = ["task=regression/sinusoid", "algorithm=maml", "runner.iterations=0", "algorithm.test_steps=1", *WORDS[2:]]
    assert main(["search", "rates", *words, "runner.val_episodes=10", "--trials", "3"]) == 0
    folder = Path("outputs/search/sinusoid-maml-rates")
    (best,) = json.loads((folder / "search.json").read_text())["best"]
    rows = [json.loads((folder / "trials" / f"{n:04d}" / "metrics.jsonl").read_text()) for n in range(3)]
    assert [row["iteration"] for row in rows] == [0, 0, 0]
    assert best["mse"] == pytest.approx(min(row["val/mse"] for row in rows))
    assert len({row["val/mse"] for row in rows}) == 3


def test_the_best_by_validation_is_tested_alone(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "mine", *WORDS]) == 0
    folder = Path("outputs/search/sinusoid-maml-mine")
    result = json.loads((folder / "search.json").read_text())
    assert sum(result["trials"].values()) == 5
    assert (folder / "search.png").stat().st_size > 1000
    runs = sorted((folder / "trials").iterdir())
    assert len(runs) == 5
    finished = {}
    for run in runs:
        if (run / "summary.json").is_file():
            summary = json.loads((run / "summary.json").read_text())
            assert summary["test"] == {}
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            finished[int(run.name)] = [row["val/mse"] for row in rows if "val/mse" in row][-1]
        else:
            assert json.loads((run / "status.json").read_text())["state"] == "pruned"
    (best,) = result["best"]
    assert best["trial"] == min(finished, key=finished.__getitem__)
    assert best["mse"] == pytest.approx(finished[best["trial"]])
    assert result["test"]["mse"]["n"] == 12
    assert result["iterations"] <= result["iterations_without_pruning"] == 50
    assert set(best["values"]) == set(SECTION["space"])

    # Again: nothing is left to do. With more trials: they alone are made. Another space: another folder.
    capsys.readouterr()
    assert main(["search", "mine", *WORDS]) == 0
    assert "metarun: trial" not in capsys.readouterr().err
    assert main(["search", "mine", *WORDS, "--trials", "6"]) == 0
    assert len(list((folder / "trials").iterdir())) == 6
    capsys.readouterr()
    space.write_text(json.dumps({**SECTION, "space": {"algorithm.inner_lr": [0.1, 0.2]}}))
    assert main(["search", "mine", *WORDS]) == 2
    assert "holds another search" in capsys.readouterr().err


def test_a_small_space_is_tried_once_each(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"algorithm.inner_lr": [0.1, 0.01], "algorithm.inner_steps": {"low": 1, "high": 2}}
    space.write_text(json.dumps({**SECTION, "trials": 20, "prune": False, "space": few}))
    short = ["runner.iterations=2", "runner.plots=false", "algorithm.test_steps=1"]
    assert main(["search", "mine", *WORDS, *short]) == 0
    runs = sorted(Path("outputs/search/sinusoid-maml-mine/trials").iterdir())
    tried = [yaml.safe_load((run / "config.yaml").read_text())["algorithm"] for run in runs]
    assert {(each["inner_lr"], each["inner_steps"]) for each in tried} == {(0.1, 1), (0.1, 2), (0.01, 1), (0.01, 2)}
    assert len(tried) == 4
    assert "4 complete" in capsys.readouterr().out


def test_combinations_are_those_of_spaces_that_have_few() -> None:
    few = {"a": [1, 2], "b": {"low": 1, "high": 5, "step": 2}}
    assert Search.of({**SECTION, "trials": 6, "space": few}).combinations()[:2] == [{"a": 0, "b": 1}, {"a": 0, "b": 3}]
    assert len(Search.of({**SECTION, "trials": 6, "space": few}).combinations()) == 6
    assert Search.of({**SECTION, "trials": 5, "space": few}).combinations() == []
    assert Search.of({**SECTION, "space": {"a": {"low": 0.1, "high": 0.2}}}).combinations() == []


def test_several_objectives(space: Path) -> None:
    space.write_text(json.dumps({**SECTION, "objectives": {"mse": "minimize", "parameters": "minimize"}}))
    assert main(["search", "mine", *WORDS, "--trials=3", "runner.iterations=4"]) == 0
    result = json.loads(Path("outputs/search/sinusoid-maml-mine/search.json").read_text())
    assert result["trials"] == {"complete": 3}
    assert all({"mse", "parameters"} <= set(best) for best in result["best"])


def test_a_trial_whose_validation_diverges_is_given_up(space: Path) -> None:
    """No inner step is taken in meta-training, where nothing can diverge."""
    space.write_text(json.dumps({**SECTION, "trials": 4, "space": {"algorithm.inner_lr": [0.01, 1e30]}}))
    words = ["algorithm=pretrain", "runner.iterations=4", "runner.validate_every=4"]
    assert main(["search", "mine", *WORDS, *words]) == 0
    result = json.loads(Path("outputs/search/sinusoid-pretrain-mine/search.json").read_text())
    assert set(result["trials"]) == {"complete", "pruned"}
    assert all(best["values"] == {"algorithm.inner_lr": 0.01} for best in result["best"])


@pytest.mark.slow
def test_as_many_workers_as_trials(space: Path) -> None:
    """Each worker is told the number of trials, whichever numbers the command line has."""
    assert main(["search", "mine", *WORDS, "runner.iterations=4", "--trials", "2", "--workers", "2"]) == 0
    result = json.loads(Path("outputs/search/sinusoid-maml-mine/search.json").read_text())
    assert sum(result["trials"].values()) == 2


@pytest.mark.slow
def test_killed_workers_lose_and_double_nothing(space: Path) -> None:
    """Two workers are killed in mid-trial; what they held is taken up again, from its checkpoint."""
    words = [*WORDS, "runner.iterations=400", "runner.validate_every=100", "runner.checkpoint_seconds=0"]
    command = [sys.executable, "-m", "metarun", "search", "mine", *words, "--trials=3", "--workers=2"]
    trials = Path("outputs/search/sinusoid-maml-mine/trials")
    process = subprocess.Popen(command, env=dict(os.environ), start_new_session=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while time.monotonic() < end and sum(f.stat().st_size > 0 for f in trials.glob("*/metrics.jsonl")) < 2:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(trials.glob("*/summary.json")), "killed too late to show anything"
    held = {path.parent.parent.name for path in trials.glob("*/checkpoints/last.pt")}
    assert held == {"0000", "0001"}
    assert subprocess.run(command, env=dict(os.environ), stdout=subprocess.DEVNULL, check=False).returncode == 0
    result = json.loads(trials.with_name("search.json").read_text())
    assert sum(result["trials"].values()) == len(list(trials.iterdir())) == 3
    for run in trials.iterdir():
        rows = [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert rows == sorted(rows)
    log = (trials / "0000" / "metarun.log").read_text()
    assert "continuing after iteration" in log


def test_what_a_killed_worker_locked_is_free(space: Path) -> None:
    """A link such as Optuna's own lock leaves when its holder is killed: the next one would wait for ever."""
    words = ["search", "mine", *WORDS, "--workers=1"]
    assert main([*words, "--trials=1"]) == 0
    folder = Path("outputs/search/sinusoid-maml-mine")
    (folder / "journal.log.lock").symlink_to("outputs/gone")
    signal.alarm(120)
    assert main([*words, "--trials=2"]) == 0
    signal.alarm(0)
    assert sum(json.loads((folder / "search.json").read_text())["trials"].values()) == 2


def test_a_space_of_the_config_dir(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METARUN_CONF")
    words = ["search", "mine", *WORDS, "--trials=1", "algorithm=maml"]
    assert main(words) == 2
    assert main([*words, "--config-dir", str(space.parents[1])]) == 0
