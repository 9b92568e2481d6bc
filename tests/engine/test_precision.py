"""What a run computes in: float32 untouched, layers in bfloat16, TF32 where there is one, and the error they make."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.adapted import AdaptedLearner, load
from metarun.cli import main
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine import precision
from metarun.engine.plan import Plan
from metarun.engine.precision import gradient_error
from metarun.engine.step import Engine
from metarun.errors import RunFailed, UserError
from metarun.kernels.bfloat16 import LAYERS, BFloat16Layers, bfloat16_disabled
from metarun.kernels.mode import TaskBatched
from metarun.tasks.inputs import Inputs
from metarun.tasks.rng import derived_seed
from metarun.training.experiment import Experiment
from tests.slow import slow_but

RUN = ["runner.device=cpu", "runner.threads=1", "tracker.wandb=disabled", "runner.plots=false", "name=precision",
       "runner.tune_above=null"]  # fmt: skip
SINE = ["task=regression/sinusoid", "runner.meta_batch=4"]
GLYPHS = ["task=vision/glyphs", "model.width=8", "task.test_ways=[]", "runner.meta_batch=2"]


def experiment(*words: str) -> Experiment:
    return build(compose([*RUN, *words]).config)


def problem(*words: str, tasks: int = 4) -> tuple[Any, Any]:
    run = experiment(*words)
    return run.algorithm, run.task.batch("train", range(tasks), run.algorithm.train_shape(run.task.shape))


def gradient(learner: Any, batch: Any, plan: Plan) -> Tensor:
    torch.manual_seed(1)
    Engine(learner.train(), plan).gradient(batch)
    return torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def meta(root: Path) -> dict[str, Any]:
    (path,) = root.glob("*/*/meta.json")
    return dict(json.loads(path.read_text()))


def by_hand(parameters: list[Tensor], batch: Any, inner_lr: float, steps: int, autocast: bool) -> Tensor:
    """The gradient of second-order MAML of an MLP, by torch's own autocast and a plain loop."""

    def net(w: list[Tensor], x: Tensor) -> Tensor:
        for at in range(0, len(w), 2):
            x = F.linear(x if at == 0 else F.relu(x), w[at], w[at + 1])
        return x

    def loss(w: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        # The cache of casts is off: it would hand out those of other steps' parameters.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
            return F.mse_loss(net(w, x).float(), y)

    losses = []
    for sx, sy, qx, qy in zip(batch.support.x, batch.support.y, batch.query.x, batch.query.y, strict=True):
        w = parameters
        for _ in range(steps):
            grads = torch.autograd.grad(loss(w, sx, sy), w, create_graph=True)
            w = [p - inner_lr * g for p, g in zip(w, grads, strict=True)]
        losses.append(loss(w, qx, qy))
    return torch.cat([g.flatten() for g in torch.autograd.grad(torch.stack(losses).mean(), parameters)])


@pytest.mark.parametrize("steps", [1, 3])
def test_second_order_maml_is_what_autocast_and_a_loop_by_hand_give(steps: int) -> None:
    learner, batch = problem(*SINE, "algorithm=maml", f"algorithm.inner_steps={steps}", "runner.precision=bfloat16")
    parameters = [p for p in learner.parameters() if p.requires_grad]
    half, full = (by_hand(parameters, batch, learner.inner_lr, steps, autocast) for autocast in (True, False))
    expected = relative(half, full)
    assert 1e-4 < expected < 0.1
    assert relative(gradient(learner, batch, Plan(batched=False, chunk=1)), half) < 0.02 * expected
    # All tasks at once, sums are in another order, and what is next to a rounding's edge falls elsewhere.
    assert relative(gradient(learner, batch, Plan()), half) < 0.5 * expected
    assert gradient_error(learner, batch, 0) == pytest.approx(expected, rel=0.2)
    plain = Plan(batched=False, chunk=1)
    assert gradient_error(learner, batch, 0, plain) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("algorithm", ["maml", "protonet"])
def test_convolutions_too(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's own layers under its own autocast, in the plain loop: no kernel of metarun's is in it.

    With smooth units, since ReLUs and maxima next to a tie fall either way.
    """
    words = ["model=conv4", "model.downsample=stride", f"algorithm={algorithm}", "algorithm.norm=transductive"]
    learner, batch = problem(*GLYPHS, *words, tasks=2)
    monkeypatch.setattr(torch, "relu", torch.tanh)
    exact = gradient(learner, batch, Plan(batched=False, chunk=1))
    with monkeypatch.context() as patch:
        patch.setattr(type(learner), "computing", _autocast)
        autocast = gradient(learner, batch, Plan(batched=False, chunk=1))
    error = relative(autocast, exact)
    assert 1e-3 < error < 0.1
    learner.precision = "bfloat16"
    for batched in (True, False):
        ours = gradient(learner, batch, Plan(batched=batched))
        assert 0.2 * error < relative(ours, exact) < 1.5 * error
        assert relative(ours, autocast) < 1.5 * error


def _autocast(self: Any) -> Any:
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


@pytest.mark.parametrize(
    "words", slow_but([[*SINE, "algorithm=maml"]], [
        [*SINE, "algorithm=maml"], [*GLYPHS, "algorithm=protonet"], [*GLYPHS, "algorithm=maml"],
        ["task=regression/gp", "algorithm=cnp"], [*GLYPHS, "algorithm=snail"],
    ])
)  # fmt: skip
def test_captured_steps_are_the_same_to_the_bit(words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    learner, batch = problem(*words, "runner.precision=bfloat16", tasks=2)
    plain = gradient(learner, batch, Plan())
    assert all(
        p.dtype is torch.float32 and p.grad.dtype is torch.float32 for p in learner.parameters() if p.requires_grad
    )
    captured = gradient(learner, batch, Plan(capture="graph"))
    assert "runs uncaptured" not in caplog.text
    assert torch.equal(plain, captured)
    learner.precision = "float32"
    assert not torch.equal(gradient(learner, batch, Plan()), plain)


@pytest.mark.slow
def test_a_compiled_step_is_near(caplog: pytest.LogCaptureFixture) -> None:
    learner, batch = problem(*SINE, "algorithm=maml", "runner.precision=bfloat16")
    plain, compiled = gradient(learner, batch, Plan()), gradient(learner, batch, Plan(capture="compiled"))
    assert "runs uncaptured" not in caplog.text
    assert relative(compiled, plain) < 2 * gradient_error(learner, batch, 0)


def test_what_is_rounded() -> None:
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    rounded = F.conv2d(x.bfloat16(), w.bfloat16()).float()
    with BFloat16Layers():
        assert torch.equal(F.conv2d(x, w), rounded)
        assert torch.equal(F.conv2d(x.double(), w.double()), torch.conv2d(x.double(), w.double()))  # not float64
        assert torch.equal(x[0, 0] @ x[0, 1], x[0, 0].matmul(x[0, 1]))
        assert F.conv2d(x.bfloat16(), w.bfloat16()).dtype is torch.bfloat16
        with TaskBatched():
            torch.testing.assert_close(F.conv2d(x, w), rounded, rtol=0.02, atol=0.05)
            assert torch.equal(F.conv2d(x, w).bfloat16().float(), F.conv2d(x, w))
        with bfloat16_disabled():
            exact = F.conv2d(x, w)
        assert not torch.equal(exact, rounded)
    assert torch.equal(exact, F.conv2d(x, w))
    assert len(LAYERS) == 11


def test_what_is_no_layer_of_the_network_is_not_rounded() -> None:
    """A learned inner loss and a learned rule, both of linear layers."""
    for algorithm, piece in (("ml3", "loss"), ("l2l_mlp", "rule")):
        learner, batch = problem(*SINE, f"algorithm={algorithm}", "runner.precision=bfloat16", tasks=2)
        seen: dict[str, set[int]] = {"net": set(), piece: set()}
        for part, calls in seen.items():
            for module in getattr(learner, part).modules():
                module.register_forward_hook(lambda *_, calls=calls: calls.add(BFloat16Layers.suspended))
        gradient(learner, batch, Plan())
        assert seen == {"net": {0}, piece: {1}}


def test_validation_and_test_are_in_the_precision_of_the_run() -> None:
    for words in ([*SINE, "algorithm=maml"], ["task=regression/gp", "algorithm=cnp"]):
        learner, batch = problem(*words, "runner.precision=bfloat16", tasks=2)
        reduced = learner.evaluate(batch)["mse"]
        learner.precision = "float32"
        exact = learner.evaluate(batch)["mse"]
        assert 0 < relative(reduced, exact) < 0.05


@pytest.mark.parametrize("words", [[*SINE, "algorithm=metacurvature"], [*GLYPHS, "algorithm=protonet"]])
def test_measuring_changes_nothing(words: list[str]) -> None:
    learner, batch = problem(*words, "runner.precision=bfloat16", tasks=2)
    before, random = copy.deepcopy(learner.checkpoint()), torch.get_rng_state()
    first = gradient_error(learner, batch, 3)
    assert torch.equal(torch.get_rng_state(), random)
    after = learner.checkpoint()
    assert all(torch.equal(a, after["parameters"][n]) for n, a in before["parameters"].items())
    assert all(p.grad is None for p in learner.parameters())
    assert (learner.precision, learner.iteration, learner.training) == ("bfloat16", 0, True)
    assert gradient_error(learner, batch, 3) == first


LEARNS = {
    "maml": [*SINE, "algorithm=maml", "runner.meta_batch=25", "runner.iterations=150", "runner.validate_every=150"],
    "protonet": [*GLYPHS, "algorithm=protonet", "algorithm.train_way=5", "runner.iterations=60",
                 "runner.validate_every=60"],
    "cnp": ["task=regression/gp", "algorithm=cnp", "algorithm.width=32", "runner.iterations=150",
            "runner.validate_every=150"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNS)
def test_a_run_learns_as_in_float32(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "metarun")
    found = {}
    for kind, iterations in (("float32", None), ("bfloat16", None), ("bfloat16", 0)):
        more = [] if iterations is None else [f"runner.iterations={iterations}"]
        run = experiment(
            *LEARNS[name], "runner.test_episodes=100", f"runner.precision={kind}", *more,
            f"runner.directory={tmp_path / kind / str(iterations)}",
        )  # fmt: skip
        summary = run.run()
        metric = summary["metric"]
        found[kind, iterations] = summary["test"][metric]["mean"], summary["test"][metric]["ci95"]
        assert summary["protocol"].get("precision") == (None if kind == "float32" else kind)
    (exact, ci), (reduced, _), (untrained, _) = found.values()
    assert abs(reduced - exact) < ci
    assert abs(reduced - exact) < 0.2 * abs(untrained - exact)
    lines = [r.getMessage() for r in caplog.records if "relative error" in r.getMessage()]
    kept = meta(tmp_path / "bfloat16" / "None")["gradient_error"]
    assert kept["precision"] == "bfloat16"
    assert 1e-4 < kept["relative_error"] < 0.5
    shown = f"{kept['relative_error']:.1e}".replace("e-0", "e-")
    assert lines == [f"gradient in bfloat16: relative error {shown} of float32"]
    assert "gradient_error" not in meta(tmp_path / "float32" / "None")
    assert "gradient_error" not in meta(tmp_path / "bfloat16" / "0")


def test_the_kept_error_is_of_the_first_step_of_the_run(tmp_path: Path) -> None:
    """Measured again from outside, with the step's own random numbers: an NP draws its z."""
    words = ["task=regression/gp", "algorithm=np", "algorithm.width=16", "runner.iterations=1", "runner.meta_batch=3",
             "runner.test_episodes=2", "runner.val_episodes=2"]  # fmt: skip
    gradients = []
    for kind in ("float32", "bfloat16"):
        run = experiment(*words, f"runner.precision={kind}", f"runner.directory={tmp_path / kind}")
        learner = copy.deepcopy(run.algorithm)
        torch.manual_seed(derived_seed(run.seed, "train", 0, stream=10))
        learner.meta_step(run.task.batch("train", range(3), learner.train_shape(run.task.shape)), 0)
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters()]))
        run.run()
    error = meta(tmp_path / "bfloat16")["gradient_error"]["relative_error"]
    assert error == pytest.approx(relative(gradients[1], gradients[0]), rel=1e-4)


