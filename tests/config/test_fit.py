"""Defaults that fit small data: lowered with a line where the user left them alone, refused by the key where not."""

import json

import numpy as np
import pytest
from PIL import Image

from metarun.config.build import build
from metarun.config.compose import compose, named
from metarun.errors import UserError
from metarun.tasks.vision import collection


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def photographs(root, classes, each):
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(each):
            Image.fromarray(np.full((8, 8), (16 * c + i) % 256, np.uint8)).save(root / f"class{c}" / f"{i}.png")
    return f"task.root={root}"


def texts(path, classes, each):
    path.write_text("text,label\n" + "".join(f"c{c} t{i},{c}\n" for c in range(classes) for i in range(each)))
    return f"task.file={path}"


def relations(root, classes, each):
    root.mkdir()
    example = {"tokens": ["a", "b"], "h": ["a", "Q1", [[0]]], "t": ["b", "Q2", [[1]]]}
    for name, first, count in (("train", 0, classes), ("val", classes, 4)):
        held = {f"P{first + c}": [{**example, "tokens": [f"{c}", f"{i}"]} for i in range(each)] for c in range(count)}
        (root / f"{name}_wiki.json").write_text(json.dumps(held))
    return f"task.root={root}"


def built(*words):
    composed = compose([*words, "tracker.wandb=disabled"])
    return build(named(composed), {"choices": composed.choices, "asked": list(composed.asked)})


@pytest.mark.parametrize(
    ("family", "make", "classes", "each", "expected"),
    [
        ("vision/folder", photographs, 15, 8, {"task.way": 3, "algorithm.train_way": 9}),
        ("vision/folder", photographs, 6, 12, {"task.way": 2, "algorithm.train_way": 2}),
        ("vision/folder", photographs, 40, 4, {"task.query": 3, "algorithm.train_query": 3}),
        ("nlp/text", texts, 7, 30, {"task.way": 2, "algorithm.train_way": 3}),
        ("nlp/text", texts, 20, 2, {"task.way": 4, "task.query": 1, "algorithm.train_query": 1}),
        ("nlp/fewrel", relations, 10, 6, {"task.way": 2, "task.query": 5, "task.test_ways": []}),
    ],
)
def test_defaults_are_lowered_to_what_is_there(tmp_path, caplog, family, make, classes, each, expected):
    with caplog.at_level("INFO", "metarun"):
        experiment = built(f"task={family}", make(tmp_path / "data.csv", classes, each))
    for key, value in expected.items():
        section, name = key.split(".")
        assert experiment.config[section][name] == value
        assert f"{key} is " in caplog.text
        assert experiment.facts["lowered"][key][1] == value
    shape = experiment.algorithm.train_shape(experiment.task.shape)
    assert len(experiment.task.batch("train", [0], shape).query.y) == 1
    assert len(experiment.task.batch("test", [0]).query.y) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task.way=5"], "task.way=5 is more than the 3 classes of the 'val' split"),
        (["algorithm.train_way=20"], "algorithm.train_way=20 does not fit the data: way=20 is more than the 9 classes"),
        (["task.query=9"], "task.shot=1 + query=9 is more than the 8 examples of class"),
        (["task.shot=8", "task.query=2"], "task.shot=8 + query=2 is more than the 8 examples"),
        (["algorithm.train_query=9"], "algorithm.train_query=9 + task.shot=1 does not fit the data"),
        (["task.test_ways=[5]"], "task.test_ways=[5]: way=5 is more than the 3 classes of the 'test' split"),
    ],
)
def test_what_the_user_set_is_refused_by_its_key_before_any_image_is_decoded(tmp_path, monkeypatch, words, told):
    monkeypatch.setattr(collection, "read_image", None)  # nothing can be decoded
    with pytest.raises(UserError) as error:
        built("task=vision/folder", photographs(tmp_path / "own", 15, 8), *words)
    assert told in str(error.value)


def test_what_was_set_stays_and_the_rest_gives_way(tmp_path):
    root = photographs(tmp_path / "own", 15, 8)
    config = built("task=vision/folder", root, "task.shot=5").config
    assert (config["task"]["shot"], config["task"]["query"]) == (5, 3)
    assert built("task=vision/folder", root, "task.way=2").config["task"]["way"] == 2


def test_large_data_and_runs_of_before_keep_their_values(tmp_path):
    experiment = built("task=nlp/text", texts(tmp_path / "large.csv", 100, 25))
    assert "lowered" not in experiment.facts
    composed = compose(["task=vision/folder", photographs(tmp_path / "own", 15, 8)])
    with pytest.raises(UserError, match=r"task\.way=5"):
        build(named(composed), {"choices": composed.choices})
