"""A text model's vocabulary is a part of what was learned, and restored before texts are encoded."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import torch

from metarun.cli import main

QUICK = ["task=nlp/text", "task.way=2", "task.shot=1", "task.query=3", "task.val=0.3", "task.test=0.3",
         "runner.iterations=2", "runner.meta_batch=1", "runner.validate_every=0", "runner.test_episodes=20",
         "runner.plots=false", "runner.device=cpu", "runner.threads=1", "runner.directory=."]  # fmt: skip
SMALL = {"text_cnn": ["embedding=4", "filters=4", "min_texts=1"], "tfidf": [], "ngram_bag": ["dim=64", "buckets=512"]}


def write(path: str, rows: list[tuple[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def texts(seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(60 + seed)]
    topics = {f"c{c}": draw.sample(words, 6) for c in range(8)}
    return [
        (" ".join(draw.sample(own, 2) + draw.sample(words, 3)), name) for name, own in topics.items() for _ in range(7)
    ]


def train(name: str, model: str, *words: str) -> Path:
    sizes = [f"model.{word}" for word in SMALL[model]]
    words = ("algorithm.train_way=2", *words) if "algorithm=protonet" in words else words
    assert main([*QUICK, f"model={model}", *sizes, f"name={name}", *words]) == 0
    (run,) = Path(name).glob("*")
    return run


@pytest.mark.parametrize(
    ("model", "algorithm"),
    [("text_cnn", "protonet"), ("text_cnn", "metasgd"), ("tfidf", "protonet"), ("ngram_bag", "protonet")],
)
def test_the_order_of_rows_changes_no_result(model: str, algorithm: str) -> None:
    rows = texts(0)
    write("rows.csv", rows)
    random.Random(1).shuffle(rows)
    write("shuffled.csv", rows)
    run = train("run", model, "task.file=rows.csv", f"algorithm={algorithm}")
    expected = json.loads((run / "summary.json").read_text())["test"]
    assert main(["eval", str(run), "task.file=shuffled.csv"]) == 0
    (result,) = (run / "evaluations").glob("*.json")
    assert json.loads(result.read_text())["test"] == expected


def test_texts_of_other_words_are_read_by_the_runs_own_vocabulary() -> None:
    write("rows.csv", texts(0))
    write("more.csv", [*texts(0), *((f"{text} new{i}", label) for i, (text, label) in enumerate(texts(7)))])
    run = train("run", "text_cnn", "task.file=rows.csv", "algorithm=protonet")
    assert main(["eval", str(run), "task.file=more.csv"]) == 0

    started = train(
        "started",
        "text_cnn",
        "task.file=more.csv",
        "algorithm=protonet",
        f"runner.init_from={run}",
        "runner.iterations=0",
    )
    first, last = (torch.load(r / "checkpoints" / "last.pt", weights_only=True) for r in (run, started))
    for name, value in first["algorithm"]["parameters"].items():
        other = last["algorithm"]["parameters"][name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    # Of one model, on one file: the same result.
    assert main(["eval", str(started), "task.file=more.csv"]) == 0
    (there,), (here,) = ((r / "evaluations").glob("*.json") for r in (run, started))
    assert json.loads(there.read_text())["test"] == json.loads(here.read_text())["test"]
