"""Every option trains, is stopped, resumes, is evaluated and adapts: the whole life of a run, through the commands."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarun.cli import main
from metarun.config.catalogue import catalogue
from metarun.config.compose import compose
from metarun.config.paths import use_config_dir
from metarun.tracking.console import Display
from metarun.tracking.rundir import RunDirectory
from tests.slow import slow_but
from tests.test_contracts import (  # noqa: F401
    ALGORITHMS,
    MODELS,
    TASKS,
    WORKING,
    Cell,
    _embeddings,
    bert,
    choices,
    covering,
    own_data,
    vit,
)

LENGTH = ["runner.iterations=3", "runner.validate_every=2", "runner.val_episodes=2", "runner.test_episodes=2",
          "runner.log_every=1", "runner.tune_above=null"]  # fmt: skip


def options_of(cell: Cell) -> set[tuple[str, str]]:
    return set(zip(("task", "algorithm", "model"), cell, strict=True))


def fewest(cells: list[Cell]) -> list[Cell]:
    """Few of ``cells`` that have every option of all of them: always the one that adds most."""
    left, chosen = set().union(*map(options_of, cells)), []
    while left:
        chosen.append(max(cells, key=lambda cell: len(left & options_of(cell))))
        left -= options_of(chosen[-1])
    return chosen


def class_of(cell: Cell) -> str:
    """The class of its algorithm."""
    return str(ALGORITHMS[cell[1]].section["_target_"])


CELLS = fewest(WORKING)
QUICK = covering(WORKING, lambda cell: {("class", class_of(cell)), ("input", TASKS[cell[0]].attributes["modality"])})


def test_every_option_is_walked() -> None:
    every = {"task": TASKS, "algorithm": ALGORITHMS, "model": MODELS}
    assert set().union(*map(options_of, CELLS)) == {(group, name) for group in every for name in every[group]}
    assert {*map(class_of, QUICK)} == {str(entry.section["_target_"]) for entry in ALGORITHMS.values()}


def stop_after(iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the run to stop when so many iterations are done, once."""
    step = Display.step

    def stopping(self: Display, done: int, row: Any) -> None:
        step(self, done, row)
        if done == iteration:
            monkeypatch.setattr(Display, "step", step)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Display, "step", stopping)


def live(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train, stop after two iterations, resume to the third, evaluate; the run. Baselines that learn nothing finish."""
    stop_after(2, monkeypatch)
    status = main([*words, *LENGTH])
    (config,) = Path("outputs").glob("*/*/config.yaml")
    run = config.parent
    learns = (RunDirectory(run).summary() or {}).get("iterations") != 0
    assert status == (143 if learns else 0)
    assert json.loads((run / "status.json").read_text())["state"] == ("interrupted" if learns else "finished")
    use_config_dir(None)  # a run comes back without the configuration files that it was made of
    own = ["--trust"] if any("tests." in word for word in words) else []  # code beside metarun's own
    assert main(["resume", str(run), *own]) == 0
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    iterations = [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert iterations == ([1, 2, 2, 3, 3, 3] if learns else [0])
    assert main(["eval", str(run), *own]) == 0
    (again,) = run.glob("evaluations/*.json")
    assert json.loads(again.read_text())["test"] == json.loads((run / "summary.json").read_text())["test"]
    return run


def support_for(spec: dict[str, Any], root: Path) -> Path:
    """A user's own task for such a learner."""
    noise = np.random.default_rng(0)
    root.mkdir()
    if spec["modality"] == "image":
        for label in ("left", "right"):
            (root / label).mkdir()
            for i in range(2):
                Image.fromarray(noise.integers(0, 256, (30, 30), dtype=np.uint8)).save(root / label / f"{i}.png")
        return root
    table = root / "table.csv"
    if spec["modality"] == "table":
        rows = [f"{i},{i * i % 7},{i % 2}" for i in range(6)]
        table.write_text("\n".join(["a,b,y0", *rows]) + "\n")
        return table
    if spec["modality"] == "text":
        table.write_text("text,label\nbook a table,eat\na table for two,eat\nplay jazz,hear\nmore jazz,hear\n")
        return table
    names = [f"x{i}" for i in range(spec["input_shape"][0])] + [f"y{i}" for i in range(spec["output_size"])]
    rows = noise.uniform(-1, 1, (6, len(names)))
    table.write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in rows.tolist())]) + "\n")
    return table


def adapts(run: Path) -> bool:
    """Whether the run's learner was applied to a user's own task; control and generation are refused."""
    spec = (RunDirectory(run).inputs() or {}).get("spec", {"kind": "control"})
    possible = spec["kind"] not in ("control", "generation", "optimization") and spec["modality"] in (
        "image",
        "text",
        "vector",
        "table",
    )
    support = support_for(spec, Path("own")) if possible else Path()
    target = ["--target=y0"] if spec.get("modality") == "table" else []
    assert main(["adapt", str(run), "--support", str(support), *target]) == (0 if possible else 2)
    return possible


def walk(cell: Cell, own: dict[str, list[str]], request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> None:
    adapts(live(choices(cell, own, request), patch))


@pytest.mark.parametrize("cell", QUICK, ids="-".join)
def test_life_of_a_kind(
    cell: Cell,
    own_data: dict[str, list[str]],  # noqa: F811
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walk(cell, own_data, request, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell not in QUICK], ids="-".join)
def test_life_of_an_option(
    cell: Cell,
    own_data: dict[str, list[str]],  # noqa: F811
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walk(cell, own_data, request, monkeypatch)


OWN = {
    "beside": "defaults:\n  - np\nsamples: 3\n",
    "absolute": "defaults:\n  - /algorithm/np@_here_\nsamples: 3\n",
    "under_itself": "defaults:\n  - _self_\n  - np\nsamples: 3\n",
    "folder/nested": "defaults:\n  - folder/base@_here_\nsamples: ${task.least_shot}\n",
    "folder/base": "defaults:\n  - /algorithm/np@_here_\n",
    "everywhere": "# @package _global_\ndefaults:\n  - /algorithm/np\nalgorithm:\n  samples: 3\n",
}
"""A user's own options that build on a shipped one, in each way that Hydra has for it."""


@pytest.fixture
def own_options(tmp_path: Path) -> Path:
    for name, text in OWN.items():
        file = tmp_path / "conf" / "algorithm" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "conf"


def test_what_an_option_is_built_on_is_read_as_hydra_reads_it(own_options: Path) -> None:
    use_config_dir(str(own_options))
    try:
        for entry in catalogue("algorithm"):
            if entry.name in OWN:
                composed = compose(["task=regression/gp", "model=mlp", f"algorithm={entry.name}"]).config["algorithm"]
                read = {**entry.section, "samples": composed["samples"]} if "$" in OWN[entry.name] else entry.section
                assert read == composed, entry.name
    finally:
        use_config_dir(None)


@pytest.mark.parametrize("name", slow_but(["folder/nested", "everywhere"], OWN))
def test_life_of_own_option(name: str, own_options: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["algorithm.width=8", "algorithm.latent=4", "model=mlp", "model.hidden=[8]", "runner.meta_batch=2"]
    words = ["--config-dir", str(own_options), "task=regression/gp", f"algorithm={name}", *small]
    assert adapts(live([*words, "runner.plots=false", "runner.device=cpu"], monkeypatch))
