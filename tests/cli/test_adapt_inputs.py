"""What ``metarun adapt`` makes of users' files: labels that are said, duplicates, columns by name, no training data."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.adapted import load
from metarun.adapted.picture import queries_by_class, spread
from metarun.adapted.scores import nearest_mean, word_frequencies
from metarun.cli import main

QUICK = ["runner.iterations=0", "runner.validate_every=0", "runner.test_episodes=0", "runner.plots=false",
         "runner.device=cpu", "runner.threads=1", "runner.directory=.", "tracker.wandb=disabled"]  # fmt: skip
pytestmark = pytest.mark.usefixtures("undrawn")


def trained(where: Path, *words: str) -> Path:
    assert main([*words, *QUICK, f"runner.directory={where}", "name=run"]) == 0
    (run,) = (where / "run").glob("*")
    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose training data are gone."""
    where = tmp_path_factory.mktemp("images")
    for c in range(6):
        draw(where / "data" / f"class{c}", 2, c)
    keys = ["task.root=" + str(where / "data"), "task.way=2", "task.query=1", "task.size=16", "task.test_ways=[]",
            "task.val=0.34", "task.test=0.34", "algorithm=maml", "algorithm.test_steps=2", "model.width=4"]  # fmt: skip
    run = trained(where, "task=vision/folder", *keys)
    shutil.rmtree(where / "data")
    return run


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("texts")
    lines = [{"sentence": f"word{c} number {i}", "intent": f"c{c}"} for c in range(9) for i in range(6)]
    (where / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    keys = [f"task.file={where / 'data.jsonl'}", "task.text=sentence", "task.label=intent", "task.way=2",
            "task.test_ways=[]", "algorithm.train_way=2", "model.embedding=4", "model.filters=4"]  # fmt: skip
    run = trained(where, "task=nlp/text", "model=text_cnn", "algorithm=protonet", *keys)
    (where / "data.jsonl").unlink()
    return run


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("numbers"), "task=regression/sinusoid", "algorithm=maml",
                   "algorithm.test_steps=2")  # fmt: skip


