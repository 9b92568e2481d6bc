"""Where values come from: said by the log, by meta.json and by ``metarun show NAME key=value``."""

from __future__ import annotations

import json

import pytest
import yaml

import metarun
from metarun.cli import main
from metarun.config.catalogue import catalogue
from metarun.config.compose import compose
from metarun.config.origins import leaves, origin_of, origins
from tests.slow import slow_but


def test_a_run_says_what_is_tuned_for_its_task() -> None:
    run = metarun.experiment(
        "task=regression/sinusoid", "algorithm=maml", "algorithm.test_steps=2", "runner.iterations=0",
        "runner.test_episodes=0",
    ).run()  # fmt: skip
    tuned = json.loads((run.path / "meta.json").read_text())["tuned"]
    assert tuned["algorithm.inner_lr"] == run.config["algorithm"]["inner_lr"]
    assert "algorithm.test_steps" not in tuned
    log = (run.path / "metarun.log").read_text()
    assert f"tuned for regression/sinusoid: algorithm.inner_lr={tuned['algorithm.inner_lr']}" in log


def test_show_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=regression/sinusoid", "algorithm.test_steps=2", "experiment=null"]
    assert main(["show", "maml", *words]) == 0
    first, _, *rest = capsys.readouterr().out.splitlines()
    assert "task=regression/sinusoid algorithm=maml model=mlp" in first
    composed = compose(["algorithm=maml", *words]).config
    assert yaml.safe_load("\n".join(rest)) == {key: value for key, value in composed.items() if value is not None}
    said = dict(line.strip().split("#") for line in rest if "#" in line)
    said = {key.partition(":")[0]: origin.strip() for key, origin in said.items()}
    assert said["inner_lr"] == "tuned for regression/sinusoid"
    assert said["test_steps"] == "command line"
    assert said["meta_batch"] == "task=regression/sinusoid"
    assert "inner_steps" not in said

    assert main(["show", "maml", "task=rl/bandit"]) == 2
    assert "does not fit" in capsys.readouterr().err


@pytest.mark.parametrize("pairs", slow_but(["one of each task"], ["one of each task", "all"]))
def test_a_value_is_the_one_of_the_layer_that_it_is_said_to_come_from(pairs: str) -> None:
    """For pairs with tuned values: the values of the files, through interpolations where there are any."""
    entries = {each.name if pairs == "all" else each.name.rpartition("/")[0]: each for each in catalogue("tuned")}
    for entry in entries.values():
        task, _, algorithm = entry.name.rpartition("/")
        composed = compose([f"task={task}", f"algorithm={algorithm}"])
        found, values = origins(composed.choices), dict(leaves(composed.config))
        for key, value in leaves(entry.settings):
            assert origin_of(key, found) == f"tuned for {task}"
            assert values[key] == value or "${" in str(value)
