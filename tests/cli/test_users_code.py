"""Errors that a user's own class raises name it and its place, and are not taken for metarun's bugs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metarun.cli import main
from metarun.config.paths import use_config_dir

MODEL = """
from torch import nn

class Picky(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        if width % 8:
            raise ValueError("width must be a multiple of 8")
        self.layer = nn.Linear(3, width)  # inputs have one feature

    def forward(self, x):
        return self.layer(x)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The words that choose the model; its file lies in the current directory."""
    (tmp_path / "picky.py").write_text(MODEL)
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/picky.yaml").write_text("_target_: picky.Picky\nwidth: 8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "picky", raising=False)
    yield ["--config-dir=own", "model=picky", "task=regression/sinusoid", "tracker.wandb=disabled"]
    use_config_dir(None)


def test_a_constructor(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*own, "model.width=3"]) == 2
    said = capsys.readouterr().err
    assert said == "metarun: picky.Picky cannot be built: it raised ValueError: width must be a multiple of 8\n"


@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_a_method(own: list[str], algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*own, f"algorithm={algorithm}", "runner.iterations=1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    line = MODEL.splitlines().index("        return self.layer(x)") + 1
    assert last.startswith(f"metarun: {tmp_path / 'picky.py'}:{line}, in forward, raised RuntimeError: mat1 and mat2")


def test_metaruns_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("metarun.cli.listing.print", lambda *words: 1 / 0, raising=False)
    assert main(["list", "models"]) == 1
    assert "raised ZeroDivisionError" in capsys.readouterr().err  # by this test's own line
    monkeypatch.setattr("metarun.cli.listing.print", lambda: None, raising=False)
    assert main(["list", "models"]) == 1
    assert capsys.readouterr().err.startswith("metarun: this is a bug in metarun: TypeError")
