"""Every addition that the manual describes works as written: it trains, evaluates, and resumes exactly."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import metarun
from metarun.cli import main
from metarun.config import paths

PAGE = (Path(metarun.__file__).parent / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
QUICK = ["runner.val_episodes=4", "runner.test_episodes=4", "runner.log_every=1", "runner.validate_every=0",
         "runner.select=last", "runner.meta_batch=2", "runner.plots=false", "runner.threads=1",
         "runner.device=cpu"]  # fmt: skip


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)


def parameters_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path / "checkpoints" / "last.pt", weights_only=True)["algorithm"]["parameters"]


@pytest.mark.parametrize("section", SECTIONS)
def test_an_addition_works_as_written(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, conf, commands = (blocks(section, language) for language in ("python", "yaml", "console"))
    assert (len(code), len(conf), len(commands)) == (1, 1, 1)  # one file and one YAML, no edit in the package
    for content in (*code, *conf):
        path = Path(content.splitlines()[0].removeprefix("# "))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.partition("\n")[2])
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    random = np.random.default_rng(0)
    np.savez("my_images.npz", images=random.integers(0, 256, (320, 16, 16, 3), np.uint8), labels=np.arange(320) % 32)
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setattr(paths, "_config_dir", None)  # restored at the end

    program, *words = shlex.split(commands[0])
    assert program == "metarun"
    config_dir, words = words[:2], words[2:]
    assert main([*config_dir, "check", *words]) == 0
    assert main([*config_dir, *words, *QUICK, "name=whole", "runner.iterations=3"]) == 0
    assert main([*config_dir, *words, *QUICK, "name=part", "runner.iterations=2"]) == 0
    (whole,), (part,) = (list(Path("outputs", name).iterdir()) for name in ("whole", "part"))
    assert main([*config_dir, "eval", str(part)]) == 0  # before or after the command
    assert main(["resume", *config_dir, str(part), "runner.iterations=3"]) == 0
    there, here = parameters_of(whole), parameters_of(part)
    assert there
    assert all(torch.equal(value, here[name]) for name, value in there.items())
