"""A model pretrained on all classes, and episodic training that starts from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metarun.cli import main

COMMON = [
    "task=vision/glyphs", "task.test_ways=[]", "runner.plots=false", "runner.threads=1",
    "runner.device=cpu", "runner.val_episodes=2", "runner.test_episodes=2", "runner.directory=.", "runner.eval_batch=2",
]  # fmt: skip


def parameters(name: str, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    (path,) = Path(name).glob(f"*/checkpoints/{checkpoint}.pt")
    return torch.load(path, weights_only=True)["algorithm"]["parameters"]


def run(name: str, *words: str) -> int:
    given = any(w.startswith("model") for w in words)
    return main([*COMMON, *([] if given else ["model.width=4"]), f"name={name}", *words])


def test_a_run_starts_from_the_model_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("base", "algorithm=baselinepp", "runner.iterations=4", "runner.validate_every=2") == 0
    (base,) = Path("base").glob("*")
    before = {k.removeprefix("model."): v for k, v in parameters("base", "best").items() if k.startswith("model.")}
    assert len(before) > 8

    # Taken over as they are, running statistics too, by learners that hold their model elsewhere as well.
    for name, words in (("proto", ["algorithm=protonet"]), ("gradient", ["algorithm=maml", "runner.meta_batch=2"])):
        start = [*words, "runner.iterations=0", f"runner.init_from={base}"]
        assert run(name, *start) == 0
        prefix = "net.0." if name == "gradient" else "model."
        after = parameters(name)
        assert all(torch.equal(value, after[prefix + key]) for key, value in before.items())

    # A resumed run goes on from its own checkpoint, without the other run.
    assert run("going", "algorithm=protonet", "runner.iterations=2", f"runner.init_from={base}") == 0
    trained = parameters("going")
    assert not all(torch.equal(value, trained["model." + key]) for key, value in before.items())
    base.rename("elsewhere")
    (going,) = Path("going").glob("*")
    assert main(["resume", str(going), "runner.iterations=3"]) == 0

    capsys.readouterr()
    for words, said in (
        ([f"runner.init_from={base}"], "no run directory at"),
        (["runner.init_from=elsewhere", "model.width=5"], "both need the same model.* keys"),
        (["runner.init_from=elsewhere", "model=mlp"], "that run's model lacks"),
    ):
        assert run("wrong", "algorithm=protonet", "runner.iterations=1", *words) == 2
        assert said in capsys.readouterr().err
