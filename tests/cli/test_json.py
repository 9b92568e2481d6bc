"""``--json``: standard output is one JSON value without NaN, whatever else is said goes to standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metarun.cli import main
from metarun.cli.listing import AXES, LISTS
from metarun.config.catalogue import catalogue
from metarun.config.check import misfit

QUICK = ["task=regression/sinusoid", "runner.iterations=2", "runner.test_episodes=2", "runner.val_episodes=2",
         "runner.plots=false", "tracker.wandb=disabled"]  # fmt: skip


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not standard JSON")


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(["list"], capsys)
    for plural, group in LISTS.items():
        assert [each["name"] for each in found[plural]] == [each.name for each in catalogue(group)]
    sinusoid = next(each for each in found["recipes"] if each["name"] == "maml/sinusoid")
    assert (sinusoid["task"], sinusoid["algorithm"]) == ("regression/sinusoid", "maml")
    assert {"status", "arxiv", "claims"} <= set(sinusoid)


def test_filters_leave_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {group: {each.name: each.attributes for each in catalogue(group)} for group in AXES}
    (found,) = answer(["list", "models", "task=vision/omniglot", "algorithm=maml"], capsys).values()
    omniglot, maml = facts["task"]["vision/omniglot"], facts["algorithm"]["maml"]
    fitting = [name for name, model in facts["model"].items() if not misfit(omniglot, model, maml)]
    assert [each["name"] for each in found] == fitting
    (found,) = answer(["list", "tasks", "kind=control"], capsys).values()
    assert [each["name"] for each in found] == [n for n, task in facts["task"].items() if task["kind"] == "control"]
    (found,) = answer(["list", "recipes", "task=rl/bandit", "algorithm=rl2"], capsys).values()
    assert {each["name"].partition("/")[0] for each in found} == {"rl2", "snail"}
    table = answer(["list", "combinations", "algorithm=protonet"], capsys)
    assert {row["algorithm"] for row in table} == {"protonet"}
    assert table[0]["models"]


def test_statuses_split_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = answer(["list", "recipes"], capsys).values()
    status = found[0].get("status") or next(each["status"] for each in found if "status" in each)
    (chosen,) = answer(["list", "recipes", f"status={status}"], capsys).values()
    assert [each["name"] for each in chosen] == [each["name"] for each in found if each.get("status") == status]


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    (maml,) = answer(["show", "maml"], capsys)
    assert maml["keys"]["algorithm"]["inner_lr"] == 0.4
    run = answer(["show", "maml", "task=regression/sinusoid", "algorithm.inner_steps=3"], capsys)
    assert run["choices"]["task"] == "regression/sinusoid"
    assert run["config"]["algorithm"]["inner_steps"] == 3
    assert "command" in run["origins"]["algorithm.inner_steps"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(["doctor"], capsys)
    assert found["healthy"] is True
    assert {"torch", "python"} <= {each["name"] for each in found["findings"]}


def test_eval_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "-q"]) == 0
    said = capsys.readouterr()
    assert "meta-test" in said.out
    assert said.err == ""
    (run,) = (path.parent for path in tmp_path.glob("outputs/*/*/config.yaml"))
    assert "run directory" in (run / "metarun.log").read_text(), "the log has what -q does not print"
    evaluated = answer(["eval", str(run), "-v"], capsys)
    assert evaluated["test"]["mse"]["mean"] == json.loads((run / "summary.json").read_text())["test"]["mse"]["mean"]
    (stored,) = run.glob("evaluations/*.json")
    assert evaluated["directory"] == str(stored)
    compared = answer(["report", str(run), "out=page"], capsys)
    (setting,) = compared["settings"]
    assert setting["rows"][0]["algorithm"] == "maml"
    assert setting["rows"][0]["test"]["mse"]["mean"] == evaluated["test"]["mse"]["mean"]
    assert Path("page/report.html").is_file()


def test_an_overview_fits_on_a_few_screens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= 100
    names = "\n".join(lines).replace("\n", " ").replace(",", " ").split()
    assert {each.name for group in AXES for each in catalogue(group)} <= set(names)
