"""Few-shot texts: class-disjoint splits, the user's own files and their errors, episodes and the picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun import style
from metarun.algorithms.metric.learner import EmbeddingLearner
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models.tfidf import TfIdf
from metarun.tasks.nlp.base import by_class
from metarun.tasks.nlp.folds import FOLDS
from metarun.tasks.nlp.intents import FILES, Intents
from metarun.tasks.nlp.text import Text
from metarun.types import SPLITS
from tests.composed import composed

INTENTS: dict[str, Any] = {
    "dataset": "OOS", "root": None, "way": 5, "shot": 1, "query": 5, "test_ways": [], "fold": 1, "val": 0.15,
    "test": 0.25, "unknown": 0, "episodes": "balanced", "out_of_scope": False, "by_domain": False,
    "seen_classes": False, "split_seed": 0,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "text": "text", "label": "label", "split": None, "way": 2, "shot": 1, "query": 2, "test_ways": [],
    "unknown": 0, "episodes": "balanced", "min_texts": 1, "duplicates": "keep", "order": "content",
    "val": 0.3, "test": 0.3, "split_seed": 0,
}  # fmt: skip
SIZES = {  # classes of a data set, and of meta-train, -validation and -test in folds 1 to 5
    "BANKING77": (77, [(25, 25, 27)] * 5),
    "HWU64": (64, [(16, 23, 25), (30, 15, 19), (24, 18, 22), (20, 15, 29), (25, 11, 28)]),
    "Liu": (54, [(18, 18, 18)] * 5),
    "OOS": (150, [(50, 50, 50)] * 5),
}


def split_names(task: Any) -> dict[str, set[str]]:
    return {split: {task.data.names[c] for c in task.classes[split]} for split in SPLITS}


def check_partition(task: Any, sizes: tuple[int, int, int]) -> None:
    names = split_names(task)
    assert tuple(len(names[split]) for split in SPLITS) == sizes
    assert len(set().union(*names.values())) == sum(sizes)


@pytest.mark.parametrize("dataset", SIZES)
def test_published_folds_partition_the_classes(dataset: str) -> None:
    classes, sizes = SIZES[dataset]
    assert len(set(FOLDS[dataset])) == 5
    for digits, size in zip(FOLDS[dataset], sizes, strict=True):
        assert len(digits) == classes
        assert tuple(digits.count(d) for d in "012") == size


@pytest.mark.data
@pytest.mark.parametrize(("dataset", "texts"), [("BANKING77", 13083), ("HWU64", 11036), ("Liu", 25478), ("OOS", 22500)])
def test_folds_are_the_published_class_lists(data_root: Path, dataset: str, texts: int) -> None:
    for fold in range(1, 6):
        task = Intents(0, **{**INTENTS, "dataset": dataset, "fold": fold, "root": str(data_root)})
        assert len(task.texts) == texts == task.data.offsets[-1]
        check_partition(task, SIZES[dataset][1][fold - 1])
        folder = data_root / f"text/few_shot_intents/{dataset}/few_shot/0{fold}"
        for split, part in zip(SPLITS, ("train", "valid", "test"), strict=True):
            listed = set((folder / f"labels.{part}.txt").read_text(encoding="utf-8").split("\n")) - {""}
            assert split_names(task)[split] == listed


@pytest.mark.data
def test_clinc150_and_banking77(data_root: Path) -> None:
    task = Intents(0, **{**INTENTS, "dataset": "clinc150"})
    check_partition(task, (90, 22, 38))
    assert set(task.data.sizes) == {150}
    assert "oos" not in task.data.names
    again = Intents(5, **{**INTENTS, "dataset": "clinc150"})
    other = Intents(0, **{**INTENTS, "dataset": "clinc150", "split_seed": 1})
    assert split_names(again) == split_names(task) != split_names(other)
    domains = Intents(0, **{**INTENTS, "dataset": "clinc150", "by_domain": True})
    listed = json.loads((data_root / "text/clinc150/domains.json").read_text())
    for split, names in split_names(domains).items():
        inside = [d for d in listed.values() if {n.replace(" ", "_") for n in d} & names]
        assert len(names) == 15 * len(inside), split  # whole domains
    parts = Intents(0, **{**INTENTS, "dataset": "clinc150", "seen_classes": True})
    check_partition(parts, (150, 150, 150))
    assert {name.partition(" (")[0] for name in split_names(parts)["test"]} == set(task.data.names)
    published = json.loads((data_root / "text/clinc150/data_full.json").read_text())
    for split in SPLITS:
        ids = parts.classes[split]
        held = [t for c in ids for t in parts.texts[parts.data.offsets[c] : parts.data.offsets[c + 1]]]
        assert sorted(held) == sorted(text for text, _ in published[split])
    for other in ({"dataset": "OOS"}, {"dataset": "banking77"}, {"dataset": "clinc150", "by_domain": True}):
        with pytest.raises(UserError, match=r"task\.seen_classes=true"):
            Intents(0, **{**INTENTS, "seen_classes": True, **other})
    scope: dict[str, Any] = {**INTENTS, "dataset": "clinc150", "unknown": 3, "out_of_scope": True, "seen_classes": True}
    unknown = Intents(0, **scope)
    assert unknown.train_texts == parts.train_texts
    assert unknown.record().classes == parts.record().classes
    for split in ("val", "test"):
        rows = unknown.unknown_rows(split, range(40), unknown.shape)  # type: ignore[arg-type]
        drawn = {unknown.texts[row] for row in rows.flatten()}
        assert rows.shape == (40, 3 * 5)
        assert drawn <= {text for text, _ in published[f"oos_{split}"]}
        assert len(drawn) > 95
    for wrong, words in (({"unknown": 0}, "no effect"), ({"dataset": "OOS", "seen_classes": False}, "no out-of-scope"),
                         ({"unknown": 21}, "more than the 100 examples outside")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            Intents(0, **{**scope, **wrong})
    banking = Intents(0, **{**INTENTS, "dataset": "banking77"})
    assert len(banking.texts) == 13083
    check_partition(banking, (46, 12, 19))


@pytest.mark.data
def test_local_files_are_those_that_are_downloaded(data_root: Path) -> None:
    import hashlib

    for place, (url, sha256) in FILES.items():
        assert url.startswith("https://")
        assert url.endswith(place.rsplit("/", 1)[1])
        assert hashlib.sha256((data_root / place).read_bytes()).hexdigest() == sha256


@pytest.mark.data
def test_train_texts_are_those_of_the_meta_train_classes(data_root: Path) -> None:
    task = Intents(0, **{**INTENTS, "dataset": "OOS", "fold": 2})
    with (data_root / "text/few_shot_intents/OOS/full.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    train = split_names(task)["train"]
    assert sorted(task.train_texts) == sorted(r["sentence"] for r in rows if r["label"] in train)


def test_a_root_without_the_data_and_a_fold_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.root"):
        Intents(0, **{**INTENTS, "root": str(tmp_path)})
    with pytest.raises(UserError, match=r"task.fold=6: OOS has folds 1 to 5"):
        Intents(0, **{**INTENTS, "fold": 6})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "0 classes, not 150"),
        ("{", "line 1"),
        ('{"sentence": "a"}\n', "line 1: no column 'label'"),
        ('{"sentence": "a", "label": null}\n', "line 1: 'label' is null"),
    ],
)
def test_a_damaged_data_file(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "full.jsonl").write_text(content)
    with pytest.raises(UserError, match=what):
        Intents(0, **{**INTENTS, "root": str(tmp_path)})


def test_by_domain_needs_domains(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("text,category\nhello,greet\n")
    with pytest.raises(UserError, match=r"banking77 has no domains"):
        Intents(0, **{**INTENTS, "dataset": "banking77", "by_domain": True, "root": str(tmp_path)})
    with pytest.raises(UserError, match=r"fewer than task.way=5"):
        Intents(0, **{**INTENTS, "dataset": "banking77", "root": str(tmp_path)})


# The user's own files

FRUITS = ["apple", "banana", "cherry", "damson", "elderberry", "fig", "grape", "hawthorn"]
ROWS = [(f"{head} {fruit}, {fruit}s", f"class{i}") for head in ("a", "the", "my") for i, fruit in enumerate(FRUITS)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    import csv

    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows(**extra: Any) -> list[dict[str, Any]]:
    return [{"text": text, "label": label, **extra} for text, label in ROWS]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_own_file(tmp_path: Path, ending: str) -> None:
    task = Text(0, file=str(write(tmp_path / f"my.{ending}", rows())), **TEXT)
    check_partition(task, (4, 2, 2))
    assert task.texts == [text for texts in by_class(ROWS).values() for text in sorted(texts)]
    assert task.data.names == sorted({label for _, label in ROWS})
    assert len(task.train_texts) == 12
    # A run from before the key ``order`` keeps its episodes.
    keys = {key: value for key, value in TEXT.items() if key != "order"}
    as_they_stand = Text(0, file=str(tmp_path / f"my.{ending}"), **keys)
    assert as_they_stand.texts == [text for texts in by_class(ROWS).values() for text in texts]
    assert (task.spec.modality, task.spec.input_shape) == ("text", ())


def test_own_split(tmp_path: Path) -> None:
    home = {
        f"class{i}": split for i, split in enumerate(["test", "val", "train", "train", "test", "val", "test", "train"])
    }
    mine = [{"q": text, "intent": label, "part": home[label]} for text, label in ROWS]
    names = {"text": "q", "label": "intent", "split": "part"}
    task = Text(0, file=str(write(tmp_path / "my.csv", mine)), **{**TEXT, **names})
    assert split_names(task) == {s: {c for c, h in home.items() if h == s} for s in SPLITS}
    mine[9]["part"] = "test"
    with pytest.raises(UserError, match=r"line 11: class 'class1' is in 'test' here and in 'val' above"):
        Text(0, file=str(write(tmp_path / "my.csv", mine)), **{**TEXT, **names})
    mine[3]["part"] = "dev"
    with pytest.raises(UserError, match=r"line 5: 'part' is 'dev'; allowed: train, val, test"):
        Text(0, file=str(write(tmp_path / "my.csv", mine)), **{**TEXT, **names})


@pytest.mark.parametrize(
    ("name", "content", "changed", "message"),
    [
        ("my.csv", None, {}, "no such file"),
        ("my.xlsx", "x", {}, "ends in '.xlsx'; allowed: .csv, .tsv, .jsonl"),
        ("my.csv", "", {}, "holds no texts"),
        ("my.csv", "texts,label\na,b\n", {}, "line 2: no column 'text' .* available: texts, label.*'texts'"),
        ("my.csv", "text,label\na\n", {}, "line 2: no column 'label'"),
        ("my.csv", "text,label\nhello, you,b\n", {}, "line 2: more values"),
        ("my.csv", 'text,label\n"a" b,c\n', {}, "line 2: "),
        ("my.csv", "text,label\na,b\n ,b\n", {}, "line 3: 'text' is ''"),
        ("my.jsonl", '{"text": "a", "label": "b"}\n{"text": ', {}, "line 2: not JSON"),
        ("my.jsonl", "[1]\n", {}, "item 1: not a JSON object"),
        ("my.jsonl", '{"text": null, "label": "b"}\n', {}, "line 1: 'text' is null, not a text"),
        ("my.jsonl", '{"text": "a", "label": "b"}\n', {"split": "part"}, "no column 'part' .task.split."),
        ("my.csv", "text,label\na,b\nc,d\n", {}, "2 classes, 0 of them for 'train', and an episode needs 2"),
        ("my.csv", "ok", {"way": 3}, "8 classes, 2 of them for 'val', fewer than task.way=3"),
        ("my.csv", "ok", {"shot": 2}, "shot=2 . query=2 is more than the 3 examples"),
        ("my.csv", "ok", {"min_texts": 4}, "task.min_texts=4, holds no texts"),
        ("my.csv", "ok", {"val": 0.6, "test": 0.5}, "leave no classes"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(
    tmp_path: Path, name: str, content: str | None, changed: dict[str, Any], message: str
) -> None:
    path = tmp_path / name
    if content == "ok":
        write(path, rows())
    elif content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        Text(0, file=str(path), **{**TEXT, **changed})
    assert "\n" not in str(error.value)


def test_no_file_and_a_file_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task.file is not set"):
        Text(0, file=None, **TEXT)
    (tmp_path / "my.csv").write_bytes(b"text,label\n\xff\xfe,b\n")
    with pytest.raises(UserError, match=r"not UTF-8"):
        Text(0, file=str(tmp_path / "my.csv"), **TEXT)
    with pytest.raises(UserError, match=r"not a file"):
        Text(0, file=str(tmp_path), **TEXT)


def test_min_texts_leaves_rare_classes_out(tmp_path: Path) -> None:
    path = write(tmp_path / "my.csv", [*rows(), {"text": "once", "label": "rare"}])
    with pytest.raises(UserError, match=r"1 examples of class 'rare'"):
        Text(0, file=str(path), **TEXT)
    assert "rare" not in Text(0, file=str(path), **{**TEXT, "min_texts": 3}).data.names


def test_duplicates_are_counted_and_can_be_dropped(tmp_path: Path) -> None:
    mine = [*rows(), *[{"text": "the same", "label": "class0"}] * 3, {"text": "the same", "label": "class1"}]
    path = write(tmp_path / "my.csv", mine)
    task = Text(0, file=str(path), **TEXT)
    read, twice, *shared = task.remarks()
    assert read == "my.csv: 28 rows of text, label"
    assert twice.startswith("my.csv: 3 of 28 examples have a duplicate in their class")
    assert len(shared) == (split_of(task, "class0") != split_of(task, "class1"))
    task = Text(0, file=str(path), **{**TEXT, "duplicates": "drop"})
    assert task.texts.count("the same") == 2
    assert task.remarks()[1] == "my.csv: 2 duplicates dropped"


def split_of(task: Text, name: str) -> str:
    return next(split for split, names in split_names(task).items() if name in names)


# Episodes


def learner(task: Text) -> EmbeddingLearner:
    """Nearest prototype over TF-IDF; of all texts, since these few share no words."""
    model = TfIdf(task.texts, unit="char", shortest=1, longest=3, min_texts=1)
    task.prepare(model)
    return construct(composed("algorithm=protonet")["algorithm"], model=model, spec=task.spec)


def test_an_episode_holds_the_ids_of_its_texts(tmp_path: Path) -> None:
    task = Text(0, file=str(write(tmp_path / "my.csv", rows())), **TEXT)
    model = learner(task).model
    batch, (_, where) = task.batch("test", [4, 7]), task.rows("test", [4, 7], task.shape)
    for t in range(2):
        support = [task.texts[r] for r in where[t, :, :1].flatten()]
        query = [task.texts[r] for r in where[t, :, 1:].flatten()]
        for texts, x in ((support, batch.support.x[t]), (query, batch.query.x[t])):
            ids = model.encode(texts)
            assert torch.equal(x[:, : ids.shape[1]], ids)
            assert not x[:, ids.shape[1] :].any()
    later = task.batch("test", [7])
    assert torch.equal(later.query.x[0], batch.query.x[1])


def test_the_picture_shows_texts_and_marks_what_is_wrong(tmp_path: Path) -> None:
    import io

    mine = [*rows(), {"text": "odd $1 and $2", "label": "class0"}]
    task = Text(0, file=str(write(tmp_path / "my.csv", mine)), **TEXT)
    algorithm = learner(task)
    figure = task.picture(algorithm)
    cells = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    drawn, where = task.rows("test", [0], task.shape)
    for label in range(2):
        assert task.data.names[drawn[0, label]] in cells
        for row in where[0, label]:
            assert task.texts[row] in cells
    assert re.search(r"100 % of its \d+ queries right", figure.get_suptitle())
    assert style.WRONG not in cells.values()
    figure.savefig(io.BytesIO(), format="png")

    class Wrong(EmbeddingLearner):
        def adapt(self, support: Any) -> Any:
            return lambda x: -EmbeddingLearner.adapt(self, support)(x)

    algorithm.__class__ = Wrong
    figure = task.picture(algorithm)
    assert re.search(r" 0 % of its \d+ queries right", figure.get_suptitle())
    assert [text.get_color() for text in figure.axes[0].texts].count(style.WRONG) == 4
