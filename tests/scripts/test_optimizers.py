"""The comparison of what is learned with tuned controls, on a budget of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from metarun.errors import UserError
from tests.script import script

QUADRATICS = ["task=regression/quadratics", "algorithm.test_steps=10"]
SINUSOID = ["experiment=ml3/sinusoid", "task.shot=8", "model.hidden=[8,8]", "algorithm.test_steps=3"]
SMALL = ["runner.iterations=2", "runner.meta_batch=2", "runner.val_episodes=6", "runner.test_episodes=8"]
SMALL += ["runner.eval_batch=4", "runner.validate_every=0", "runner.threads=1", "runner.device=cpu"]


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = script("optimizers")
    monkeypatch.setattr(module, "GRID", [1e-6, 0.01, 1e3])
    monkeypatch.chdir(tmp_path)
    return module


@pytest.mark.parametrize(
    ("words", "learned", "against"),
    [(QUADRATICS, "l2l", None), pytest.param(SINUSOID, "ml3", "sgd", marks=pytest.mark.slow)],
    ids=["l2l", "ml3"],
)
def test_tuned_controls_beside_what_is_learned(
    optimizers: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], learned: str, against: str | None
) -> None:
    options = ["--json", "all.json", *(["--against", against] if against else [])]
    assert optimizers.main([*words, "--learned", learned, *SMALL, *options]) == 0  # in any order
    printed = capsys.readouterr().out
    stored = json.loads(Path("all.json").read_text())
    rows = stored["rows"]
    assert [*rows] == ["sgd", "momentum", "rmsprop", "adam", learned]
    assert all(f"\n{name} " in printed for name in rows)
    assert "8 meta-test tasks" in printed
    # The step size that neither stands still nor diverges is chosen; the best control by validation is told apart.
    assert rows["sgd"]["lr"] == 0.01
    assert rows["sgd"]["grid"]["1000.0"] > rows["sgd"]["grid"]["0.01"]
    assert stored["best_control"] == min([*optimizers.RULES], key=lambda name: rows[name]["val"])
    # All start from the same points, so differences task by task mean something; a row has none to itself.
    first = [row["log10_loss"][0]["mean"] for row in rows.values()]
    assert first == pytest.approx([first[0]] * 5, rel=1e-6)
    assert stored["against"] == (against or stored["best_control"])
    assert rows[stored["against"]]["difference"] == {"mean": 0.0, "ci95": 0.0, "n": 8}
    assert rows[learned]["difference"]["mean"] == pytest.approx(
        rows[learned]["log10_loss"][-1]["mean"] - rows[stored["against"]]["log10_loss"][-1]["mean"]
    )


def test_what_does_not_fit_is_told_as_metarun_tells_it(optimizers: ModuleType) -> None:
    with pytest.raises(UserError, match="unknown"):
        optimizers.main(["task=regression/quadratic"])
