"""``metarun adapt`` on tables of a user's own: types, oddities, calibration, importance, tables that cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.adapted import AdaptedLearner, load
from metarun.adapted.sources import support
from metarun.adapted.tables import importance
from metarun.cli import main
from metarun.config.build import construct
from metarun.config.catalogue import entry
from metarun.errors import UserError
from metarun.tasks.episode import Spec
from metarun.tasks.inputs import Inputs

SMALL = ["task=tabular/prior", "task.way=4", "task.shot=20", "model.width=8", "model.row_width=8", "model.heads=2",
         "model.layers=1", "model.row_layers=1",
         "runner.iterations=0", "runner.validate_every=0", "algorithm.decay_over=null",
         "runner.test_episodes=8", "runner.plots=false",
         "runner.device=cpu", "runner.threads=1", "tracker.wandb=disabled"]  # fmt: skip
INPUTS = Inputs(Spec("classification", "table", (3,), 4))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose learner is untrained."""
    root = tmp_path_factory.mktemp("run")
    assert main([*SMALL, f"runner.directory={root}", "name=tables"]) == 0
    (config,) = root.glob("*/*/config.yaml")
    return str(config.parent)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def flowers(count: int, seed: int) -> list[dict[str, Any]]:
    """A row number, a length that tells the kind, a colour, a date and a constant."""
    noise = np.random.default_rng(seed)
    kinds = [i % 3 for i in range(count)]
    return [
        {
            "id": 100 + i,
            "length": round(float(kind + 0.2 * noise.normal()), 3),
            "colour": "red" if kind else "blue",
            "seen": f"2025-03-{1 + i % 28:02d}",
            "unit": "cm",
            "kind": "abc"[kind],
        }
        for i, kind in enumerate(kinds)
    ]


