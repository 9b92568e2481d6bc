"""Errors that a user's own class raises name it and its place, and are not taken for metarun's bugs."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import metarun
from metarun.cli import main
from metarun.config.paths import use_config_dir
from metarun.errors import users_frame

ROOT = Path(metarun.__file__).parents[1]
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


def test_commands_find_the_users_modules(tmp_path: Path) -> None:
    """Each in a process of its own, as the import path of this one has the current directory."""
    (tmp_path / "picky.py").write_text(MODEL)
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/picky.yaml").write_text("_target_: picky.Picky\nwidth: 8\n")
    (tmp_path / "sub").mkdir()

    def said(*words: str, cwd: Path = tmp_path) -> str:
        code = f"import sys; sys.path[:] = [p for p in sys.path if p]; sys.path.insert(0, {str(ROOT)!r}); "
        code += "from metarun.cli import main; sys.exit(main())"
        ended = subprocess.run([sys.executable, "-P", "-c", code, *words], capture_output=True, text=True, cwd=cwd)
        return ended.stdout + ended.stderr

    assert "\n  picky" in said("--config-dir", "own", "list", "models")
    assert "class  picky.Picky" in said("show", "picky", "--config-dir=own")
    assert f"it lies in {tmp_path}: start there" in said("show", "picky", "--config-dir=../own", cwd=tmp_path / "sub")


def test_an_option_that_is_not_read_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("own/model", "other/models"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mine.yaml").write_text("_target_: picky.Picky\n")
    assert main(["model=mine"]) == 2
    assert "own/model/mine.yaml is there, but not read without --config-dir own " in capsys.readouterr().err
    assert main(["--config-dir", "other", "model=mine"]) == 2
    assert f"options of model are read from {tmp_path / 'other/model'}" in capsys.readouterr().err
    use_config_dir(None)


def test_a_constructor(own: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*own, "model.width=3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"metarun: picky.Picky cannot be built: it raised ValueError in {tmp_path / 'picky.py'}:")
    assert said.endswith(": width must be a multiple of 8\n")


@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_a_method(own: list[str], algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*own, f"algorithm={algorithm}", "runner.iterations=1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    line = MODEL.splitlines().index("        return self.layer(x)") + 1
    assert last.startswith(f"metarun: {tmp_path / 'picky.py'}:{line}, in forward, raised RuntimeError: mat1 and mat2")


def test_packages_of_another_environment_are_not_the_users(tmp_path: Path) -> None:
    """Of an environment that this one sees by a ``.pth`` file, or of the system."""
    mine = tmp_path / "mine.py"
    mine.write_text("def call(f):\n    return f()\n")
    for folder in ("lib/python3/dist-packages", "other/lib/python3.11/site-packages"):
        theirs = tmp_path / folder / "theirs.py"
        theirs.parent.mkdir(parents=True)
        theirs.write_text("def fail():\n    return 1 / 0\n")
        with pytest.raises(ZeroDivisionError) as raised:
            runpy.run_path(str(mine))["call"](runpy.run_path(str(theirs))["fail"])
        frame = users_frame(raised.value)
        assert frame is not None
        assert (frame.filename, frame.lineno) == (str(mine), 2)


def test_metaruns_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("metarun.cli.listing.print", lambda *words: 1 / 0, raising=False)
    assert main(["list", "models"]) == 1
    assert "raised ZeroDivisionError" in capsys.readouterr().err  # by this test's own line
    monkeypatch.setattr("metarun.cli.listing.print", lambda: None, raising=False)
    assert main(["list", "models"]) == 1
    assert capsys.readouterr().err.startswith("metarun: this is a bug in metarun: TypeError")