def draw(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(noise.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(folder / f"{i}.png")


def adapt(run: Path, *words: str, status: int = 0) -> dict[str, Any]:
    """The entries of result.json."""
    shutil.rmtree("out", ignore_errors=True)
    assert main(["adapt", str(run), *words, "--out=out"]) == status
    return json.loads(Path("out/result.json").read_text()) if status == 0 else {}


def known() -> list[str]:
    with open("out/predictions.csv") as file:
        return [row.get("known", "") for row in csv.DictReader(file)]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out + err


@pytest.fixture
def photos() -> None:
    for i, name in enumerate(("low", "high")):
        draw(Path("support") / name, 3, i)
        draw(Path("query") / name, 2, 10 + i)


def test_answers_are_taken_from_folders_only_if_all_are_classes(
    images: Path, photos: None, capsys: pytest.CaptureFixture[str]
) -> None:
    result = adapt(images, "--support=support", "--query=query")
    assert "accuracy" in result["query"]
    assert known() == ["high", "high", "low", "low"]
    assert "labelled: the classes are taken from the folders" in said(capsys)
    assert "accuracy" not in adapt(images, "--support=support", "--query=query", "--unlabelled")["query"]

    # Photographs that happen to lie in a folder called as a class.
    Path("query/low").rename("low")
    assert "accuracy" not in adapt(images, "--support=support", "--query=low")["query"]
    assert "unlabelled: predicted, not scored" in said(capsys)
    adapt(images, "--support=support", "--query=low", "--labelled")
    assert known() == ["low", "low"]

    # A folder that is no class is never dropped in silence.
    draw(Path("query/hihg"), 1, 20)
    assert "accuracy" not in adapt(images, "--support=support", "--query=query")["query"]
    assert "NOT SCORED" in (told := said(capsys))
    assert "'hihg' is none of the classes of the support set (high, low) - did you mean 'high'?" in told
    adapt(images, "--support=support", "--query=query", "--labelled", status=2)
    assert "'hihg' is none of the classes" in said(capsys)


def test_what_is_not_read_and_what_is_there_twice_is_counted(
    images: Path, photos: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("query/low/notes.txt").write_text("none")
    shutil.copy("support/low/0.png", "query/low/same.png")
    Image.open("support/low/1.png").save("query/low/same.bmp")
    shutil.copy("support/low/0.png", "support/low/copy.png")
    result = adapt(images, "--support=support", "--query=query", "--steps=1")
    told = said(capsys)
    assert "1 other files not read: notes.txt" in told
    assert "2 of 6 queries are identical to a support example" in told
    assert "on the 4 that are not in the support set" in told
    assert result["query"]["in_support"] == 2
    assert result["leave_one_out"]["with_identical"] == 2


def test_a_saved_learner_takes_what_it_is_given(images: Path, photos: None) -> None:
    adapt(images, "--support=support", "--query=query/low")
    learner = load("out")
    paths = sorted(Path("query/low").glob("*.png"))
    expected = learner.predict(paths).probabilities
    pixels = [np.array(Image.open(path)) for path in paths]
    for items in (pixels, np.stack(pixels), torch.from_numpy(np.stack(pixels).transpose(0, 3, 1, 2)),
                  [Image.open(path) for path in paths], [str(path) for path in paths],
                  np.stack(pixels) / 255):  # fmt: skip
        assert torch.equal(learner.predict(items).probabilities, expected)
    alone = learner.predict(paths[:1]).probabilities
    for one in (paths[0], str(paths[0]), pixels[0], Image.open(paths[0])):
        assert torch.equal(learner.predict(one).probabilities, alone)
    with pytest.raises(TypeError, match="image 2 is of type int"):
        learner.predict([pixels[0], 3])


def test_learner_does_not_fit(images: Path, photos: None, capsys: pytest.CaptureFixture[str]) -> None:
    draw(Path("support/third"), 1, 5)
    adapt(images, "--support=support", status=2)
    assert "3 classes, and this run's learner has a head of 2; take up to 2 classes" in said(capsys)
    for c in range(9):
        draw(Path("others") / f"new{c}", 2, 20 + c)
    for change, message in (
        ("task.way=3", "task.way is 3, and this run's learner has a head of 2; take 2 classes, train with task.way=3"),
        ("task.colour=grey", "this run's learner reads images of 3 channels, and these have 1"),
        ("task.size=32", "use images of the run's own task.size"),
    ):
        assert main(["eval", str(images), "task.root=others", "runner.test_episodes=2", change]) == 2
        told = said(capsys)
        assert message in told
        assert "state_dict" not in told
        assert told.splitlines()[-1].startswith("metarun: checkpoint")


def test_overrides(images: Path, photos: None, capsys: pytest.CaptureFixture[str]) -> None:
    plain = adapt(images, "--support=support", "--query=query")
    assert adapt(images, "--support=support", "--query=query", "task.root=nowhere")["query"] == plain["query"]
    assert "task.root changes nothing" in said(capsys)
    changed = adapt(images, "--support=support", "--query=query", "algorithm.test_steps=0")
    assert changed["changes"] == {"algorithm.test_steps": 0}
    Path("taken").write_text("")
    assert main(["adapt", str(images), "--support=support", "--out=taken"]) == 2
    assert "--out taken: there is a file of that name" in said(capsys)


def test_a_run_from_before_its_inputs_were_kept(
    images: Path, photos: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    expected = adapt(images, "--support=support", "--query=query")["query"]
    shutil.copytree(images, "old")
    Path("old/inputs.json").unlink()
    for c in range(6):
        draw(Path("data") / f"class{c}", 2, c)
    found = adapt(Path("old"), "--support=support", "--query=query", "task.root=data")["query"]
    assert found == expected


def test_texts(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.csv").write_text("text,label\nword1 number 1,a\nword2 number 2,b\nword2 number 5,b\n")
    Path("q.jsonl").write_text('{"intent": "a", "sentence": "word1 number 1"}\n{"intent": "b", "sentence": "word2"}\n')
    result = adapt(texts, "--support=s.csv", "--query=q.jsonl")
    assert result["query"]["in_support"] == 1
    assert known() == ["a", "b"]
    assert load("out").predict("word1 number").labels == load("out").predict(["word1 number"]).labels
    for rows, words, message in (
        ("text,label\nword1,a\nword2,\n", [], "q.csv, line 3: 'label' is '', not a class; give every row one"),
        ("text,label\nword1,a\nword2,c\n", ["--labelled"], "line 3: 'c' is none of the classes of the support set"),
        ("text\nword1\n", ["--labelled"], "no column 'intent'"),
        ("a line\nanother line\n", [], "no column 'sentence'"),
    ):
        Path("q.csv").write_text(rows)
        adapt(texts, "--support=s.csv", "--query=q.csv", *words, status=2)
        assert message in said(capsys)
    Path("q.csv").write_text("text,label\nword1,a\nword2,c\n")
    assert "accuracy" not in adapt(texts, "--support=s.csv", "--query=q.csv")["query"]
    assert "NOT SCORED, although 1 of 2 have a class" in said(capsys)
    Path("q.csv").write_text("text,label\nword1,\nword2,\n")
    assert "accuracy" not in adapt(texts, "--support=s.csv", "--query=q.csv")["query"]


def test_numbers(numbers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.csv").write_text("x,y\n0,0\n1,.5\n2,1\n")
    Path("q.csv").write_text("id,x\n7,0.5\n8,1.5\n")
    result = adapt(numbers, "--support=s.csv", "--query=q.csv")
    assert "mse" not in result["query"]
    assert "not used: id" in said(capsys)
    with open("out/predictions.csv") as file:
        assert [row["input"] for row in csv.DictReader(file)] == ["0.5", "1.5"]
    Path("q.csv").write_text("y;x\n0,5;1\n")
    assert "mse" in adapt(numbers, "--support=s.csv", "--query=q.csv")["query"]

    Path("bare.csv").write_text("0,0\n1.5,.5\n2,1\n")
    assert adapt(numbers, "--support=bare.csv", "--query=bare.csv")["support"]["examples"] == 3
    for support, query, message in (
        ("x,y\n1.0,nan\n2,3\n", "x\n1\n", "line 2: 'y' is 'nan', not a finite number"),
        ("id,x,y\n1,2,3\n", "x\n1\n", "has the columns id, x, y; the learner needs exactly 1 of inputs"),
        ("1.0,O.5\n2,3\n", "x\n1\n", "mixes numbers and words"),
        ("x,y\n1,2\n", "z,y\n1,2\n", "no column 'x', which is an input of the support set"),
        ("x,y\n1,2\n", "1.5\n2\n", "has no header; columns are matched by name"),
    ):
        Path("s2.csv").write_text(support)
        Path("q2.csv").write_text(query)
        adapt(numbers, "--support=s2.csv", "--query=q2.csv", status=2)
        assert message in said(capsys)


def test_predictions_that_are_not_finite_are_no_result(numbers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.csv").write_text("x,y\n0,0\n1e30,1e35\n2,1\n")
    Path("q.csv").write_text("x\n0.5\n")
    adapt(numbers, "--support=s.csv", "--query=q.csv", status=1)
    told = said(capsys)
    assert "not finite" in told
    assert "nan" not in told.lower()


def test_the_sheet_shows_queries_with_their_class_evenly() -> None:
    from types import SimpleNamespace

    assert spread(3, 8) == [0, 1, 2]
    assert spread(100, 5) == [0, 25, 50, 74, 99]
    asked: Any = SimpleNamespace(targets=["b"] * 60 + ["a"] * 40)
    guessed: Any = SimpleNamespace(labels=["a"] * 100)
    shown = queries_by_class(["a", "b"], asked, guessed, 8)
    assert {name: {asked.targets[i] for i in each} for name, each in shown.items()} == {"a": {"a"}, "b": {"b"}}
    assert {len(each) for each in shown.values()} == {8}
    asked.targets = []
    assert [len(each) for each in queries_by_class(["a", "b"], asked, guessed, 8).values()] == [8, 0]


def test_the_nearest_mean_of_raw_features() -> None:
    support, labels = np.array([[0, 0], [2, 0], [250, 9]], dtype=np.uint8), np.array([0, 0, 1])
    queries = np.array([[120, 0], [130, 0]] * 300, dtype=np.uint8)  # the middle lies at 125.5
    assert nearest_mean(support, labels, queries).tolist() == [0, 1] * 300
    known, asked = word_frequencies(["A cat, a dog", "the bird"], ["cat CAT unheard", "unheard"])
    assert known.shape == (2, 5)  # a, bird, cat, dog, the
    assert np.allclose(known[0] * 6**0.5, [2, 0, 1, 1, 0])
    assert np.allclose(asked, [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0]])


def test_classes_of_meta_training_are_told(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained_on = json.loads((images / "data.json").read_text())["classes"]["train"]
    for name in (trained_on[0], "new"):
        draw(tmp_path / "support" / name, 2, 7)
    assert adapt(images, "--support=support")["support"]["meta_trained_on"] == [trained_on[0]]
    assert f"1 of the 2 classes have names of meta-training classes: '{trained_on[0]}'" in capsys.readouterr().out
