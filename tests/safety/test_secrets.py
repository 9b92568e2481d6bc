"""A value from an environment variable is used by a run, and neither stored, sent nor printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from metarun.adapted import load
from metarun.cli import main
from metarun.config.environment import as_written, resolved
from metarun.errors import UserError, concealed
from metarun.runs.history import earlier, experiment_identity
from metarun.tracking.rundir import RunDirectory
from metarun.tracking.sinks import wandb as tracking
from tests.safety.conftest import QUICK

SECRET = "s3cr3t-value"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("COUNT", "3")
    yield
    concealed.clear()


def everything(folder: Path) -> str:
    """All that lies in a folder, as text."""
    return "\n".join(p.read_bytes().decode("latin1") for p in sorted(folder.rglob("*")) if p.is_file())


EXPRESSIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"a": "${oc.env:SECRET}"}, {"a": "${oc.env:SECRET}"}),
    "part of a text": ({"a": "x/${oc.env:SECRET}/y"}, {"a": "x/${oc.env:SECRET}/y"}),
    "with a default": ({"a": "${oc.env:NONE,other}"}, {"a": "${oc.env:NONE,other}"}),
    "decoded": ({"a": "${oc.decode:${oc.env:COUNT}}"}, {"a": "${oc.decode:${oc.env:COUNT}}"}),
    "by another key": ({"a": "${b}", "b": "${oc.env:SECRET}"}, {"a": "${b}", "b": "${oc.env:SECRET}"}),
    "by two": (
        {"a": "${b}", "b": "${c}", "c": "${oc.env:SECRET}"},
        {"a": "${b}", "b": "${c}", "c": "${oc.env:SECRET}"},
    ),
    "by a section": ({"a": "${b}", "b": {"c": "${oc.env:SECRET}"}}, {"a": "${b}", "b": {"c": "${oc.env:SECRET}"}}),
    "in a list": ({"a": [1, "${oc.env:SECRET}"]}, {"a": [1, "${oc.env:SECRET}"]}),
    "a key's name": ({"a": "${${oc.env:WHICH}}", "b": 4}, {"a": "${${oc.env:WHICH}}", "b": 4}),
    "another key": ({"a": "${b}", "b": 3}, {"a": 3, "b": 3}),
    "escaped": ({"a": r"\${oc.env:SECRET}"}, {"a": r"\${oc.env:SECRET}"}),
}


@pytest.mark.parametrize(("config", "stored"), EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_what_is_written(config: dict[str, Any], stored: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHICH", "b")
    made = OmegaConf.create(config)
    assert as_written(made) == stored
    assert resolved(stored) == OmegaConf.to_container(made, resolve=True)
    assert as_written(OmegaConf.create(stored)) == stored  # again and again


def test_a_run_uses_the_value_and_keeps_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    begin = tracking.WandbSink.start

    def start(directory: Path, **arguments: Any) -> Any:
        sent.append(arguments)
        return begin(directory, **arguments)

    monkeypatch.setattr(tracking.WandbSink, "start", start)
    words = [*QUICK, "name=x", "tracker.project=${oc.env:SECRET}", "tracker.tags=[${tracker.project}]",
             "runner.iterations='${oc.decode:${oc.env:COUNT}}'"]  # fmt: skip
    assert main(words) == 0
    (run,) = Path("outputs").glob("x/*")
    assert sent[0]["project"] == SECRET  # where it goes is the user's wish
    assert SECRET not in json.dumps(sent[0]["config"])
    config = RunDirectory(run).config()
    assert config["tracker"]["project"] == "${oc.env:SECRET}"
    assert config["runner"]["iterations"] == "${oc.decode:${oc.env:COUNT}}"
    assert json.loads((run / "summary.json").read_text())["iterations"] == 3
    assert SECRET not in everything(tmp_path)
    found, _ = earlier(config)
    assert found is not None  # a sweep knows it again
    assert experiment_identity(found.config()) == experiment_identity(config)


def test_resume_reads_it_again_if_it_is_trusted(run: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["tracker"]["project"] = "${oc.env:SECRET}"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["resume", str(run), "runner.iterations=3"]
    assert main(words) == 2
    assert "may not read your environment" in capsys.readouterr().err
    assert main([*words, "--trust"]) == 0
    assert SECRET not in everything(run)
    monkeypatch.delenv("SECRET")
    assert main(["resume", str(run), "runner.iterations=4", "--trust"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "SECRET" in said
    assert "not found" in said


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.env:HOME,x}", "${oc.decode:${oc.env:HOME}}", "${now:%Y}",
                                  "${seed}", "${hydra:runtime.cwd}", "a ${oc.env:HOME} b"])  # fmt: skip
@pytest.mark.parametrize("command", ["resume", "eval"])
def test_a_stranger_s_configuration_reads_nothing(
    run: Path, text: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["tracker"]["tags"] = [text]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main([command, str(run)]) == 2
    assert "may not read your environment" in capsys.readouterr().err


def test_an_adapted_learner_reads_nothing(run: Path) -> None:
    import torch

    Path("s.csv").write_text("x,y\n1,2\n2,3\n0,1\n")
    assert main(["adapt", str(run), "--support", "s.csv", "--out", "kept"]) == 0
    stored = torch.load("kept/learner.pt", weights_only=True)
    stored["sections"]["model"]["hidden"] = ["${oc.env:COUNT}"]
    torch.save(stored, "kept/learner.pt")
    with pytest.raises(UserError, match="may not read your environment"):
        load("kept")


def test_errors_show_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "name=x", "runner.device=${oc.env:SECRET}"]) == 2
    said = capsys.readouterr()
    assert SECRET not in said.err + said.out
    assert "${oc.env:SECRET}" in said.err
    assert main(["-m", *QUICK, "name=y", "runner.init_from=${oc.env:SECRET}", "seed=1"]) == 1
    said = capsys.readouterr()
    assert SECRET not in said.err + said.out
    assert SECRET not in everything(tmp_path)


def test_passwords_in_addresses_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from metarun.tracking.provenance import provenance

    monkeypatch.setattr(sys, "argv", ["metarun", "--config-dir=https://me:hush@host/x"])
    assert provenance()["argv"] == ["metarun", "--config-dir=https://...@host/x"]
    assert concealed == {}