def test_a_resumed_run_does_not_measure_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*SINE, "runner.precision=bfloat16", "runner.iterations=6", "runner.checkpoint_seconds=0",
             "runner.log_every=1", "runner.validate_every=3", "runner.val_episodes=4",
             "runner.test_episodes=4"]  # fmt: skip
    experiment(*words, f"runner.directory={tmp_path / 'whole'}").run()
    for died in (0, 4):  # before the first step, and between two
        run = experiment(*words, f"runner.directory={tmp_path / str(died)}")
        step = run.engine.meta_step

        def dies(batch: Any, iteration: int, died: int = died, step: Any = step) -> Any:
            if iteration == died:
                raise MemoryError
            return step(batch, iteration)

        run.engine.meta_step = dies  # type: ignore[method-assign]
        with pytest.raises(RunFailed, match="out of memory"):
            run.run()
        kept = meta(tmp_path / str(died))["gradient_error"]
        with monkeypatch.context() as patch:
            patch.setattr(precision, "gradient_error", None)
            (directory,) = (tmp_path / str(died)).glob("*/*")
            assert main(["resume", str(directory)]) == 0
        assert meta(tmp_path / str(died))["gradient_error"] == kept == meta(tmp_path / "whole")["gradient_error"]
        ours, whole = (next((tmp_path / d).glob("*/*/metrics.jsonl")).read_bytes() for d in (str(died), "whole"))
        assert ours == whole


