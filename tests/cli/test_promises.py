"""``metarun check``: shipped components pass, and each broken promise is found and told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.cli import main
from metarun.config import paths, schema
from tests.slow import slow_but

TASK = """
import torch
from metarun import EpisodeShape, Labelled, Spec, Task, TaskBatch, uniforms

class Dots(Task):
    kind, modality, metric = "classification", "vector", "accuracy"

    def __init__(self, seed: int):
        self.seed, self.shape = seed, EpisodeShape(way=3, shot=2, query=4)
        self.spec = Spec(self.kind, self.modality, input_shape=(2,), output_size=3)

    def batch(self, split, indices, shape=None):
        shape = shape or self.shape
        each = shape.shot + shape.query
        drawn = torch.tensor(uniforms(self.seed, split, indices, shape.way * 2 * (1 + each))).float()
        drawn = drawn.view(len(indices), shape.way, 1 + each, 2)
        x = drawn[:, :, :1] + 0.1 * drawn[:, :, 1:]
        def part(x):
            y = torch.arange(shape.way).repeat_interleave(x.shape[2]).expand(len(indices), -1)
            return Labelled(x.flatten(1, 2), y, shape.way)
        return TaskBatch(part(x[:, :, :shape.shot]), part(x[:, :, shape.shot:]))

    def protocol(self):
        return {"data": "dots"}
"""
POLICY = """
from torch import nn
from metarun.models.policies import ActionHead, AgentInput, TaskLinear

class Memory(nn.Module):
    modalities, role = ("vector", "state", "observation"), "recurrent_policy"

    def __init__(self, spec, hidden: int):
        super().__init__()
        self.encode = AgentInput(spec)
        self.memory = nn.GRU(self.encode.size, hidden)
        self.head, self.value = ActionHead(hidden, spec, init_std=1.0), TaskLinear(hidden, 1)

    def features(self, inputs, state=None):
        return self.memory(inputs, state)

    def forward(self, inputs, state=None):
        features, state = self.features(inputs, state)
        return self.head(features), self.value(features)[..., 0], state
