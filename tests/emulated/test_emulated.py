"""Every algorithm on an emulated `cuda` device: it trains, evaluates, is captured, saved and restored as on the CPU.

The device computes real values by the CPU's kernels, refuses tensors of two devices, and counts what makes the host
wait for it (:mod:`tests.emulated.device`). It is registered in a process of its own, which is started once.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.adapted import load
from tests.emulated import runs
from tests.emulated.build import library, obstacle
from tests.emulated.process import Emulated
from tests.emulated.runs import Report
from tests.slow import slow_but
from tests.test_contracts import (  # noqa: F401 (fixtures)
    ALGORITHMS,
    SIMULATED,
    WORKING,
    bert,
    choices,
    covering,
    own_data,
    vit,
)

PREFERRED = [
    ("regression/sinusoid", "mlp"),
    ("vision/glyphs", "conv4"),
    ("rl/navigation", "context_policy"),
    ("rl/sparse_navigation", "mlp_policy"),
    ("rl/gridnavi", "gru_policy"),
    ("rl/gridnavi", "belief_policy"),
    ("rl/bandit", "mlp_policy"),
]
"""Tasks and models that need no data and little time."""


def cell_of(algorithm: str) -> tuple[str, str, str]:
    """The cheapest cell of an algorithm."""
    places = {pair: place for place, pair in enumerate(PREFERRED)}
    return min((c for c in WORKING if c[1] == algorithm), key=lambda c: places.get((c[0], c[2]), len(places)))


CAPTURED = ("maml", "protonet", "r2d2", "relation", "in_context", "anp", "rl2", "varibad", "anil_trpo", "maml_ppo")
"""One of each way to build a step; recordings take long, and the others are captured in the slow tests alone."""
DEAR = ("flow", "rl2_trpo")
"""Take as long as many others, and are walked among the slow tests alone."""
CELLS = [cell_of(name) for name in ALGORITHMS]


def classes_of(cell: tuple[str, str, str]) -> set[str]:
    """The classes that an algorithm's section names: its own, and those of its inner loop, loss, head and so on."""

    def named(section: Mapping[str, Any]) -> Iterator[str]:
        for key, value in section.items():
            if key == "_target_":
                yield value
            elif isinstance(value, Mapping):
                yield from named(value)

    return {*named(ALGORITHMS[cell[1]].section)}


CHOSEN = covering((cell for cell in CELLS if cell[1] not in DEAR), classes_of)
"""Have every class that an algorithm is made of; the other algorithms are walked among the slow tests."""
FURTHER = [cell for cell in WORKING if cell not in CHOSEN or cell[1] not in CAPTURED]
READ_BACK = {
    "models/scikit_learn.py": "the models of scikit-learn run on the host",
    "algorithms/amortised/baselines.py": "least squares by singular values, of a baseline that learns nothing",
}
"""Files with lines that make the host wait within a meta-step, and why they may."""
EXACT = 1e-5
"""Difference from the CPU, relative and in float64, up to which values count as the same. It is rounding, which the
conjugate gradients of TRPO multiply by up to 1e10; without them it is below 1e-8."""


@pytest.fixture(scope="session")
def emulated() -> Iterator[Emulated]:
    """A process with the device; skips, and says why, where it cannot be built."""
    if why := obstacle():
        pytest.skip(f"NOT TESTED ON A GPU'S TERMS: {why}")
    with Emulated(library()) as process:
        yield process


def test_every_algorithm_is_walked() -> None:
    assert [algorithm for _, algorithm, _ in CELLS] == [*ALGORITHMS]
    assert {*CELLS} <= {*CHOSEN, *FURTHER}
    assert {*CAPTURED} <= {algorithm for _, algorithm, _ in CHOSEN}
    dear = set.union(*(classes_of(cell) for cell in CELLS if cell[1] in DEAR))
    assert set.union(*map(classes_of, CELLS)) == set.union(*map(classes_of, CHOSEN)) | dear


@pytest.mark.parametrize("cell", CHOSEN, ids="-".join)
def test_the_device_does_what_the_cpu_does(
    cell: tuple[str, str, str],
    emulated: Emulated,
    own_data: dict[str, list[str]],  # noqa: F811
    request: pytest.FixtureRequest,
) -> None:
    words = [*choices(cell, own_data, request), "runner.precision=float64"]
    judge(emulated(runs.walk, words, cell[1] in CAPTURED))


