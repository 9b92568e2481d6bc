"""What the emulated device is put through, in the process that has it: a configuration there and on the CPU."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metarun.algorithms.rl.base import RLAlgorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.cli import main
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.engine.capture import can_capture
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.evaluation.evaluator import evaluate
from metarun.tasks.rng import derived_seed
from metarun.training.draws import meta_batch_indices
from metarun.training.experiment import Experiment
from tests.emulated.device import Event, tensors, watching

STEPS = 2


@dataclass
class Report:
    """What a configuration did on both devices, in plain values."""

    strays: list[str] = field(default_factory=list)
    """Parameters, buffers, optimizer states and metrics that are not on the device."""
    differences: dict[str, float] = field(default_factory=dict)
    """Largest differences from the CPU, relative to the values: of episodes, metrics, parameters and evaluations."""
    draw: dict[Event, int] = field(default_factory=dict)
    """What made the host wait while a meta-batch was drawn."""
    step: dict[Event, int] = field(default_factory=dict)
    """What made the host wait during a meta-step, and what it copied."""
    after: dict[Event, int] = field(default_factory=dict)
    """The same in the step after a checkpoint was restored."""
    random: int = 0
    """Operations in a meta-step that draw from the device's random numbers, which on a GPU are others."""
    capture: str = ""
    """``same`` if a captured step gave the same gradient; else why there was none."""


def walk(words: Sequence[str], capture: bool = True) -> Report:
    """Train, evaluate, checkpoint, restore on the other device and go on; ``capture`` a step."""
    config = compose(list(words)).config
    report, runs = Report(), {}
    states: dict[str, bytes] = {}
    results: dict[str, dict[str, list[torch.Tensor]]] = {}
    for device in ("cpu", "cuda"):
        run = runs[device] = on(config, device)
        seen = results[device] = {}
        for iteration in range(STEPS):
            batch, metrics = step(run, iteration, report if device == "cuda" and iteration == 1 else None)
            seen |= {f"episode {iteration}": as_now(episodes(batch)), f"metrics {iteration}": as_now(metrics)}
        seen["parameters"], seen["evaluation"] = as_now(run.algorithm.state_dict()), as_now(evaluated(run))
        if device == "cuda":
            report.strays = strays(run, metrics)
        states[device] = saved(run)
    # A checkpoint goes on where it was written, and on the other device.
    there = on(config, "cuda")
    for run, state, device, what in (
        (runs["cpu"], states["cpu"], "cpu", "going on"),
        (there, states["cpu"], "cuda", "going on"),
        (runs["cpu"], states["cuda"], "cpu", "going back"),
        (runs["cuda"], states["cuda"], "cuda", "going back"),
    ):
        restore(run, state)
        restored = Report()
        _, metrics = step(run, STEPS, restored)
        results[device][what] = as_now([metrics, run.algorithm.state_dict()])
    report.after = restored.step
    for what in results["cpu"]:
        report.differences[what] = difference(results["cpu"][what], results["cuda"][what])
    report.capture = captured(runs["cuda"]) if capture else "not tried"
    return report


def as_now(values: Any) -> list[torch.Tensor]:
    """Copies on the CPU of all tensors in ``values``."""
    return [t.detach().cpu().clone() for t in tensors(values)]


def on(config: Any, device: str) -> Experiment:
    """A new experiment."""
    config = copy.deepcopy(config)
    config["runner"]["device"] = device
    return build(config)


def step(run: Experiment, iteration: int, report: Report | None = None) -> tuple[Any, dict[str, Any]]:
    """One meta-step as the outer loop takes it."""
    algorithm = run.algorithm
    torch.manual_seed(derived_seed(run.seed, "train", iteration, stream=10))
    with watching() as drawing:
        indices = meta_batch_indices(iteration, run.runner.meta_batch)
        batch = run.task.batch("train", indices, algorithm.train_shape(run.task.shape))
    with watching() as stepping:
        metrics = run.engine.meta_step(batch, iteration)
    if report is not None:
        report.draw = {e: n for e, n in drawing.events.items() if e[0] != "draw"}
        report.step = {e: n for e, n in stepping.events.items() if e[0] != "draw"}
        report.random = stepping.count("draw")
    return batch, metrics


def episodes(batch: Any) -> list[torch.Tensor]:
    """The tensors of a meta-batch; of an environment, those that it holds; of problems, all."""
    if hasattr(batch, "support"):
        return [batch.support.x, batch.support.y, batch.query.x, batch.query.y]
    if isinstance(batch, list):
        return tensors([vars(problem) for problem in batch])
    return [v for v in vars(batch).values() if isinstance(v, torch.Tensor)]


