"""Composition: what is remembered is forgotten when a file changes."""

from __future__ import annotations

from pathlib import Path

from metarun.config.catalogue import entry
from metarun.config.compose import compose
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


def test_what_a_caller_changes_is_its_own() -> None:
    compose(["task=regression/sinusoid"]).config["task"]["shot"] = 77
    assert compose(["task=regression/sinusoid"]).config["task"]["shot"] != 77