@pytest.mark.slow
@pytest.mark.parametrize("cell", FURTHER, ids="-".join)
def test_further_cells(
    cell: tuple[str, str, str],
    emulated: Emulated,
    own_data: dict[str, list[str]],  # noqa: F811
    request: pytest.FixtureRequest,
) -> None:
    judge(
        emulated(runs.walk, [*choices(cell, own_data, request), "runner.precision=float64"]),
        simulated=cell[0] in SIMULATED or "half_cheetah" in cell[0],
    )


def judge(report: Report, simulated: bool = False) -> None:
    """What holds of every configuration; environments on the host may wait for the device at every step."""
    assert not report.strays
    assert {what: off for what, off in report.differences.items() if off > EXACT} == {}
    assert report.capture in ("same", "not tried", "no choice", "not captured by its own word")
    if simulated:
        return
    assert {kind for kind, _, _ in report.draw} <= {"to device, pinned"}
    for events in (report.step, report.after):  # as well in the step after a checkpoint was restored
        waiting = [event for event in events if event[0] != "to device, pinned"]
        assert [event for event in waiting if event[2].partition(":")[0] not in READ_BACK] == []


def test_the_device_itself(emulated: Emulated) -> None:
    said = emulated(runs.properties)
    assert "Expected all tensors to be on the same device" in said["sum of two devices"]
    assert "Expected all tensors to be on the same device" in said["product of two devices"]
    assert said["sum with a CPU number"] == "allowed"
    assert "Expected a 'cuda' device type for generator" in said["CPU generator"]
    assert "can't convert cuda:0 device type tensor to numpy" in said["numpy"]
    assert "operation not permitted when stream is capturing" in said["item while captured"]
    assert said["events"] == {
        "sync": 7,  # item, bool, nonzero, masked_select, a mask, equal, unique
        "to device, waiting": 2,
        "to device, pinned": 1,
        "to host, waiting": 2,
        "draw": 2,
    }
    assert said["replayed"] == [11.0, 11.0]
    assert said["same stream from the same seed"]
    assert max(said["recurrent cells"].values()) < EXACT
    assert said["second derivative by vmap"] < EXACT
    assert said["pickled"] == "cuda:0"
    assert said["peak"] >= 4 * 1000


SMALL = ["runner.validate_every=1", "runner.val_episodes=2", "runner.test_episodes=2", "runner.eval_batch=2",
         "runner.meta_batch=2", "runner.log_every=1", "runner.threads=1", "tracker.wandb=disabled"]  # fmt: skip
GLYPHS = ["task=vision/glyphs", "model.width=4", "task.test_ways=[]", "task.query=2", "task.way=3"]
WHOLE = {
    "maml": [*GLYPHS, "algorithm=maml", "algorithm.inner_steps=1", "algorithm.test_steps=2"],
    "protonet": ["task=nlp/text", "task.file=texts.jsonl", "task.way=2", "task.query=2", "task.test_ways=[]",
                 "model=ngram_bag", "model.buckets=256", "model.dim=16", "model.rank=4", "algorithm=protonet",
                 "algorithm.train_way=null", "algorithm.train_query=2"],
    # With a fixed number of points the two test tasks are independent, so that they have an interval.
    "cnp": ["task=regression/gp", "task.least_shot=50", "algorithm=cnp", "model=mlp", "model.hidden=[8,8]"],
    "rl2": ["task=rl/bandit", "algorithm=rl2", "model=gru_policy"],
    "pearl": ["task=rl/navigation", "task.horizon=10", "algorithm=pearl", "algorithm.gradient_steps=2",
              "algorithm.tasks=2", "algorithm.context=8", "algorithm.batch=6", "algorithm.replay_tasks=4",
              "algorithm.prior_episodes=1", "model=context_policy", "model.encoder=[4]", "model.actor=[4]",
              "model.critics=[4]"],
}  # fmt: skip


