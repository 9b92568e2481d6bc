"""The shipped sweep of W&B: its agent's own command line is one that metarun runs, with the metric it is judged by."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
import yaml

from metarun.cli import main
from metarun.config.check import check
from metarun.config.compose import compose, named
from metarun.config.paths import conf_directory
from tests.tracking.wandb_server import API_KEY, WandbServer

SWEEPS = sorted((conf_directory() / "wandb_sweep").glob("*.yaml"))
TINY = ["runner.iterations=4", "runner.validate_every=2", "runner.val_episodes=8", "runner.log_every=2"]


def command(sweep: dict[str, Any], values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What W&B's agent would start for a run with these values; the environment is left as it would be, too."""
    from wandb import wandb_agent

    started: list[list[str]] = []

    class Recorded:
        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Recorded)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # set by the agent; taken back when the test ends
        monkeypatch.setenv(name, "")
    agent = wandb_agent.Agent(None, queue.Queue(), sweep_id="sweep1")
    agent._sweep_command = list(sweep["command"])
    agent._command_run(
        {"type": "run", "run_id": "given1", "program": None, "args": {k: {"value": v} for k, v in values.items()}}
    )
    return started[0]


def ends(parameter: dict[str, Any]) -> list[Any]:
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


def test_one_sweep_is_shipped() -> None:
    assert [path.stem for path in SWEEPS] == ["rates"]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_value_is_one_that_metarun_takes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = yaml.safe_load(path.read_text())
    parameters = sweep["parameters"]
    first = {key: ends(parameter)[0] for key, parameter in parameters.items()}
    for key, parameter in parameters.items():
        for value in ends(parameter):
            words = command(sweep, {**first, key: value}, monkeypatch)
            assert words[:2] == ["/usr/bin/env", "metarun"]
            assert f"{key}={value}" in words
            config = named(compose(words[2:]))
            check(config)
            section, name = key.split(".")
            assert config[section][name] == value
    task, metric = config["task"]["_target_"], sweep["metric"]
    from metarun.config.schema import declaration

    facts = declaration(task).attributes
    assert metric["name"] == f"val/{facts['metric']}"
    assert metric["goal"] == ("maximize" if facts.get("higher_is_better", True) else "minimize")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_run_of_the_agent_is_the_sweeps_own(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Online, under the id that the agent gave it, which the run directory keeps."""
    import wandb

    sweep = yaml.safe_load(path.read_text())
    values = {key: ends(parameter)[-1] for key, parameter in sweep["parameters"].items()}
    with WandbServer() as server:
        wandb.teardown()
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
        monkeypatch.setenv("WANDB_PROJECT", "p")
        words = command(sweep, values, monkeypatch)[2:]
        wandb.teardown()  # the agent's settings are another process'
        try:
            assert main([*words, *TINY]) == 0
        finally:
            wandb.teardown()
        (run,) = server.runs.values()
        assert run.name == "given1"
        assert run.attributes["sweep"] == "sweep1"
        assert [row["iteration"] for row in run.history if sweep["metric"]["name"] in row] == [2, 4]
        assert sweep["metric"]["name"] in run.summary
        assert values.items() <= run.config.items()
    (kept,) = tmp_path.glob("outputs/*/*/wandb_id")
    assert kept.read_text().split() == ["given1", "online"]