def test_a_table_with_oddities(run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known, new = flowers(30, 0), flowers(9, 1)
    known[3]["colour"], known[5]["length"], known[29] = "blu", "?", known[2]
    new[4]["colour"], new[6]["length"], new[8]["kind"] = "redd", "inf", "c"
    out = tmp_path / "out"
    words = ["--support", str(write(tmp_path / "known.csv", known)), "--query", str(write(tmp_path / "new.csv", new))]
    assert main(["adapt", run, *words, "--target", "kind", f"--out={out}"]) == 0
    for told in (
        "numbers: length; categories: colour; dates: seen",
        "not used: id (it numbers the rows)",
        "the learner was trained on at most 20 rows",
        "not used: unit (always 'cm')",
        "'blu' occurs once - did you mean 'blue'?",
        "1 gap",
        "1 row is a copy of others",
        "line 6: 'colour' is 'redd', which is none of the support set's categories; read as a gap - did you mean 'red'",
        "line 8: 'length' is 'inf', which cannot be read as one of the numbers; read as a gap",
    ):
        assert told in caplog.text
    result = json.loads((out / "result.json").read_text())
    assert result["query"]["baselines"]["most frequent class"] == pytest.approx(1 / 3)
    assert (out / "sheet.png").stat().st_size > 1000
    with (out / "predictions.csv").open() as file:
        printed = list(csv.DictReader(file))
    assert [row["known"] for row in printed] == [row["kind"] for row in new]

    # By hand: the columns as numbers, the network, and the temperature of the smallest leave-one-out loss.
    def number(row: dict[str, Any]) -> list[float]:
        colour = {"blu": 0, "blue": 1, "red": 2}.get(row["colour"], np.nan)
        return [np.nan if row["length"] == "?" else row["length"], colour]

    learner = load(out)
    x = torch.tensor([number(row) for row in known])
    assert torch.equal(learner.support.x[0, :, :2].nan_to_num(-1), x.nan_to_num(-1))
    dates = learner.support.x[0, :, 2]
    assert (dates - dates[0]).tolist() == [float(row["seen"][-2:]) - 1 for row in known]
    y, tested = learner.support.y[0], []
    for i in range(30):
        rest = [j for j in range(30) if j != i]
        other = AdaptedLearner.adapt(
            learner.algorithm, learner.inputs, learner.support.x[0, rest].numpy(), ["abc"[y[j]] for j in rest]
        )
        tested.append(other.predict(learner.support.x[0, i].numpy()).probabilities[0].log())
    logits = torch.stack(tested)
    losses = {t: torch.nn.functional.cross_entropy(logits / t, y).item() for t in torch.logspace(-2, 2, 41, 2).tolist()}
    assert learner.temperature == pytest.approx(min(losses, key=losses.__getitem__))
    assert result["leave_one_out"]["accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())


def adapted(rows: list[dict[str, Any]], path: Path, target: str | None = "kind") -> tuple[AdaptedLearner, Any]:
    """The nearest support row as the learner, whatever the transformer would say."""
    given = support(INPUTS, write(path / "known.csv", rows), target)
    section = entry("algorithm", "prior_fitted")
    assert section is not None
    algorithm = construct({**section.section, "decay_over": None}, model=Nearest(), spec=INPUTS.spec)
    return AdaptedLearner.adapt(algorithm, INPUTS, given.items, given.targets), given


class Nearest(torch.nn.Module):
    role = "in_context"

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(50.0))

    def forward(self, x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        apart = (queries[:, :, None, :1] - x[:, None, :, :1]).square().sum(-1)
        return 10 * (-self.scale * apart).softmax(-1) @ y


def test_importance_is_that_of_the_column_that_is_used(tmp_path: Path) -> None:
    learner, given = adapted(flowers(30, 0), tmp_path)
    lost, score = importance(learner, given, None)
    assert given.columns is not None
    assert given.columns[0] == ["length", "colour", "seen"]
    assert lost[0].mean() > 0.3
    assert abs(lost[1:]).max() == 0
    assert score == "accuracy lost on 30 support rows, each fifth predicted from the others"


def test_scikit_learn_stands_beside_it(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    words = ["--support", str(write(tmp_path / "known.csv", flowers(30, 0)))]
    words += ["--query", str(write(tmp_path / "new.csv", flowers(9, 1))), "--target=kind"]
    assert main(["adapt", run, *words, f"--out={tmp_path / 'out'}"]) == 0
    assert "logistic regression 1; random forest 1; gradient boosting 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "target", "said"),
    [
        ([{"a": 1, "kind": "x"}, {"a": 2, "kind": "y"}], None, r"--target is missing.*columns: a, kind"),
        ([{"a": 1, "kind": "x"}, {"a": 2, "kind": "y"}], "kin", r"no such column - did you mean 'kind'"),
        ([{"a": i, "kind": "x"} for i in (1, 4, 2)], "kind", r"has 1 class; at least 2"),
        ([{"a": 1, "kind": ""}, {"a": 2, "kind": ""}], "kind", r"has no values"),
        ([{"a": i, "kind": "vwxyz"[i]} for i in range(5)], "kind", r"5 classes.*up to 4 classes"),
        ([{"a": "", "b": "?", "kind": k} for k in "xyx"], "kind", r"no column can predict 'kind'.*a \(no values\)"),
        ([{"kind": k} for k in "xyx"], "kind", r"there is no other column"),
        ([{**{f"c{i}": i for i in range(10_000)}, "kind": k} for k in "xy"], "kind", r"has 10,000 columns"),
        ([{"a": "oops" if i == 7 else i, "kind": "xy"[i % 2]} for i in range(40)], "kind",
         r"line 9: 'a' is 'oops' and other rows have numbers \(39 of 40\)"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_gets_one_clear_line(
    rows: list[dict[str, Any]], target: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as error:
        adapted(rows, tmp_path, target)
    assert "\n" not in str(error.value)


def test_of_many_rows_each_class_keeps_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.adapted.table_sources.MOST_ROWS", 10)
    rows = [{"length": i * i, "kind": "xyz"[(i > 38) + (i > 48)]} for i in range(50)]
    given = support(INPUTS, write(tmp_path / "known.csv", rows), "kind")
    assert [given.targets.count(kind) for kind in "xyz"] == [7, 2, 1]
    assert "10 of 50 rows are used, drawn by class with a fixed seed" in given.notes
    lengths = [item[0] for item in given.items]
    assert lengths == sorted(lengths)


def test_three_rows_are_enough(tmp_path: Path) -> None:
    learner, _ = adapted([{"length": i, "kind": k} for i, k in ((0, "x"), (1, "y"), (5, "x"))], tmp_path)
    learner.calibrate()
    assert learner.temperature == 1
    assert learner.predict([[0.1], [1.0]]).labels == ["x", "y"]


def test_infinite_numbers_of_the_support_set_are_gaps(tmp_path: Path) -> None:
    rows = [{"length": "inf" if i == 4 else i, "other": i * i, "kind": "xy"[i % 2]} for i in range(12)]
    given = support(INPUTS, write(tmp_path / "known.csv", rows), "kind")
    assert np.isnan(given.items[4][0])
    assert "length: 1 infinite number is read as a gap" in given.notes


@pytest.mark.usefixtures("undrawn")
def test_columns_are_matched_by_name(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = write(tmp_path / "known.csv", flowers(12, 0))
    new = [{name: row[name] for name in reversed(row) if name not in ("kind", "unit")} for row in flowers(6, 1)]
    words = ["adapt", run, "--support", str(known), "--target=kind", "--query"]
    assert main([*words, str(write(tmp_path / "new.csv", new)), f"--out={tmp_path / 'a'}"]) == 0
    same = [{name: row[name] for name in row if name != "kind"} for row in flowers(6, 1)]
    assert main([*words, str(write(tmp_path / "same.csv", same)), f"--out={tmp_path / 'b'}"]) == 0
    assert (tmp_path / "a" / "predictions.csv").read_text() == (tmp_path / "b" / "predictions.csv").read_text()
    for row in new:
        row["lenght"] = row.pop("length")
    assert main([*words, str(write(tmp_path / "typo.csv", new))]) == 2
    assert (
        "no column 'length', which is an input of the support set - did you mean 'lenght'?" in capsys.readouterr().err
    )
