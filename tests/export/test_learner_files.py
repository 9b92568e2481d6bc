"""``metarun export``: files that other programs read, checked against the learner; and what is refused."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metarun.adapted import load
from metarun.cli import main
from metarun.export import FORMATS
from metarun.export import learners as export
from metarun.export.learners import Whole, largest_difference, random_inputs
from tests.export import learners

MAKERS = {"images": learners.images, "numbers": learners.numbers, "texts": learners.texts}


@pytest.mark.parametrize("made", MAKERS)
@pytest.mark.parametrize("to", [name for name, each in FORMATS.items() if each.source == "LEARNER"])
def test_the_files_predict_as_the_learner_does(
    to: str, made: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if to == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install 'metarun[export]'")
    MAKERS[made](tmp_path)
    assert main(["export", str(tmp_path), "--to", to, "--queries=60", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "checked    60 random queries, largest difference" in told
    for line in told.splitlines():
        if line.startswith("wrote"):
            assert Path(line.split()[1]).is_file()


def test_the_model_card_states_task_scores_data_and_limits(tmp_path: Path) -> None:
    learner = learners.images(tmp_path)
    learner.abstain = 0.75
    learner.about = {
        "origin": {"name": "glyphs/<b>run</b>", "iterations": 1200, "data": "0f1e2d", "protocol": {"split": "a|b"},
                   "test": {"accuracy": {"mean": 0.91, "ci95": 0.02, "n": 600}}},
        "support": {"classes": {"dark": 3, "grey": 3, "light": 3}, "content": "c0ffee"},
        "leave_one_out": {"accuracy": 8 / 9, "judged": 9, "ci95": [0.565, 0.98], "baselines": {"chance": 1 / 3},
                          "with_identical": 2},
    }  # fmt: skip
    learner.save(tmp_path, learners.options(model={"option": "conv4", "width": 4, "depth": 2},
                                            algorithm={"option": "protonet"}))  # fmt: skip
    assert main(["export", str(tmp_path), "--to=safetensors"]) == 0
    card = (tmp_path / "safetensors" / "model_card.md").read_text()
    for line in (
        "| classes | dark (3 examples), grey (3 examples), light (3 examples) |",
        "| no class below | probability 0.75 |",
        "| meta-training | 1,200 iterations |",
        "| split | a\\|b |",
        "| support set by leave-one-out | accuracy 0.8889 | 0.565 to 0.98 | 9 | chance 0.333 |",
        "| test tasks of the run | accuracy 0.91 | 0.89 to 0.93 | 600 |  |",
        "| support set | 9 examples, fingerprint c0ffee |",
        "| data of meta-training | fingerprint 0f1e2d |",
        "- 2 support examples have a duplicate, which leave-one-out does not remove.",
    ):
        assert line in card.splitlines()
    assert "<b>" not in card
    assert str(tmp_path) not in card


def test_safetensors_are_loaded_again(tmp_path: Path) -> None:
    learner = learners.images(tmp_path)
    assert main(["export", str(tmp_path / "learner.pt"), "--to=safetensors"]) == 0
    again = load(tmp_path / "safetensors")
    x = learner.support.x[0]
    assert torch.equal(again.predict_prepared(x).probabilities, learner.predict_prepared(x).probabilities)
    assert again.classes == ["dark", "grey", "light"]


def test_a_graph_runs_without_metarun(tmp_path: Path) -> None:
    learner = learners.numbers(tmp_path)
    assert main(["export", str(tmp_path), "--to=torch.export"]) == 0
    graph = torch.export.load(tmp_path / "torch.export" / "learner.pt2").module()
    assert torch.allclose(graph(torch.tensor([[0.3]])), learner.predict([[0.3]]).values, atol=1e-6)


def test_the_check_notices_another_learner(tmp_path: Path) -> None:
    learner, other = learners.images(tmp_path / "a"), learners.images(tmp_path / "b")
    whole = Whole(learner)
    other.temperature = 0.5
    inputs = random_inputs(whole, 60)
    assert largest_difference(whole, Whole(load(tmp_path / "a")), inputs)[0] == 0
    assert largest_difference(whole, Whole(other), inputs)[0] > 1e-3
    broken = lambda x: torch.full((len(x), 3), float("nan"))  # noqa: E731
    assert largest_difference(whole, broken, inputs)[0] == float("inf")


def test_files_that_predict_otherwise_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learners.images(tmp_path)
    differences = {"found": 0.004}
    monkeypatch.setattr(export, "largest_difference", lambda *_: (differences["found"], 1.0))
    assert main(["export", str(tmp_path), "--to=torch.export"]) == 1
    assert re.search(
        r"differ from the learner's by 0.004, and the files were deleted; --to safe", capsys.readouterr().err
    )
    assert not [*(tmp_path / "torch.export").iterdir()]


def test_a_low_temperature_multiplies_the_rounding_of_logits(tmp_path: Path) -> None:
    """The largest change of probabilities that a difference of 1e-4 in the logits can make, over many of both."""
    learner = learners.images(tmp_path)
    torch.manual_seed(0)
    logits, signs = torch.randn(1000, 3, dtype=torch.float64), torch.randint(2, (1000, 3)) * 2 - 1
    for temperature in (2.0, 0.5, 0.05, 0.01):
        learner.temperature = temperature
        moved = ((logits + 1e-4 * signs) / temperature).softmax(-1) - (logits / temperature).softmax(-1)
        assert moved.abs().max() <= export.accepted(learner, 1.0)
    assert export.accepted(learner, 1.0) < 100 * moved.abs().max()


@pytest.mark.parametrize("words", [["export", "a", "--to=safetensors"], ["predict", "shipped", "--query=new.csv"]])
def test_without_safetensors(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learners.numbers(tmp_path / "a")
    assert main(["export", "a", "--to=safetensors", "--out=shipped"]) == 0
    Path("new.csv").write_text("x\n0.5\n")
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "learner.safetensors needs safetensors" in said
    assert said.endswith("pip install 'metarun[export]'\n")


def _swapped(folder: Path) -> None:
    values = json.loads((folder / "learner.json").read_text())
    values["classes"] = {"tensor": "nowhere"}
    (folder / "learner.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "learner.json").unlink(), "learner.json cannot be read: No such file"),
        (lambda folder: (folder / "learner.json").write_text("[1]"), "learner.json is damaged: not a JSON object"),
        (lambda folder: (folder / "learner.safetensors").write_bytes(b"\xff" * 40), "learner.safetensors is damaged"),
        (_swapped, "learner.safetensors has no tensor 'nowhere'"),
    ],
)
def test_a_damaged_file_gets_one_line(
    damage: Callable[[Path], None], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learners.images(tmp_path)
    assert main(["export", str(tmp_path), "--to=safetensors", "-q"]) == 0
    damage(tmp_path / "safetensors")
    assert main(["export", str(tmp_path / "safetensors"), "--to=torch.export"]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["export"], "--to is missing: one of onnx, torch.export, safetensors, optimizer"),
        (["export", "--to", "onyx"], "did you mean 'onnx'?"),
        (["export", "--to", "safetensors"], "export --to safetensors needs a LEARNER"),
        (["export", "a", "b", "--to", "safetensors"], "export takes one LEARNER, not 2"),
        (["export", "nowhere", "--to", "safetensors"], "nowhere: holds no adapted learner (learner.pt)"),
        (["export", "a", "--to", "optimizer", "--queries=3"], "--queries is for learners; --to optimizer takes a RUN"),
        (["export", "a", "task.way=3", "--to", "safetensors"], "export changes no keys, and takes no 'task.way=3'"),
    ],
)
def test_asked_wrongly(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert line in said
    assert "Traceback" not in said