def test_an_adapted_learner_predicts_in_the_precision_of_its_run(tmp_path: Path) -> None:
    run = experiment(*SINE, "algorithm=maml", "runner.precision=bfloat16")
    items, targets = [[0.1], [0.7], [-1.3]], [[0.3], [0.2], [0.9]]
    learner = AdaptedLearner.adapt(run.algorithm, Inputs.of(run.task), items, targets)
    reduced = learner.predict(items).values
    assert torch.equal(reduced, reduced.bfloat16().float())
    learner.save(tmp_path, run.config)
    assert torch.equal(load(tmp_path).predict(items).values, reduced)
    run.algorithm.precision = "float32"
    exact = AdaptedLearner.adapt(run.algorithm, Inputs.of(run.task), items, targets).predict(items).values
    assert 0 < relative(reduced, exact) < 0.05


def test_tf32_without_tf32_is_float32_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = []
    for kind in ("float32", "tf32"):
        words = [*SINE, "runner.iterations=3", "runner.test_episodes=4", "runner.log_every=1"]
        experiment(*words, f"runner.precision={kind}", f"runner.directory={tmp_path / kind}").run()
        rows.append(next((tmp_path / kind).glob("*/*/metrics.jsonl")).read_bytes())
        assert "gradient_error" not in meta(tmp_path / kind)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
    assert rows[0] == rows[1]
    said = [r.getMessage() for r in caplog.records if "TF32" in r.getMessage()]
    assert said == ["runner.precision=tf32 has no effect on cpu, which has no TF32: all is float32"]