def evaluated(run: Experiment) -> dict[str, torch.Tensor]:
    """Every metric of four validation tasks."""
    return evaluate(run.algorithm, run.task, "val", 3, batch=2).curves


def saved(run: Experiment) -> bytes:
    buffer = io.BytesIO()
    torch.save(run.algorithm.checkpoint(), buffer)
    return buffer.getvalue()


def restore(run: Experiment, state: bytes) -> None:
    run.algorithm.restore(torch.load(io.BytesIO(state), map_location=run.device, weights_only=True))


def strays(run: Experiment, metrics: dict[str, Any]) -> list[str]:
    """What is not on the device and should be."""
    found = {**dict(run.algorithm.named_parameters()), **dict(run.algorithm.named_buffers()), **metrics}
    for name, optimizer in run.algorithm.optimizers().items():
        for number, state in enumerate(optimizer.state.values()):
            found |= {f"{name}.{number}.{key}": v for key, v in state.items() if key != "step"}
    return [name for name, t in found.items() if isinstance(t, torch.Tensor) and t.device.type != "cuda"]


def difference(ours: Any, theirs: Any) -> float:
    """The largest, of tensors in order, relative to the size of each tensor's largest value."""
    a, b = tensors(ours), tensors(theirs)
    assert [t.shape for t in a] == [t.shape for t in b]
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = x.detach().cpu().double(), y.detach().cpu().double()
        if x.numel() and not torch.equal(x, y):
            worst = max(worst, float((x - y).abs().max() / x.abs().max().clamp_min(1e-3)))
    return worst


def captured(run: Experiment) -> str:
    """Whether a step of ``run`` can be a CUDA graph, and gives the same gradient then on two meta-batches."""
    learner = run.algorithm
    if isinstance(learner, RLAlgorithm):
        return recorded(run, learner)
    if not isinstance(learner, SupervisedAlgorithm) or learner.optimizer is None:
        return "no choice"
    if not can_capture(learner):
        return "not captured by its own word"
    warnings = io.StringIO()
    handler = logging.StreamHandler(warnings)
    logging.getLogger("metarun").addHandler(handler)
    engines = {c: Engine(copy.deepcopy(learner).train(), Plan(capture=c)) for c in ("none", "graph")}  # type: ignore[arg-type]
    try:
        worst = 0.0
        for iteration in (0, 1):  # the second time the first one's capture is used, on other data
            batch = run.task.batch("train", range(iteration, iteration + 2), learner.train_shape(run.task.shape))
            found = {}
            for capture, engine in engines.items():
                each = engine.algorithm
                torch.manual_seed(iteration)
                each.begin_iteration(0)
                metrics = engine.gradient(batch)
                gradients = [p.grad for p in each.parameters() if p.grad is not None]
                found[capture] = [*metrics.values(), *gradients, *each.buffers(), torch.rand(1, device="cuda")]
            worst = max(worst, difference(found["none"], found["graph"]))
    finally:
        logging.getLogger("metarun").removeHandler(handler)
    return warnings.getvalue().strip() or ("same" if worst < 1e-5 else f"off by {worst:.1e}")


def recorded(run: Experiment, learner: RLAlgorithm) -> str:
    """Whether RL's functions can be CUDA graphs, and two meta-steps by them are the plain ones."""
    said, states = io.StringIO(), []
    handler = logging.StreamHandler(said)
    logging.getLogger("metarun").addHandler(handler)
    try:
        for capture in ("none", "graph"):
            engine = Engine(copy.deepcopy(learner), Plan(capture=capture))  # type: ignore[arg-type]
            for iteration in (0, 1):
                torch.manual_seed(iteration)
                metrics = engine.meta_step(run.task.batch("train", range(iteration, iteration + 2)), iteration)
            states.append(as_now([metrics, engine.algorithm.state_dict()]))
    finally:
        logging.getLogger("metarun").removeHandler(handler)
    recorder = engine.algorithm.recorder
    if said.getvalue() or not recorder.recordings:
        return said.getvalue().strip() or "nothing was recorded"
    worst = difference(*states)
    return "same" if worst < 1e-5 else f"off by {worst:.1e}"


def train(words: Sequence[str]) -> str:
    """Run ``metarun`` with these words; its run directory."""
    before = {*Path("outputs").glob("*/*")}
    command(words)
    (directory,) = {*Path("outputs").glob("*/*")} - before
    return str(directory)


