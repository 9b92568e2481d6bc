"""The table over intent folds: means over folds of what runs on them gave."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.script import script

WORDS = [
    "task=nlp/intents", "model=text_cnn", "model.embedding=4", "model.filters=2", "algorithm=protonet",
    "algorithm.train_way=null", "task.query=5", "task.test_ways=[10]", "runner.iterations=0", "runner.test_episodes=4",
    "runner.threads=1", "runner.device=cpu",
]  # fmt: skip


@pytest.fixture
def intents(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script("intents")
    monkeypatch.setattr(module, "NUMBERS", (1, 3))
    return module


def test_a_mean_over_folds_has_the_interval_of_independent_means(intents: ModuleType) -> None:
    folds = [{"mean": 0.5, "ci95": 0.03}, {"mean": 0.7, "ci95": 0.04}]
    found = intents.over_folds(folds)
    assert found["mean"] == pytest.approx(0.6)
    assert found["ci95"] == pytest.approx(0.025)  # half of sqrt(.03 ** 2 + .04 ** 2)
    assert found["sd"] == pytest.approx(0.02**0.5)


@pytest.mark.data
def test_the_table(intents: ModuleType, data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert intents.main([*WORDS, "--datasets", "HWU64", "--shots", "1", "--json", "all.json"]) == 0
    printed = capsys.readouterr().out.splitlines()
    cells = json.loads(Path("all.json").read_text())["rows"]["HWU64"]
    assert [*cells] == ["5-way 1-shot", "10-way 1-shot"]
    each = [intents.fold(WORDS, "HWU64", number, 1) for number in (1, 3)]
    for way, cell in zip((5, 10), cells.values(), strict=True):
        assert cell["folds"] == [one[way] for one in each]
        assert all(one[way]["n"] == 4 for one in each)
        assert f"{100 * cell['mean']:.2f} +-" in printed[1]
    assert each[0] != each[1]
    assert re.match(r"HWU64 ", printed[1])