@pytest.fixture
def texts() -> Path:
    """A file of labelled texts in the working directory."""
    rows = [
        {"text": f"text {i} about subject {c} with word{c * i}", "label": f"label{c}"}
        for c in range(12)
        for i in range(6)
    ]
    Path("texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Path("texts.jsonl")


def metrics(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def assert_alike(ours: list[dict[str, float]], theirs: list[dict[str, float]], tolerance: float = 1e-3) -> None:
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance, nan_ok=True)


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("name", slow_but(["cnp", "rl2"], WHOLE))
def test_a_run_goes_on_on_the_other_device(name: str, emulated: Emulated) -> None:
    run = {device: emulated(runs.train, [*WHOLE[name], *SMALL, "runner.iterations=2", f"runner.device={device}"])
           for device in ("cpu", "cuda")}  # fmt: skip
    assert_alike(metrics(run["cpu"]), metrics(run["cuda"]))
    for device in run:
        assert "could not be drawn" not in (Path(run[device]) / "metarun.log").read_text()
    if name == "maml":  # the others' tensors are less than the tenth of a megabyte that is shown
        assert json.loads((Path(run["cuda"]) / "summary.json").read_text())["peak_mb"] > 0
    held = torch.load(Path(run["cuda"]) / "checkpoints" / "last.pt", map_location="cpu", weights_only=True)
    assert held["progress"]["iteration"] == 2

    for mine, other in (("cpu", "cuda"), ("cuda", "cpu")):
        emulated(
            runs.command, ["resume", run[mine], "runner.iterations=3", f"runner.device={other}", "runner.plots=false"]
        )
    assert_alike(metrics(run["cpu"]), metrics(run["cuda"]))
    judged = [emulated(runs.command, ["eval", run["cuda"], f"runner.device={device}"]) for device in ("cpu", "cuda")]
    assert [said.partition("results ")[0] for said in judged] == [judged[0].partition("results ")[0]] * 2


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize("name", slow_but(["protonet"], ["maml", "protonet", "cnp"]))
def test_adapt_is_the_same(name: str, emulated: Emulated) -> None:
    noise = np.random.default_rng(0)
    if name == "maml":
        support = query = "own"
        for kind in "abc":
            (Path("own") / kind).mkdir(parents=True)
            for i in range(3):
                image = noise.integers(0, 255, (28, 28), dtype=np.uint8)
                Image.fromarray(image).save(Path("own") / kind / f"{i}.png")
    elif name == "protonet":
        support = query = "own.csv"
        Path(support).write_text(
            "text,label\n" + "".join(f"words {i} of kind {k},{k}\n" for i in range(3) for k in "ab")
        )
    else:
        support, query = "own.csv", "asked.csv"
        Path(support).write_text("x,y\n0.1,0.5\n-0.7,0.2\n1.1,-0.3\n")
        Path(query).write_text("x\n0.0\n0.5\n")
    tables = []
    for device in ("cpu", "cuda"):
        words = [*SMALL, "runner.iterations=1", "runner.plots=false", f"runner.device={device}"]
        run = emulated(runs.train, [*WHOLE[name], *words])
        emulated(runs.command, ["adapt", run, "--support", support, "--query", query, f"--out={device}"])
        with (Path(device) / "predictions.csv").open() as file:
            tables.append(list(csv.reader(file)))
    assert [row[0] for row in tables[0]] == [row[0] for row in tables[1]]
    for ours, theirs in zip(*tables, strict=True):
        assert [number(x) for x in ours] == [pytest.approx(number(x), abs=1e-3) for x in theirs]
    learners = [load(device) for device in ("cpu", "cuda")]  # what was saved on a GPU is read without one
    assert learners[1].support.x.device.type == "cpu"
    assert torch.allclose(learners[0].support.x, learners[1].support.x)


def number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_reduced_precisions(precision: str, emulated: Emulated) -> None:
    words = [*WHOLE["maml"], *SMALL, "runner.iterations=1", "runner.plots=false", f"runner.precision={precision}"]
    run = emulated(runs.train, [*words, "runner.device=cuda"])
    assert json.loads((Path(run) / "meta.json").read_text())["gradient_error"]["precision"] == precision


def test_the_search_for_a_plan_captures_steps(
    emulated: Emulated, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    words = [*WHOLE["cnp"], *SMALL, "runner.iterations=2", "runner.tune_above=0", "runner.plots=false"]
    run = emulated(runs.train, [*words, "runner.device=cuda"])
    assert json.loads((Path(run) / "meta.json").read_text())["step"]["plan"]
    assert "could not be captured" not in (Path(run) / "metarun.log").read_text()


def test_a_step_that_reads_back_runs_uncaptured(emulated: Emulated) -> None:
    said, off = emulated(runs.fallback)
    assert "the step could not be captured and runs uncaptured" in said
    assert off < EXACT
