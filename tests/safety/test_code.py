"""Stored configurations and adapted learners name code of metarun's own, or what the user named; nothing else runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from metarun.adapted import load
from metarun.cli import main
from metarun.config.catalogue import catalogue
from metarun.config.trust import is_component, named_code
from tests.safety.conftest import QUICK

RULE = "metarun.algorithms.gradient.rules"
TOUCH = {"args": "touch TOUCHED", "shell": True}
HOSTILE: dict[str, dict[str, Any]] = {
    "a process": {"task": {"_target_": "subprocess.run", **TOUCH}},
    "a process as the model": {"model": {"_target_": "subprocess.Popen", **TOUCH}},
    "a process as the algorithm": {"algorithm": {"_target_": "subprocess.check_call", **TOUCH}},
    "a shell": {"task": {"_target_": "os.system", "command": "touch TOUCHED"}},
    "a builtin": {"task": {"_target_": "builtins.exec", "source": "open('TOUCHED', 'w')"}},
    "a builtin without module": {"task": {"_target_": "exec"}},
    "a module of its own": {"task": {"_target_": "evil.Task"}},
    "an import with an effect": {"task": {"_target_": "evil.sub.Task"}},
    "a relative import": {"task": {"_target_": ".evil.Task"}},
    "what metarun imports": {"task": {"_target_": "metarun.cli.os.system", "command": "touch TOUCHED"}},
    "what a component module imports": {"task": {"_target_": "metarun.tasks.files.os.system"}},
    "a builtin of a module of metarun": {"task": {"_target_": "metarun.tasks.files.__builtins__.exec"}},
    "a class that a component module imports": {"model": {"_target_": "metarun.tasks.files.ThreadPoolExecutor"}},
    "a function of a component module": {"task": {"_target_": "metarun.tasks.files.download", "url": "http://x"}},
    "metarun's own commands": {"task": {"_target_": "metarun.cli.main"}},
    "metarun's own processes": {"task": {"_target_": "metarun.cli.processes.run_all"}},
    "a class that is no component": {"task": {"_target_": "metarun.tracking.rundir.MetricsFile", "path": "TOUCHED"}},
    "a component of another kind": {"task": {"_target_": "metarun.tasks.record.DataRecord", "label": "x"}},
    "a private class": {"task": {"_target_": "metarun.tasks.pickles._Reader"}},
    "torch": {"model": {"_target_": "torch.load", "f": "x.pt", "weights_only": False}},
    "torch.hub": {"model": {"_target_": "torch.hub.load", "repo_or_dir": ".", "source": "local", "model": "x"}},
    "torch.nn": {"model": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}},
    "numpy": {"task": {"_target_": "numpy.load", "file": "x", "allow_pickle": True}},
    "look-alike letters": {"task": {"_target_": "metаrun.tasks.base.Task"}},
    "full-width letters": {"task": {"_target_": "ｍetarun.tasks.regression.sinusoid.Sinusoid"}},
    "a line break": {"task": {"_target_": "metarun.tasks.regression.sinusoid.Sinusoid\nos.system"}},
    "a path": {"task": {"_target_": "metarun.tasks.../../evil.Task"}},
    "a list": {"task": {"_target_": ["os.system"], "command": "touch TOUCHED"}},
    "inside a section": {"algorithm": {"rule": {"_target_": "subprocess.run", **TOUCH}}},
    "deep inside": {"task": {"phase": {"low": {"high": {"_target_": "subprocess.run", **TOUCH}}}}},
    "in a list": {"task": {"phase": [0, [{"_target_": "subprocess.run", **TOUCH}]]}},
    "in a section that builds nothing": {"runner": {"hooks": {"_target_": "subprocess.run", **TOUCH}}},
    "beside the sections": {"paper": {"title": {"_target_": "subprocess.run", **TOUCH}}},
    "a module that an argument names": {
        "task": {"_target_": "metarun.tasks.rl.gym.Gym", "sampler": "evil", "horizon": 1, "episodes": 1}
    },
}
COMMANDS = {
    "resume": ["runner.iterations=4"],
    "eval": [],
    "adapt": ["--support", "s.csv"],
    "export": ["--to", "optimizer"],
}


def spoil(run: Path, change: dict[str, dict[str, Any]]) -> None:
    """Change the stored configuration: a section that has a class of its own replaces the stored one."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for section, values in change.items():
        whole = "_target_" in values or not isinstance(config.get(section), dict)
        config[section] = values if whole else {**config[section], **values}
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def plant(folder: Path) -> None:
    """Modules that leave a mark when they are imported."""
    (folder / "evil").mkdir()
    for name in ("evil/__init__.py", "evil/sub.py"):
        (folder / name).write_text("open('TOUCHED', 'w').close()\nclass Task: pass\n")
    sys.path.insert(0, str(folder))  # the worst case: it could be imported
    for name in [name for name in sys.modules if name.partition(".")[0] == "evil"]:
        del sys.modules[name]


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_stored_configuration_runs_nothing(
    run: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plant(tmp_path)
    Path("s.csv").write_text("x,y\n1,2\n2,3\n")
    spoil(run, change)
    for command, words in COMMANDS.items():
        assert main([command, str(run), *words]) == 2
        said = capsys.readouterr().err
        assert "--trust" in said or "not a subclass" in said
        assert len(said.strip().splitlines()) == 1
    summary = json.loads((run / "summary.json").read_text())
    del summary["metric"]  # a report would ask the task's class for it
    (run / "summary.json").write_text(json.dumps(summary))
    assert main(["report", str(run)]) in (0, 2)
    assert not Path("TOUCHED").exists()
    assert "evil" not in sys.modules


@pytest.fixture
def learner(run: Path, undrawn: None) -> Path:
    Path("s.csv").write_text("x,y\n1,2\n2,3\n0,1\n")
    assert main(["adapt", str(run), "--support", "s.csv", "--out", "kept"]) == 0
    return Path("kept/learner.pt")


@pytest.mark.parametrize("section", ["model", "algorithm"])
@pytest.mark.parametrize("target", ["subprocess.run", "evil.Task", "metarun.tasks.files.os.system", "torch.nn.Linear"])
def test_an_adapted_learner_runs_nothing(learner: Path, section: str, target: str, tmp_path: Path) -> None:
    plant(tmp_path)
    stored = torch.load(learner, weights_only=True)
    stored["sections"][section] = {"_target_": target, **TOUCH}
    torch.save(stored, learner)
    with pytest.raises(Exception, match="not a component of metarun"):
        load(learner)
    assert not Path("TOUCHED").exists()
    assert "evil" not in sys.modules


def test_arguments_of_an_adapted_learner_are_checked(learner: Path) -> None:
    stored = torch.load(learner, weights_only=True)
    stored["sections"]["model"]["hidden"] = "wide"
    torch.save(stored, learner)
    with pytest.raises(Exception, match=r"model\.hidden=wide"):
        load(learner)


OWN = """
from metarun.tasks.regression.sinusoid import Sinusoid
class Mine(Sinusoid):
    pass
"""


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A run of the user's own class, which lies in the current directory."""
    (tmp_path / "mine_sines.py").write_text(OWN)
    sys.modules.pop("mine_sines", None)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["task"]["_target_"] = "mine_sines.Mine"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_a_user_s_own_class_needs_a_word(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = tmp_path / "options" / "task"
    options.mkdir(parents=True)
    (options / "mine.yaml").write_text("_target_: mine_sines.Mine\n")
    before = (own / "config.yaml").read_bytes()
    assert main(["eval", str(own)]) == 2
    assert main(["eval", str(own), "--trust=other_module"]) == 2
    assert "mine_sines" not in sys.modules
    for word in ("--trust", "--trust=mine_sines", "--trust=mine_sines.Mine", f"--config-dir={tmp_path / 'options'}",
                 "task._target_=mine_sines.Mine"):  # fmt: skip
        assert main(["eval", str(own), word]) == 0, word
    assert main(["resume", str(own), "runner.iterations=3", "--trust"]) == 0
    assert main(["resume", str(own), "runner.iterations=4"]) == 2  # it was not stored
    assert b"trust" not in before + (own / "config.yaml").read_bytes() + (own / "meta.json").read_bytes()


def test_a_module_s_name_is_not_that_of_what_it_imports(own: Path, tmp_path: Path) -> None:
    with (tmp_path / "mine_sines.py").open("a") as file:
        file.write("from subprocess import run, Popen\n")
    for target in ("mine_sines.run", "mine_sines.Popen"):
        config = yaml.safe_load((own / "config.yaml").read_text())
        config["task"] = {"_target_": target, **TOUCH}
        (own / "config.yaml").write_text(yaml.safe_dump(config))
        assert main(["eval", str(own), "--trust=mine_sines"]) == 2
    assert not Path("TOUCHED").exists()


SHADOWS = ("matplotlib", "difflib", "yaml", "torch", "wandb", "multiprocessing", "json", "hydra_plugins/evil",
           "sitecustomize")  # fmt: skip


def test_a_run_directory_is_not_imported_from() -> None:
    signal.alarm(300)  # a process of its own, which imports everything anew
    assert main([*QUICK, "task=regression/gp", "algorithm=cnp", "model=mlp", "model.hidden=[4]", "name=y"]) == 0
    (run,) = Path("outputs/y").resolve().iterdir()
    for name in SHADOWS:
        file = run / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open('TOUCHED-{Path(name).name}', 'w').close()\n")
    info = run / "evil-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pydantic]\nevil = difflib\n[torch.backends]\nevil = difflib:f\n")
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), "WANDB_MODE": "disabled",
           "HOME": str(run.parent)}  # fmt: skip
    words = [sys.executable, "-m", "metarun", "resume", ".", "runner.iterations=3", "runner.plots=true"]
    done = subprocess.run(words, cwd=run, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(run.glob("TOUCHED*"))


def test_every_shipped_option_is_a_component() -> None:
    found = 0
    for group in ("task", "images", "model", "algorithm", "experiment"):
        for entry in catalogue(group):
            for key, name in named_code(entry.section):
                assert is_component(name), f"{group}={entry.name}: {key}"
                found += 1
    assert found > 100
