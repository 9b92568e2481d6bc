"""Components under their former import paths: stored runs, adapted learners and users' files keep working."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from metarun.config.build import build
from metarun.config.compose import compose
from metarun.config.trust import Trust, is_component
from metarun.moved import MOVED, in_words, updated
from metarun.runs.history import earlier, experiment_identity
from metarun.runs.stored import reread
from metarun.tracking.rundir import RunDirectory
from tests.composed import composed

FORMER = {new: old for old, new in MOVED.items()}


def as_before(config: object) -> object:
    """The configuration with every import path that has a former one replaced by it."""
    if isinstance(config, dict):
        return {k: FORMER.get(v, v) if k == "_target_" else as_before(v) for k, v in config.items()}
    return config


def test_present_paths_are_components_and_former_ones_are_not() -> None:
    assert [new for new in MOVED.values() if not is_component(new)] == []
    assert [old for old in MOVED if is_component(old)] == []


def test_a_run_of_before_is_the_same_experiment_and_is_built(tmp_path: Path) -> None:
    config = composed("task=regression/sinusoid", "algorithm=reptile", "tracker.wandb=disabled", "name=x")
    config["runner"]["directory"] = str(tmp_path)
    path = tmp_path / "x" / "2026-01-01_00-00-00-000000_s0"
    (path / "checkpoints").mkdir(parents=True)
    stored = as_before(config)
    assert stored["algorithm"]["outer"]["_target_"] == "metarun.algorithms.gradient.outer.Difference"
    (path / "config.yaml").write_text(yaml.safe_dump(stored))
    (path / "meta.json").write_text(json.dumps({"choices": {"task": "regression/sinusoid", "algorithm": "reptile"}}))
    (path / "status.json").write_text(json.dumps({"state": "finished"}))
    protocol = {"outer": "Difference()", "adapts": "Part(part=all, norm=True)", "inner_lr": 0.1}
    (path / "summary.json").write_text(json.dumps({"protocol": protocol}))
    run = RunDirectory.open(path)
    assert experiment_identity(run.config()) == experiment_identity(config)
    assert earlier(config)[0].path == path
    assert run.summary()["protocol"] == {
        "outer": "reptile gradient", "adapts": "parameter subset (part=all, norm=True)", "inner_lr": 0.1,
    }  # fmt: skip
    _, reread_config, _, _ = reread("resume", [str(path)], (), Trust())
    now = build(reread_config).algorithm.protocol()
    assert now["outer"] == run.summary()["protocol"]["outer"]
    assert now["adapts"] == run.summary()["protocol"]["adapts"]


def test_a_users_file_may_name_a_former_path(caplog: pytest.LogCaptureFixture) -> None:
    words = ["algorithm.adapts._target_=metarun.algorithms.gradient.adapts.Part"]
    config = compose(["task=regression/sinusoid", "algorithm=maml", *words]).config
    assert config["algorithm"]["adapts"]["_target_"] == "metarun.algorithms.gradient.adapts.ParameterSubset"
    assert "adapts.Part is now called metarun.algorithms.gradient.adapts.ParameterSubset" in caplog.text


def test_entries_of_a_protocol_are_words() -> None:
    assert in_words("TaskLoss()") == "task loss"
    assert in_words("MLPOptimizer(hidden=4)") == "MLP optimizer (hidden=4)"
    assert in_words("MetaSGD()") == "meta SGD"
    assert in_words(in_words("SGD()")) == "SGD"
    assert in_words("transductive") == "transductive"
    assert in_words(3) == 3
    assert updated({"a": [{"_target_": 3}]}) == {"a": [{"_target_": 3}]}