@pytest.mark.parametrize("kind", ["bfloat16", "tf32"])
def test_control_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=rf"precision={kind} is for learners from support sets.*float32 or float64"):
        experiment("task=rl/bandit", f"runner.precision={kind}")


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """An offset that is float32's largest number becomes infinite in bfloat16, which has fewer digits."""
    run = experiment(*SINE, "algorithm=maml", "runner.precision=bfloat16", "runner.iterations=2",
                     f"runner.directory={tmp_path}")  # fmt: skip
    with torch.no_grad():
        for p in run.algorithm.parameters():
            p.zero_()
        _, offsets, *_ = run.algorithm.parameters()
        offsets[0] = torch.finfo(torch.float32).max  # all that reads it has weight 0
    with pytest.raises(RunFailed, match="precision=bfloat16: the gradient of the first meta-batch is NaN"):
        run.run()
    (path,) = tmp_path.glob("*/*/status.json")
    assert json.loads(path.read_text())["state"] == "failed"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["bfloat16", "tf32"])
@pytest.mark.parametrize("words", [[*SINE, "algorithm=maml"], [*GLYPHS, "algorithm=maml"]])
def test_on_a_gpu(kind: str, words: list[str]) -> None:
    learner, batch = problem(*words, f"runner.precision={kind}", "runner.device=cuda")
    if learner.precision == "float32":
        pytest.skip("the GPU has no TF32")
    error = gradient_error(learner, batch, 0)
    assert 0 < error < 1
    assert torch.backends.cuda.matmul.allow_tf32 is (kind == "tf32")
    plain, captured = (gradient(learner, batch, Plan(capture=c)) for c in ("none", "graph"))  # type: ignore[arg-type]
    assert relative(captured, plain) < 2 * error
    problem(*words, "runner.device=cuda")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
