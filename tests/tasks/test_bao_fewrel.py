"""Bao et al.'s topic sets and FewRel, made up in the layout of their files: splits, texts, errors that say where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.nlp.bao import SPLIT
from metarun.types import SPLITS
from tests.composed import composed


def family(name: str, root: Path | None, **changes: Any) -> Any:
    section = composed(f"task=nlp/{name}")["task"]
    return construct({**section, "root": root and str(root), "query": 2, "test_ways": [], **changes}, seed=0)


def topics(root: Path, dataset: str, extra: str = "") -> Path:
    """Five texts of every label, in turn."""
    labels = sorted(label for part in SPLIT[dataset] for label in part)
    rows = [
        json.dumps({"label": label, "text": ["Text", str(i), f"of{label}", "more"]})
        for i in range(5)
        for label in labels
    ]
    root.mkdir(exist_ok=True)
    (root / f"{dataset}.json").write_text("\n".join(rows) + "\n" + extra)
    return root


def example(head: list[int], tail: list[int], words: str = "a b c d e") -> dict[str, Any]:
    return {"tokens": words.split(), "h": ["x", "Q1", [head, [4]]], "t": ["y", "Q2", [tail]]}


def relations(root: Path, **changed: Any) -> Path:
    """Files of 64 and 16 relations with four examples each."""
    root.mkdir(exist_ok=True)
    for name, first, count in (("train", 0, 64), ("val", 64, 16)):
        data = {f"P{first + i}": [example([0, 1], [3]) for _ in range(4)] for i in range(count)}
        (root / f"{name}_wiki.json").write_text(json.dumps(data | (changed if name == "train" else {})))
    return root


@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [("20news", (8, 5, 7)), ("amazon", (10, 5, 9)), ("huffpost", (20, 5, 16)), ("rcv1", (37, 10, 24)),
     ("reuters", (15, 5, 11))],
)  # fmt: skip
def test_topic_sets_are_split_by_label(tmp_path: Path, dataset: str, sizes: tuple[int, int, int]) -> None:
    task = family("bao", topics(tmp_path, dataset), dataset=dataset, tokens=3)
    assert tuple(len(task.classes[split]) for split in SPLITS) == sizes
    together = [label for part in SPLIT[dataset] for label in part]
    assert sorted(together) == list(range(sum(sizes)))
    for split, labels in zip(SPLITS, SPLIT[dataset], strict=True):
        assert {task.data.names[c] for c in task.classes[split]} == {f"{dataset} label {label}" for label in labels}
    first = task.data.names.index(f"{dataset} label 3")
    start = task.data.offsets[first]
    assert task.texts[start : start + 5] == [f"Text {i} of3" for i in range(5)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": 41, "text": ["a"]}', r"huffpost.json, line 206: 'label' is 41; huffpost has the labels 0 to 40"),
        ('{"label": true, "text": ["a"]}', r"line 206: 'label' is True, not an integer"),
        ('{"label": 1, "text": "a"}', r"line 206: 'text' is not a non-empty list of tokens"),
        ('{"label": 1}', r"line 206: no 'text'; there is label"),
        ("{", r"line 206: not JSON"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        family("bao", topics(tmp_path, "huffpost", line))


def test_missing_labels_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reuters.json").write_text('{"label": 0, "text": ["a"]}')
    with pytest.raises(UserError, match=r"reuters.json: no texts of label 1, 2, .*; reuters has 31 labels"):
        family("bao", tmp_path, dataset="reuters")
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no amazon.json in text/bao of METARUN_DATA"):
        family("bao", None, dataset="amazon")
    with pytest.raises(UserError, match=r"no train_wiki.json in text/fewrel of METARUN_DATA"):
        family("fewrel", None)


def test_relations_are_split_and_marked(tmp_path: Path) -> None:
    task = family("fewrel", relations(tmp_path))
    names = {split: {task.data.names[c] for c in task.classes[split]} for split in SPLITS}
    assert names["test"] == {f"P{i}" for i in range(64, 80)}
    assert (len(names["train"]), len(names["val"])) == (48, 16)
    assert names["train"] | names["val"] == {f"P{i}" for i in range(64)}
    other = family("fewrel", relations(tmp_path), split_seed=1)
    assert names["val"] != {other.data.names[c] for c in other.classes["val"]}
    assert set(task.texts) == {"[E1] a b [/E1] c [E2] d [/E2] e"}
    assert set(family("fewrel", tmp_path, markers=False).texts) == {"a b c d e"}


@pytest.mark.parametrize(
    ("head", "tail", "marked"),
    [
        ([4], [0], "[E2] a [/E2] b c d [E1] e [/E1]"),
        ([1, 2, 3], [2], "a [E1] b [E2] c [/E2] d [/E1] e"),
        ([2], [2], "a b [E1] [E2] c [/E2] [/E1] d e"),
    ],
)
def test_markers_of_any_two_entities(tmp_path: Path, head: list[int], tail: list[int], marked: str) -> None:
    assert marked in family("fewrel", relations(tmp_path, P0=[example(head, tail)] * 4)).texts


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (example([0], [5]), r"train_wiki.json, P7, example 2: 't' is at \[5\]; there are 5 tokens"),
        ({**example([0], [1]), "h": ["x", "Q1", []]}, r"P7, example 2: 'h' is .*, not \[name, id"),
        ({**example([0], [1]), "tokens": []}, r"P7, example 2: 'tokens' is not a non-empty list of words"),
        (3, r"P7, example 2: not a JSON object"),
    ],
)
def test_an_example_that_is_none_is_named(tmp_path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        family("fewrel", relations(tmp_path, P7=[example([0], [1]), wrong]))


def test_what_relations_must_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"FewRel: P64 in both train_wiki.json and val_wiki.json"):
        family("fewrel", relations(tmp_path, P64=[example([0], [1])] * 4))
    with pytest.raises(UserError, match=r"'val' has 3 relations, fewer than task.way=5"):
        family("fewrel", relations(tmp_path), val=0.05)
    (tmp_path / "val_wiki.json").write_text('{"P1": [')
    with pytest.raises(UserError, match=r"val_wiki.json: not JSON \(.*line 1"):
        family("fewrel", tmp_path)
