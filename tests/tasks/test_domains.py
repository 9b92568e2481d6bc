"""Several domains as one family: which domain a task is of, splits, one row each, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metarun
from metarun.cli import main
from metarun.config.build import build
from metarun.config.compose import compose, named
from metarun.errors import UserError
from metarun.tasks.domains import Domains, DomainSet, TextDomains
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.vision.glyphs import Glyphs
from tests.tasks.letters import letters

SHAPE: dict[str, Any] = {"way": 3, "shot": 2, "query": 4, "test_ways": [], "unknown": 0, "episodes": "balanced"}


def glyphs(split_seed: int, size: int = 12) -> Glyphs:
    return letters(size, split_seed, query=3)


def family(train: list[str] | None = None, test: list[str] | None = None, **changes: Any) -> Domains:
    domains = DomainSet(a=glyphs(0), b=glyphs(1))
    return Domains(0, domains=domains, train=train, test=test, **{**SHAPE, **changes})


def equal(a: Any, b: Any) -> bool:
    pairs = [(a.support.x, b.support.x), (a.support.y, b.support.y), (a.query.x, b.query.x), (a.query.y, b.query.y)]
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_task_is_that_of_its_domain_and_does_not_depend_on_its_batch() -> None:
    task = family(unknown=1)
    batch = task.batch("test", range(40))
    homes = []
    for index in range(40):
        own = [
            d for d in "ab" if equal(task.batch("test", [index]), task.domains[d].batch("test", [index], task.shape))
        ]
        homes += own[:1]
        alone = task.batch("test", [index])
        assert torch.equal(batch.support.x[index], alone.support.x[0])
        assert torch.equal(batch.query.x[index], alone.query.x[0])
        assert batch.unknown is not None
        assert alone.unknown is not None
        assert torch.equal(batch.unknown[index], alone.unknown[0])
    assert len(homes) == 40
    assert 8 < homes.count("a") < 32


def test_training_and_test_domains() -> None:
    task = family(["a"], ["b"])
    for split, name in (("train", "a"), ("val", "a"), ("test", "b")):
        assert equal(task.batch(split, range(9)), task.domains[name].batch(split, range(9), task.shape))  # type: ignore[arg-type]
    assert task.variants() == {"": task.shape}
    assert {each.partition("/")[0] for each in task.record().classes["train"]} == {"a"}
    assert {each.partition("/")[0] for each in task.record().classes["test"]} == {"b"}
    both = family(["a"])
    assert list(both.variants()) == ["", "_a", "_b"]
    for name in "ab":
        shape = both.variants()[f"_{name}"]
        assert equal(both.batch("test", range(9), shape), task.domains[name].batch("test", range(9), task.shape))
    kept = both.record().classes
    both.keep_classes(kept)
    assert both.record().classes == kept


def test_classes_of_meta_training_count_through_all_domains() -> None:
    task = family()
    shape = EpisodeShape(6, 1, 0, named=True)
    batch = task.batch("train", range(60), shape)
    first = len(task.domains["a"].classes["train"])
    assert task.spec.train_classes == batch.support.way == 2 * first
    assert batch.query.y is batch.support.y
    of_second = (batch.support.y >= first).all(1)
    assert ((batch.support.y < first).all(1) | of_second).all()
    assert 0 < of_second.sum() < 60


def test_varied_tasks_of_several_domains() -> None:
    task = family(episodes="varied")
    seen: list[int] = []
    for places, batch in task.batches("test", range(20)):
        assert isinstance(places, list)
        seen += places
        (alone,) = (each for _, each in task.batches("test", [places[0]]))
        assert torch.equal(batch.support.x[0], alone.support.x[0])
    assert sorted(seen) == list(range(20))


def test_what_does_not_fit_is_refused() -> None:
    sizes = DomainSet(a=glyphs(0), b=glyphs(0, size=14))
    with pytest.raises(UserError, match=r"\[1, 12, 12\] in 'a' and \[1, 14, 14\] in 'b'"):
        Domains(0, domains=sizes, train=None, test=None, **SHAPE)
    with pytest.raises(UserError, match=r"task\.test: no domain 'c'"):
        family(test=["c"])
    with pytest.raises(UserError, match="name each domain once"):
        family(train=["a", "a"])
    with pytest.raises(UserError, match="is more than the"):
        family(way=500)
    for words, said in (
        ("task.domains=[vision/glyph]", "unknown task 'vision/glyph'"),
        ("task.domains=[]", "list names of tasks"),
        ("task.domains={a: 3}", "list names of tasks"),
        ("task.domains=[vision/glyphs,vision/glyphs]", "each task can be listed once"),
        ("task.domains=[vision/domains]", "consists of domains itself"),
        ("task.domains=[regression/sinusoid]", "no family of few-shot classification of images"),
        ("task.domains.glyphs.sizes=12", r"task\.domains\.glyphs\.sizes"),
    ):
        with pytest.raises(UserError, match=said):
            build(compose(["task=vision/domains", words]).config)


def test_a_run_on_letters_is_tested_on_letters_and_photographs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for c in range(9):
        (tmp_path / "photos" / f"c{c}").mkdir(parents=True)
        for i in range(6):
            image = Image.fromarray(random.integers(0, 256, (20, 20), dtype=np.uint8))
            image.save(tmp_path / "photos" / f"c{c}" / f"{i}.png")
    words = ["task=vision/domains", "task.domains=[vision/glyphs,vision/folder]", "task.train=[glyphs]", "task.way=2",
             "task.query=3", f"task.domains.folder.root={tmp_path}/photos", "task.domains.folder.colour=grey",
             "task.domains.folder.size=28",
             "model.width=4", "algorithm=protonet", "algorithm.train_way=5",
             "runner.iterations=2", "runner.validate_every=2", "runner.val_episodes=4", "runner.test_episodes=6",
             "runner.meta_batch=2", "runner.threads=1", "runner.device=cpu", "tracker.wandb=disabled", "name=run",
             f"runner.directory={tmp_path}/out"]  # fmt: skip
    assert main(words) == 0
    assert "accuracy_folder" in capsys.readouterr().out
    (run,) = (tmp_path / "out").glob("run/*")
    summary = json.loads((run / "summary.json").read_text())
    assert {"accuracy", "accuracy_glyphs", "accuracy_folder"} <= set(summary["test"])
    assert summary["protocol"]["train_domains"] == ["glyphs"]
    assert metarun.evaluate(run)["test"] == summary["test"]
    one = metarun.evaluate(run, "task.test=[folder]", "runner.test_episodes=5")
    assert "accuracy_folder" not in one["test"]
    assert one["protocol"]["data"] == "folder"


def test_a_run_on_texts_of_one_kind_is_tested_on_those_of_two(tmp_path: Path) -> None:
    for name, count in (("short", 1), ("long", 7)):
        lines = ["text,label"]
        for c in range(9):
            lines += [f"{' '.join(f'{name}{c}word{i}x{k}' for k in range(count))},{name}{c}" for i in range(6)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
    words = ["task=nlp/domains", "task.domains={a: nlp/text, b: nlp/text}", "task.train=[a]", "task.way=2",
             "task.query=3", f"task.domains.a.file={tmp_path}/short.csv", f"task.domains.b.file={tmp_path}/long.csv",
             "model.buckets=256", "model.dim=16", "model.rank=4", "algorithm.train_way=null",
             "runner.test_episodes=6", "runner.eval_batch=6"]  # fmt: skip
    run = build(named(compose(words)))
    task = run.task
    assert isinstance(task, TextDomains)
    assert {text.partition("word")[0].rstrip("012345678") for text in task.train_texts} == {"short"}
    batch, ids = task.batch("test", range(8)), run.algorithm.model.encode(task.domains["b"].texts)
    assert batch.support.x.shape[-1] == ids.shape[1] > run.algorithm.model.encode(task.domains["a"].texts).shape[1]
    for index in range(8):  # padding changes no task
        alone = task.batch("test", [index])
        assert torch.equal(batch.query.x[index], alone.query.x[0])
    for name in "ab":
        (found,) = task.domains[name].batch("test", [0], task.shape).support.x
        rows = task.domains[name].rows("test", [0], task.shape)[1][0, :, 0]
        own = run.algorithm.model.encode([task.domains[name].texts[row] for row in rows])
        assert torch.equal(found[:, : own.shape[1]], own)
        assert not found[:, own.shape[1] :].any()
    assert [*task.variants()] == ["", "_a", "_b"]
