"""Curves of an exported optimizer beside Adam's and SGD's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metarun.adapted.optimizer_file import save_optimizer
from metarun.config.build import construct
from metarun.errors import UserError
from tests.composed import composed
from tests.script import script


@pytest.mark.slow
def test_an_exported_optimizer_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = script("optimizer_curves")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        curves, "STEP_SIZES", {"learned": (1.0, 0.5), "adam": (1e-9, 1e-3, 1e-2), "sgd": (0.01, 0.1, 1e9)}
    )
    section = composed("task=optimization/networks")["algorithm"]
    save_optimizer(Path("o.pt"), section["rule"], 0.01, 100, construct(section["rule"]).state_dict())
    threads = torch.get_num_threads()
    assert curves.main(["o.pt", "--seeds", "2", "--steps", "6", "--out", "o.png", "--json", "o.json"]) == 0
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    found = json.loads(Path("o.json").read_text())
    assert [*found] == ["mlp", "conv4", "transformer"]
    for problem, rows in found.items():
        assert f"\n{problem}\n" in f"\n{said}"
        assert [*rows] == [
            "learned 1",
            "learned 0.5",
            "adam 1e-09",
            "adam 0.001",
            "adam 0.01",
            "sgd 0.01",
            "sgd 0.1",
            "sgd 1e+09",
        ]
        starts = {tuple(curve[0] for curve in row["curves"]) for row in rows.values()}
        assert len(starts) == 1  # the same weights and minibatches for all
        assert all(len(row["curves"]) == 2 and row["milliseconds"] > 0 for row in rows.values())
        # The untrained rule is Adam with its step size: it beats one that stands still and one that diverges.
        adam, learned = (torch.tensor(rows[name]["curves"]) for name in ("adam 0.01", "learned 1"))
        assert torch.allclose(adam[:, :2], learned[:, :2], rtol=1e-2)
        assert learned[:, -1].mean() < torch.tensor(rows["adam 1e-09"]["curves"])[:, -1].mean()
    assert said.count("lower than") == said.count("of 3 of adam") == said.count("of 3 of sgd") == 6
    assert Path("o.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="no such file"):
        curves.main(["nothing.pt"])