def command(words: Sequence[str]) -> str:
    """What ``metarun`` prints; raises where it fails."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    if code:
        raise RuntimeError(f"metarun {' '.join(words)}: exit {code}\n{err.getvalue()[-3000:]}")
    return out.getvalue()


def fallback() -> tuple[str, float]:
    """The log of a step that is to be captured and reads a value back, and its distance from the plain step.

    They differ by rounding: a device's backward passes run on a thread with its own numbering of autograd's nodes, so
    the order in which second derivatives are added depends on what the process computed before.
    """
    words = ["task=regression/sinusoid", "algorithm=maml", "runner.meta_batch=2", "tracker.wandb=disabled",
             "runner.precision=float64"]  # fmt: skip
    run = on(compose(words).config, "cuda")
    learner = run.algorithm
    learner.net[0].register_forward_hook(lambda module, inputs, output: output * (2 if output.sum().item() > 0 else 1))
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("metarun").addHandler(handler)
    found = []
    try:
        for capture in ("none", "graph"):
            run.algorithm = copy.deepcopy(learner)
            run.engine = Engine(run.algorithm, Plan(batched=False, capture=capture))  # type: ignore[arg-type]
            step(run, 0)
            found.append(as_now(run.algorithm.state_dict()))
    finally:
        logging.getLogger("metarun").removeHandler(handler)
    return said.getvalue(), difference(*found)


def properties() -> dict[str, Any]:
    """What the device itself does, for the test of it."""
    x = torch.arange(6.0, device="cuda").view(2, 3)
    said: dict[str, Any] = {
        "sum of two devices": refusal(lambda: x + torch.ones(2, 3)),
        "product of two devices": refusal(lambda: x @ torch.ones(3, 3)),
        "sum with a CPU number": refusal(lambda: x + torch.tensor(1.0)),
        "CPU generator": refusal(lambda: torch.rand(2, device="cuda", generator=torch.Generator())),
        "numpy": refusal(x.numpy),
    }
    with watching() as watch:
        x.sum().item(), bool(x.sum() > 0), x.nonzero(), x.masked_select(x > 1), x[x > 1], torch.equal(x, x), x.unique()
        x[x > 9] = 0.0  # with one value it is masked_fill, which waits for nothing
        torch.tensor([1.0, 2.0], device="cuda"), torch.ones(2).to("cuda")
        torch.ones(2).pin_memory().to("cuda", non_blocking=True)
        x.cpu(), x.tolist()
        torch.rand(2, device="cuda"), torch.dropout(x, 0.5, train=True)
    said["events"] = {kind: watch.count(kind) for kind in dict.fromkeys(e[0] for e in watch.events)}

    graph, held = torch.cuda.CUDAGraph(), torch.ones(2, device="cuda")
    with torch.cuda.graph(graph):
        result = held.mul(2).add_(1)
    held.fill_(5)
    graph.replay()
    said["replayed"] = result.tolist()

    def read_back() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            held.sum().item()

    said["item while captured"] = refusal(read_back)
    torch.manual_seed(0)
    first = torch.rand(3, device="cuda")
    with torch.random.fork_rng(devices=[first.device]):
        torch.manual_seed(0)
        again = torch.rand(3, device="cuda")
    own = torch.rand(3, generator=torch.Generator("cuda").manual_seed(0), device="cuda")
    said["same stream from the same seed"] = torch.equal(first, again) and torch.equal(first, own)
    said["recurrent cells"] = {cell.__name__: recurrent(cell) for cell in (torch.nn.GRUCell, torch.nn.LSTMCell)}

    def slope(t: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda u: (u**3).sum())(t).sum()

    second = torch.func.vmap(torch.func.grad(slope))
    said["second derivative by vmap"] = difference([second(x.cpu())], [second(x)])
    buffer = io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    said["pickled"] = str(torch.load(buffer, weights_only=True).device)
    torch.cuda.reset_peak_memory_stats()
    torch.zeros(1000, device="cuda")
    said["peak"] = torch.cuda.max_memory_allocated()
    return said


def refusal(call: Callable[[], Any]) -> str:
    """The error that ``call`` ends in, or that there was none."""
    try:
        call()
    except (RuntimeError, TypeError) as error:
        return str(error)
    return "allowed"


def recurrent(kind: type[torch.nn.Module]) -> float:
    """How far values, gradients and second derivatives of a recurrent cell are from the CPU's."""
    torch.manual_seed(0)
    cell, x = kind(3, 4).double(), torch.randn(2, 3, dtype=torch.float64)  # type: ignore[call-arg]
    found = []
    for device in ("cpu", "cuda"):
        here = copy.deepcopy(cell).to(device)
        out = here(x.to(device))
        value = out if isinstance(out, torch.Tensor) else out[0] + out[1].square()
        first = torch.autograd.grad(value.square().sum(), list(here.parameters()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(here.parameters()))
        found.append([value, *first, *second])
    return difference(*found)
