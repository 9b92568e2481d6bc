"""Real tables: files as tasks, splits of rows, what is left out, and scikit-learn's models on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.cli import main
from metarun.config.build import construct
from metarun.config.catalogue import entry
from metarun.errors import UserError
from metarun.tasks.episode import Spec
from metarun.tasks.tabular.real import CsvTables, RealTables, SklearnTables
from tests.composed import composed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four tables of 30 rows; the class is the last column, and tells the sign of the first."""
    noise = np.random.default_rng(0)
    for name, columns in (("a", 2), ("b", 3), ("c", 4), ("d", 2)):
        x = noise.normal(size=(30, columns))
        rows = [[*map(str, row.round(3)), "up" if row[0] > 0 else "down"] for row in x]
        header = [f"x{i}" for i in range(columns)] + ["class"]
        (tmp_path / f"{name}.csv").write_text("\n".join(",".join(row) for row in [header, *rows]))
    return tmp_path


def csv_tables(root: Path, **changes: Any) -> CsvTables:
    section = composed("task=tabular/csv", f"task.root={root}")["task"]
    return construct({**section, "splits": 3, **changes}, seed=0)


def rows(part: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in part.tolist()}


def test_each_task_splits_the_rows_of_a_table_anew(folder: Path) -> None:
    family = csv_tables(folder, shot=15, query=100)
    batch = family.batch("test", range(3, 6))
    assert batch.support.x.shape == (3, 15, 3)
    assert batch.query.x.shape == (3, 15, 3)
    every = rows(torch.tensor(family.tables["test"][1].x).float())
    for t in range(3):
        support, query = rows(batch.support.x[t]), rows(batch.query.x[t])
        assert not support & query
        assert support | query == every
        assert batch.support.y[t].unique().tolist() == [0, 1]
        assert torch.equal(batch.support.y[t], (batch.support.x[t, :, 0] > 0).long())  # down before up
    assert rows(batch.support.x[0]) != rows(batch.support.x[1])
    alone = family.batch("test", [4])
    assert torch.equal(alone.support.x[0], batch.support.x[1])
    assert family.tested_together == 3


def test_tables_are_shared_out_to_the_splits(folder: Path) -> None:
    family = csv_tables(folder, train=0.5, val=0.25)
    names = {split: [table.name for table in part] for split, part in family.tables.items()}
    assert [len(names[split]) for split in ("train", "val", "test")] == [2, 1, 1]
    assert sorted(name for part in names.values() for name in part) == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match=r"task\.train=0: there is no table for the split train"):
        csv_tables(folder).batch("train", [0])
    with pytest.raises(UserError, match="no table is left for the test"):
        csv_tables(folder, train=0.5, val=0.5)
    with pytest.raises(UserError, match=r"task\.splits=3: tasks 1 to 3 .* different tables"):
        csv_tables(folder).batch("test", range(1, 4))


def test_what_is_left_out_is_told(folder: Path) -> None:
    (folder / "few.csv").write_text("a,class\n1,x\n2,y\n3,x\n")
    (folder / "one.csv").write_text("a,class\n" + "\n".join(f"{i * i},x" for i in range(20)))
    (folder / "mixed.csv").write_text("a,class\n" + "\n".join(f"{'oops' if i == 5 else i},{i % 2}" for i in range(60)))
    (folder / "empty.csv").write_text("a,class\n")
    told = "\n".join(csv_tables(folder, columns=3).remarks())
    assert "c is left out: 4 columns, and at most 3" in told
    assert "few is left out: 3 rows" in told
    assert "one is left out: 1 classes" in told
    assert "mixed.csv is left out" in told
    assert "empty.csv is left out: it has no rows" in told
    assert "a: class from numbers: x0, x1" in told
    with pytest.raises(UserError, match=r"task\.target=clas: .*no such column - did you mean 'class'"):
        csv_tables(folder, target="clas")
    with pytest.raises(UserError, match=r"task\.root=.*give a folder"):
        csv_tables(folder / "nowhere")


def test_scikit_learns_sets() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    section = composed("task=tabular/sklearn")["task"]
    family: SklearnTables = construct(section, seed=0)
    assert [table.x.shape for table in family.tables["test"]] == [(150, 4), (178, 13), (569, 30)]
    assert isinstance(family, RealTables)
    with pytest.raises(UserError, match=r"'irs' is none of .* did you mean 'iris'"):
        construct({**section, "sets": ["irs"]}, seed=0)


@pytest.mark.parametrize(
    "name", ["nearest_neighbours", "linear", "decision_tree", "random_forest", "gradient_boosting"]
)
def test_an_estimator_is_fitted_to_the_support_rows(name: str) -> None:
    """Against scikit-learn on imputed and standardised rows; a class without a support row gets no probability."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    section = entry("model", "scikit_learn")
    assert section is not None
    model = construct({**section.section, "estimator": name}, spec=Spec("classification", "table", (3,), 4))
    torch.manual_seed(0)
    x, queries, y = torch.randn(2, 20, 3).double(), torch.randn(2, 7, 3).double(), torch.randint(0, 2, (2, 20)) * 2
    x[0, 3, 1] = queries[0, 2, 1] = torch.nan
    found = model(x, torch.nn.functional.one_hot(y, 4).double(), queries).exp()
    known = x[0].numpy()
    median = np.nanmedian(known, 0)
    filled, asked = (np.where(np.isnan(part), median, part) for part in (known, queries[0].numpy()))
    mean, std = filled.mean(0), filled.std(0)
    own = model._new()[-1].fit((filled - mean) / std, y[0])
    expected = np.clip(own.predict_proba((asked - mean) / std), 1e-6, 1)
    np.testing.assert_allclose(found[0][:, [0, 2]], expected, atol=1e-9)
    assert found[:, :, [1, 3]].max() <= 1.1e-6
    values = construct({**section.section, "estimator": name}, spec=Spec("regression", "table", (3,), 2))
    assert values(x, torch.randn(2, 20, 2).double(), queries).shape == (2, 7, 4)


def test_a_baseline_is_evaluated_without_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.chdir(folder)
    words = ["task=tabular/csv", f"task.root={folder}", "model=scikit_learn", "model.estimator=linear",
             "runner.test_episodes=20", "runner.plots=false", "runner.device=cpu", "tracker.wandb=disabled",
             "runner.threads=1", "algorithm.decay_over=null"]  # fmt: skip
    assert main(words) == 0
    (summary,) = folder.glob("outputs/*/*/summary.json")
    found = json.loads(summary.read_text())["test"]["auc"]
    assert found["mean"] > 0.9
    assert found["together"] == 5
