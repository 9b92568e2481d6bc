"""``metarun export``: what a run learned, in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import metarun
from metarun.cli import main

QUICK = ["runner.iterations=2", "runner.meta_batch=2", "runner.validate_every=0", "runner.test_episodes=4",
         "runner.plots=false", "runner.device=cpu", "runner.threads=1", "tracker.wandb=disabled"]  # fmt: skip


def trained(*words: str) -> Path:
    assert main(["task=regression/quadratics", *words, *QUICK]) == 0
    return sorted(Path("outputs").glob("*/*/config.yaml"))[-1].parent


def test_an_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained("algorithm=l2l_mlp", "algorithm.inner_steps=4", "algorithm.test_steps=4")
    capsys.readouterr()
    assert main(["export", str(run), "--to", "optimizer", "--out", "new"]) == 0
    assert "metarun.load_optimizer('new/optimizer.pt')" in capsys.readouterr().out
    assert main(["export", str(run), "--to", "optimizer"]) == 0
    assert (run / "optimizer" / "optimizer.pt").is_file()
    net = nn.Linear(10, 1, bias=False)
    optimizer = metarun.load_optimizer("new/optimizer.pt")(net.parameters())
    stored = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["algorithm"]["parameters"]
    held = {f"rule.{name}": value for name, value in optimizer.rule.state_dict().items()}
    assert held
    assert all(torch.equal(value, stored[name]) for name, value in held.items())
    net(torch.ones(3, 10)).square().mean().backward()
    before = net.weight.clone()
    optimizer.step()
    assert not torch.equal(net.weight, before)

    for words, why in (
        (["--to", "optimizer"], "needs a RUN"),
        ([str(run), str(run), "--to", "optimizer"], "takes one RUN"),
        ([str(run)], "--to is missing"),
        ([str(run), "--to", "optimiser"], "did you mean 'optimizer'"),
        ([str(run), "--to", "optimizer", "algorithm.inner_lr=1"], "changes no keys"),
        ([str(run), "--to", "optimizer", "--out", "new/optimizer.pt"], "no folder can be made"),
        (["nowhere", "--to", "optimizer"], "nowhere"),
    ):
        assert main(["export", *words]) == 2
        said = capsys.readouterr().err
        assert why in said
        assert len(said.splitlines()) <= 2


@pytest.mark.parametrize(("algorithm", "why"), [("metasgd", "own model"), ("maml", "nothing is learned")])
def test_an_update_rule_that_is_no_optimizer(
    algorithm: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(f"algorithm={algorithm}")
    capsys.readouterr()
    assert main(["export", str(run), "--to", "optimizer"]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert len(said.strip().splitlines()) == 1
    assert not (run / "optimizer" / "optimizer.pt").exists()
