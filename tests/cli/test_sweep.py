"""A sweep of 8 runs, one of which fails: the others finish, it is named, and a second try does it alone."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from metarun.cli import main, sweep
from metarun.config import compose as compose_module
from metarun.config.compose import Composed, named
from metarun.errors import RunFailed, UserError
from metarun.runs.history import runs_of

WORDS = [
    "-m", "task=regression/sinusoid,regression/gp", "algorithm=maml,cnp", "seed=0,1", "runner.iterations=3",
    "runner.validate_every=3", "runner.val_episodes=8", "runner.test_episodes=16", "runner.plots=false",
    "runner.tune_above=null", "model=mlp", "model.hidden=[8]", "runner.device=cpu",
]  # fmt: skip


TINY = ["runner.test_episodes=2", "runner.plots=false", "model=mlp", "model.hidden=[8]", "runner.device=cpu"]


class Tables(HTMLParser):
    """The cells of a page's tables, a list of rows each."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self._cell = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[-1][-1][-1] += data


def test_one_of_eight_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metarun.training import experiment

    train = experiment.meta_train

    def fragile(*given: Any) -> None:
        directory = given[-1].outputs.directory.path
        if (directory.parent.name, directory.name[-3:]) == ("gp-cnp", "_s1"):
            raise RunFailed("the disk is full")
        train(*given)

    monkeypatch.setattr(experiment, "meta_train", fragile)
    assert main(WORDS) == 1
    told = capsys.readouterr().err
    assert "1 of 8 runs failed" in told
    assert "metarun: run 8 of 8: " in told
    (named,) = (line for line in told.split("runs failed:")[1].splitlines() if "log: " in line)
    assert all(word in named for word in ("task=regression/gp", "algorithm=cnp", "seed=1", "the disk is full"))
    assert "the disk is full" in Path(named.split("log: ")[1].strip()).read_text()
    first = set(tmp_path.glob("outputs/*/*/summary.json"))
    assert len(first) == 7

    monkeypatch.setattr(experiment, "meta_train", train)
    assert main(WORDS) == 0
    assert capsys.readouterr().err.count("metarun: done before: ") == 7
    (added,) = set(tmp_path.glob("outputs/*/*/summary.json")) - first
    assert (added.parents[1].name, added.parent.name[-3:]) == ("gp-cnp", "_s1")

    (*_, sweep) = sorted(tmp_path.glob("outputs/multirun/*"))
    assert main(["report", str(sweep), "out=page"]) == 0
    page = Tables()
    page.feed(Path("page/report.html").read_text())
    cells = [row for table in page.tables for row in table]
    for learner in ("maml", "cnp"):
        assert sum(row[0] == learner for row in cells) >= 2, learner  # a row in the table of each task


def test_a_launcher_that_does_not_start_leaves_a_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a machine that is too busy for Ray."""

    def refuse(*_: Any) -> None:
        raise TimeoutError("The current node timed out during startup.")

    monkeypatch.setattr(sweep, "launch", refuse)
    monkeypatch.setattr(sweep, "_wait", lambda directory: None)
    assert main(["-m", "hydra/launcher=basic", "task=regression/sinusoid", "seed=0,1", *TINY]) == 1
    *_, why, way = capsys.readouterr().err.strip().splitlines()
    assert why == "(The current node timed out during startup.)"
    assert way == "the launcher did not start; without hydra/launcher=basic the runs are made here, one by one"


def test_every_combination_is_checked_before_the_first_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []

    def composed(words: list[str]) -> Composed:
        return Composed({"name": "x", "seed": int(words[0].removeprefix("seed="))}, {})

    def check(config: dict[str, Any]) -> None:
        checked.append(config["seed"])
        if config["seed"] == 149:
            raise UserError("the last one is wrong")

    monkeypatch.setattr(sweep, "compose", composed)
    monkeypatch.setattr(sweep, "named", lambda composed: composed.config)
    monkeypatch.setattr(sweep, "check", check)
    assert main(["-m", "seed=" + ",".join(map(str, range(150)))]) == 2
    assert checked == [*range(150)]
    assert not Path("outputs").exists()


def test_what_is_done_is_not_launched_and_equal_options_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-m", "task=regression/sinusoid", "algorithm=scratch", "algorithm.test_steps=1,2", "seed=0,1", *TINY]
    assert main(words) == 0
    done = {path.parent for path in Path("outputs").glob("*/*/summary.json")}
    assert len(done) == 4
    composed: list[Any] = []
    compose_with = compose_module.compose_with

    def counted(hydra: Any, words: Any) -> Any:
        composed.append([*words])
        return compose_with(hydra, words)

    monkeypatch.setattr(compose_module, "compose_with", counted)
    compose_module._hydras.cache_clear()
    monkeypatch.setattr(sweep, "launch", lambda *_: pytest.fail("launched"))
    assert main(words) == 0
    assert composed.count(composed[0]) == 1
    assert len(composed) == 2  # the options of all runs, and the folder of the sweep
    launched: list[Any] = []
    monkeypatch.setattr(sweep, "launch", lambda settings, jobs, job, first: launched.append((jobs, first)))
    assert main([*words[:-1], "seed=0,1,2", words[-1]]) == 1  # nothing ran
    ((jobs, first),) = launched
    assert first == 4
    assert [[word for word in job if word.startswith("seed=")] for job in jobs] == [["seed=2"], ["seed=2"]]


def test_a_changed_run_is_read_again(tmp_path: Path) -> None:
    words = ["task=regression/sinusoid", "algorithm=scratch", *TINY]
    assert main(words) == 0
    config = named(compose_module.compose(words))
    (run,) = runs_of(config)
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("test_episodes: 2", "test_episodes: 16"))
    assert runs_of(config) == []
    (run.path / "config.yaml").write_text(text)
    assert len(runs_of(config)) == 1