"""


SIZES = "episodes have the sizes, labels and inputs that they declare"
REPEATS = "batch returns the same tasks whenever it is called"
SHIPPED = [
    "task=regression/sinusoid",
    "task=rl/bandit algorithm=rl2 task.pulls=3",
    "task=vision/glyphs algorithm=protonet model.width=4",
    "task=rl/navigation algorithm=maml_trpo task.horizon=5",
    "task=regression/gp algorithm=cnp",
    "task=optimization/networks",
    "task=nlp/formal_languages",
    "task=vision/completion",
    "task=tabular/prior",
]


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch) -> Path:
    for group, name, target in (("task", "dots", "own_dots.Dots"), ("model", "memory", "own_memory.Memory")):
        path = Path("my_conf", group, f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["# @package _global_", "# Dots.", "defaults:", "  - override /model: mlp",
                 "  - override /algorithm: protonet", "task:", f"  _target_: {target}"]  # fmt: skip
        path.write_text("\n".join(lines if group == "task" else ["# Memory.", f"_target_: {target}", "hidden: 4"]))
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setattr(paths, "_config_dir", None)
    for module in ("own_dots", "own_memory"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    schema.declaration.cache_clear()  # of the same module's earlier text
    schema.source.cache_clear()
    return Path("my_conf")


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """Six classes of six images, too few for the defaults."""
    noise = np.random.default_rng(0)
    for number in range(36):
        path = tmp_path / "photos" / f"class{number % 6}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str | None]:
    code = main(["check", *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is (code == 0)
    return {each["what"]: each["why"] for each in found["findings"]}


@pytest.mark.parametrize("words", slow_but(SHIPPED[:2], SHIPPED))
def test_shipped_components_keep_their_promises(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(checked(capsys, *words.split()).values()) == {None}


@pytest.mark.parametrize(
    ("right", "wrong", "what", "why"),
    [
        ("", "", None, None),
        (".float()", ".float() * torch.rand(1)", REPEATS, "metarun.uniforms"),
        ("self.seed, split,", "self.seed, 'train',", "the splits have other tasks", "the split must enter"),
        ("shape = shape or self.shape", "shape = self.shape", SIZES,
         "shot and query are per class"),
        (", y, shape.way)", ", y)", SIZES, "has no way"),
        ("torch.arange(shape.way)", "torch.arange(1, shape.way + 1)",
         SIZES, "are 1..3, not 0..2"),
        ("torch.arange(shape.way)", "torch.arange(shape.way).float()",
         SIZES, "torch.float32, not integers"),
        ("input_shape=(2,)", "input_shape=(3,)", SIZES,
         "inputs of the support set are (2,), and spec.input_shape (3,)"),
        ('"data": "dots"', '"name": "dots"', "the protocol names the data", "no entry 'data'"),
        ('"accuracy"', '"acuracy"', "evaluating twice gives the same, and changes nothing", "it has: accuracy, loss"),
        ("return {", "raise KeyError('dots')  # {", "the protocol names the data", "in protocol, raised KeyError"),
    ],
)  # fmt: skip
def test_what_a_task_promises_and_does_not_keep(
    right: str, wrong: str, what: str | None, why: str | None, conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert right in TASK
    Path("own_dots.py").write_text(TASK.replace(right, wrong, 1) if right else TASK)
    found = checked(capsys, f"--config-dir={conf}", "task=dots", "model.hidden=[4]", "algorithm.train_way=null")
    if what is None:
        assert set(found.values()) == {None}
    else:
        assert why in (found[what] or "")


def test_defaults_are_lowered_to_small_data_as_in_a_run(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=vision/folder", f"task.root={own_folder}", "model.width=4", "task.size=16", "task.query=2"]
    assert set(checked(capsys, *words).values()) == {None}


def test_a_policy_that_forgets_is_found(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--config-dir={conf}", "task=rl/bandit", "algorithm=rl2", "model=memory", "task.pulls=3"]
    Path("own_memory.py").write_text(POLICY)
    assert set(checked(capsys, *words).values()) == {None}
    sys.modules.pop("own_memory")
    Path("own_memory.py").write_text(POLICY.replace("self.memory(inputs, state)", "self.memory(inputs)"))
    found = checked(capsys, *words)
    assert "the state that forward returns" in (found["steps one by one are those of a whole trial"] or "")


def test_a_mistake_in_a_users_class_is_not_called_a_bug_of_metarun(
    conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_dots.py").write_text(TASK.replace(", y, shape.way)", ", y)"))
    words = [f"--config-dir={conf}", "task=dots", "model.hidden=[4]", "algorithm.train_way=null", "runner.iterations=1"]
    assert main(words) == 1
    assert "or of own_dots.Dots: `metarun check` with the same words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('"classification",', '"clasification",', "kind is 'clasification' - did you mean 'classification'?"),
        ("from metarun import Episode", "from metarun.types import Probability\nfrom metarun import Episode",
         "own_dots.Dots cannot be imported: cannot import name 'Probability'"),
        ("self.seed, self.shape =", "self.nothing, self.seed, self.shape =",
         "own_dots.Dots cannot be built: it raised ValueError in"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_class_is_told(
    right: str, wrong: str, said: str, conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert right in TASK
    Path("own_dots.py").write_text(TASK.replace(right, wrong, 1))
    assert main([f"--config-dir={conf}", "task=dots", "runner.iterations=1"]) == 2
    assert said in capsys.readouterr().err


def test_a_learner_of_all_classes_refuses_tasks_without_common_ones(
    conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own_dots.py").write_text(TASK)
    assert main([f"--config-dir={conf}", "task=dots", "algorithm=baseline", "runner.iterations=1"]) == 2
    assert "spec.train_classes is 0" in capsys.readouterr().err
