"""Composition: what is remembered is forgotten when a file changes; the names of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.config.catalogue import entry
from metarun.config.compose import compose, named
from metarun.config.paths import config_dir_in_use


def test_an_edited_option_is_composed_anew(tmp_path: Path) -> None:
    path = tmp_path / "conf/task/own.yaml"
    path.parent.mkdir(parents=True)
    with config_dir_in_use(tmp_path / "conf"):
        for shot in (3, 12):
            path.write_text(f"defaults: [regression/sinusoid]\nshot: {shot}\n")
            assert compose(["task=own"]).config["task"]["shot"] == shot
            found = entry("task", "own")
            assert found is not None
            assert found.section["shot"] == shot


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["experiment=maml/sinusoid"], "maml-sinusoid"),
        (["experiment=maml/sinusoid", "algorithm=cavia"], "maml-sinusoid"),
        (["experiment=maml/sinusoid", "task=regression/sinusoid"], "maml-sinusoid"),
        (["experiment=maml/sinusoid", "task=regression/gp"], "gp-maml"),
        (["task=regression/gp", "algorithm=cavia"], "gp-cavia"),
        (["experiment=maml/sinusoid", "task=regression/gp", "name=mine"], "mine"),
    ],
)
def test_a_run_has_the_name_of_a_recipe_whose_task_it_has(words: list[str], name: str) -> None:
    assert named(compose(words))["name"] == name


def test_what_a_caller_changes_is_its_own() -> None:
    compose(["task=regression/sinusoid"]).config["task"]["shot"] = 77
    assert compose(["task=regression/sinusoid"]).config["task"]["shot"] != 77
