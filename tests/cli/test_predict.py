"""``metarun predict``: folders of images, texts, numbers; abstention; and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.adapted.predictions import LeaveOneOut, Predictions, depend_on_each_other
from metarun.adapted.scores import Coverage, nearest_mean_of_others
from metarun.adapted.streamed import CHUNK, predict_images, walk_images
from metarun.adapted.temperature import fit_temperature
from metarun.cli import main
from tests.export import learners


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, shade in (("b/2.png", 20), ("b/10.png", 240), ("a.png", 110), (".hidden/1.png", 0)):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24, 3), shade, np.uint8)).save(file)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_a_folder_of_images(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learner = learners.images(tmp_path)
    words = ["predict", str(tmp_path), "--query", str(photos), "--out", str(tmp_path / "found.csv")]
    assert main(words) == 0
    files = [photos / name for name in ("a.png", "b/10.png", "b/2.png")]
    expected, found = learner.predict(files), rows(tmp_path / "found.csv")
    assert [row["file"] for row in found] == list(map(str, files))
    assert [row["predicted"] for row in found] == expected.labels
    given = torch.tensor([[float(row[f"p_{name}"]) for name in learner.classes] for row in found])
    assert torch.allclose(given, expected.probabilities, atol=1e-5)

    # An image that cannot be read costs its own row only.
    (photos / "b" / "11.png").write_bytes(b"\x89PNG but no image")
    capsys.readouterr()
    assert main(words) == 1
    assert "1 images cannot be read and have empty rows" in capsys.readouterr().err
    again = {row["file"]: row for row in rows(tmp_path / "found.csv")}
    assert set(again.pop(str(photos / "b" / "11.png")).values()) == {str(photos / "b" / "11.png"), ""}
    assert again == {row["file"]: row for row in found}

    # Of a doubtful image no class is named.
    least = sorted(expected.probabilities.amax(1).tolist())[1]
    (photos / "b" / "11.png").unlink()
    assert main([*words, "--abstain", f"{least:.7f}"]) == 0
    assert [row["predicted"] for row in rows(tmp_path / "found.csv")].count("") >= 1
    assert main([*words, "--abstain", "0"]) == 0
    assert [row["predicted"] for row in rows(tmp_path / "found.csv")] == expected.labels


def test_images_are_read_while_others_are_predicted(tmp_path: Path, photos: Path) -> None:
    """Not more than two chunks are held, however many images there are."""
    taken = 0

    def files() -> Iterator[Path]:
        nonlocal taken
        for _ in range(5 * CHUNK):
            taken += 1
            yield photos / "a.png"

    learner = learners.images(tmp_path)
    done = 0
    for names, predictions, unread in predict_images(learner, files()):
        done += len(names)
        assert not unread
        assert predictions is not None
        assert taken - done <= 2 * CHUNK
    assert done == taken == 5 * CHUNK
    assert [file.name for file in walk_images(photos)] == ["a.png", "10.png", "2.png"]


def test_numbers_by_the_names_of_their_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = learners.numbers(tmp_path)
    (tmp_path / "new.csv").write_text("0.5\n-0.25\n")
    words = ["predict", str(tmp_path), "--query", str(tmp_path / "new.csv"), "--out", str(tmp_path / "found.csv")]
    assert main(words) == 0
    found = [float(row["predicted_0"]) for row in rows(tmp_path / "found.csv")]
    assert found == pytest.approx(learner.predict([[0.5], [-0.25]]).values[:, 0].tolist(), abs=1e-5)
    assert main([*words, "--abstain=.5"]) == 2
    assert "--abstain is for classes" in capsys.readouterr().err


def test_texts_of_a_table_and_of_a_text_file(tmp_path: Path) -> None:
    learner = learners.texts(tmp_path)
    (tmp_path / "new.jsonl").write_text('{"text": "weather in rome"}\n{"text": "book a flight"}\n')
    (tmp_path / "new.txt").write_text("weather in rome\n\nbook a flight\n")
    for name in ("new.jsonl", "new.txt"):
        out = tmp_path / "found.csv"
        assert main(["predict", str(tmp_path), "--query", str(tmp_path / name), "--out", str(out)]) == 0
        expected = learner.predict(["weather in rome", "book a flight"])
        assert [(row["text"], row["predicted"]) for row in rows(out)] == [
            ("weather in rome", expected.labels[0]), ("book a flight", expected.labels[1])
        ]  # fmt: skip


def test_an_encoder_that_has_changed_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learners.texts(tmp_path)
    config = tmp_path / "bert" / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-2'))
    assert main(["predict", str(tmp_path), "--query", str(config)]) == 2
    assert "the encoder's weights or preprocessing have changed" in capsys.readouterr().err


def test_a_transductive_learner_is_told(tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    for option, transductive in (("protonet", False), ("tim", True)):
        learner = learners.images(tmp_path / option, option)
        assert depend_on_each_other(learner.algorithm) == transductive
        words = ["predict", str(tmp_path / option), "--query", str(photos), "--out", str(tmp_path / "found.csv")]
        with caplog.at_level("WARNING", logger="metarun"):
            caplog.clear()
            assert main(words) == 0
        assert ("transductive learner" in caplog.text) == transductive


def test_coverage_and_accuracy_with_abstention() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.55, 0.45], [0.3, 0.7], [0.8, 0.2]])
    predictions = Predictions(["a", "a", "b", "a"], probabilities, torch.empty(4, 0))
    alone = LeaveOneOut(0.5, 4, 1, rows=[0, 1, 2, 4], predictions=predictions)
    found = Coverage.of(alone, ["a", "b", "b", "b", "b"], 0.6).as_dict()
    assert (found["coverage"], found["accuracy"], found["answered"]) == (0.75, pytest.approx(2 / 3), 3)
    assert Coverage.of(alone, ["a", "b", "b", "b", "b"], 0.95).as_dict()["accuracy"] is None


def test_nearest_mean_without_the_example_itself() -> None:
    noise = np.random.default_rng(0)
    labels = np.array([0] * 7 + [1] * 5 + [2])
    x = noise.normal(size=(13, 6)) + labels[:, None] * 0.7
    expected = []
    for i in range(13):
        rest = np.arange(13) != i
        known = np.unique(labels[rest])
        means = np.stack([x[rest & (labels == label)].mean(0) for label in known])
        expected.append(bool(known[np.square(means - x[i]).sum(1).argmin()] == labels[i]))
    assert nearest_mean_of_others(x, labels).tolist() == expected
    assert 0 < sum(expected) < 13


def test_a_few_examples_without_an_error_do_not_make_certain(tmp_path: Path) -> None:
    learner = learners.images(tmp_path)
    alone = learner.leave_one_out()
    assert alone.score == 1
    fit_temperature(learner)
    found = learner.leave_one_out().predictions
    assert found is not None
    assert 0.7 < float(found.probabilities.amax(1).mean()) < 10 / 11


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["predict"], "predict needs a LEARNER"),
        (["predict", "somewhere"], "--query is missing"),
        (["predict", "nowhere", "--query", "."], "nowhere: holds no adapted learner"),
        (["predict", "nowhere", "--query", "no such folder"], "--query no such folder: no such file or folder"),
        (["predict", "a", "--query", ".", "--abstain", "60"], "--abstain needs a probability from 0 to 1, not '60'"),
    ],
)
def test_asked_wrongly(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert line in said
    assert "Traceback" not in said
