"""How the gradient of a meta-batch is computed: how many tasks at once, and whether from a captured computation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from metarun.algorithms.functional import call_with
from metarun.algorithms.graph import simplified, written_in_place
from metarun.kernels.patches import fold
from metarun.tasks.episode import Labelled, TaskBatch
from metarun.tasks.rng import forked_rng

if TYPE_CHECKING:
    from metarun.algorithms.base import Metrics, SupervisedAlgorithm

log = logging.getLogger("metarun")

Capture = Literal["none", "graph", "compiled"]


@dataclass(frozen=True)
class Plan:
    """A way to compute a step. All give the same gradient; they differ in speed, in memory and in rounding."""

    batched: bool = True
    """Inner loops of all tasks of a part at once, where that is exact; else one task after another."""
    chunk: int | None = None
    """Tasks whose graph is held at once; ``None``: the whole meta-batch."""
    capture: Capture = "none"
    """``graph``: the step's tensor operations are recorded once and repeated, without Python's and autograd's
    bookkeeping; the same bits (on CUDA as a CUDA graph). ``compiled``: that record, fused into machine code."""

    def __str__(self) -> str:
        how = "tasks batched" if self.batched else "one task after another"
        parts = "" if self.chunk is None else f", {self.chunk} at once"
        return how + parts + {"none": "", "graph": ", captured", "compiled": ", compiled"}[self.capture]


def parts(batch: TaskBatch, chunk: int | None) -> Iterator[tuple[TaskBatch, float]]:
    """``batch`` cut into at most ``chunk`` tasks each, with the share of each part in the mean over tasks."""
    tasks = len(batch.query.y)
    size = min(chunk or tasks, tasks)
    for first in range(0, tasks, size):
        part = batch if size == tasks else batch.map(lambda values, first=first: values[first : first + size])  # type: ignore[misc]
        yield part, len(part.query.y) / tasks


def known(module: nn.Module) -> bool:
    """Whether all its parts are torch's or metarun's: a user's own may depend on what a recording cannot see."""
    return all(type(m).__module__.split(".")[0] in ("torch", "metarun") for m in module.modules())


class Captured:
    """The gradient of the outer loss on meta-batches of one shape, recorded as a graph of tensor operations.

    Parameters, buffers and the meta-batch are its inputs; everything else that the step reads must not change.
    Random numbers are drawn anew whenever it is repeated, in the same order as by the step itself.
    """

    def __init__(self, algorithm: SupervisedAlgorithm, example: TaskBatch, capture: Capture) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        self.algorithm = algorithm
        self.learned = {n: p for n, p in algorithm.named_parameters() if p.requires_grad}
        self.way = example.support.way, example.query.way
        self.names: list[str] = []
        inputs = self._inputs(example)
        self.run: Callable[..., list[Tensor]]
        device = example.query.x.device
        with forked_rng(device):  # recording and warming up draw random numbers that the step will draw
            # On copies of the buffers: recording runs the step, which would move running statistics once too often.
            buffers = {id(b) for b in algorithm.buffers()}
            held = [id(t) for _, t in self._state()] + 4 * [0]
            example_inputs = [t.clone() if i in buffers else t for i, t in zip(held, inputs, strict=True)]
            graph = simplified(make_fx(self._gradient)(*example_inputs))
            if capture == "compiled":
                self.run = compiled(graph, inputs)
            elif device.type == "cuda":
                written = [place for place, t in enumerate(held) if t in buffers]
                self.run = cuda_graph(written_in_place(graph), inputs, written)
            else:
                self.run = written_in_place(graph)

    def __call__(self, batch: TaskBatch) -> tuple[Metrics, list[Tensor | None]]:
        """Metrics, and the gradient by each learned parameter (in order)."""
        with torch.no_grad():
            values = self.run(*self._inputs(batch))
        split = len(self.names)
        found = iter(values[split:])
        return dict(zip(self.names, values[:split], strict=True)), [next(found) if has else None for has in self.has]

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        return chain(self.algorithm.named_parameters(), self.algorithm.named_buffers())

    def _inputs(self, batch: TaskBatch) -> list[Tensor]:
        data = (batch.support.x, batch.support.y, batch.query.x, batch.query.y)
        return [*(t.detach() for _, t in self._state()), *data]

    def _gradient(self, *inputs: Tensor) -> list[Tensor]:
        names = [n for n, _ in self._state()]
        state = dict(zip(names, inputs, strict=False))
        leaves = {n: state[n].detach().requires_grad_() for n in self.learned}
        sx, sy, qx, qy = inputs[len(names) :]
        batch = TaskBatch(Labelled(sx, sy, self.way[0]), Labelled(qx, qy, self.way[1]))
        with torch.enable_grad():
            inner = {f"algorithm.{n}": t for n, t in {**state, **leaves}.items()}
            loss, metrics = call_with(inner, _OuterLoss(self.algorithm), batch)
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        self.names = list(metrics)
        self.has = [g is not None for g in gradients]
        return [*(m.detach() for m in metrics.values()), *(g for g in gradients if g is not None)]


class _OuterLoss(nn.Module):
    def __init__(self, algorithm: SupervisedAlgorithm) -> None:
        super().__init__()
        self.algorithm = algorithm

    def forward(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        return self.algorithm.outer_loss(batch)


def compiled(graph: Any, inputs: list[Tensor]) -> Callable[..., list[Tensor]]:
    """``graph`` as machine code by torch's own compiler; raises what that raises, as for want of a C++ compiler."""
    import torch._inductor

    if any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in graph.graph.nodes):
        raise RuntimeError("a step that draws random numbers is not compiled: it would draw others")
    for node in graph.graph.nodes:
        node.meta.clear()
    with torch.no_grad():
        code = torch._inductor.compile(graph, list(inputs), options={"cpp_wrapper": inputs[0].device.type == "cpu"})
        code(*inputs)
    return code


def cuda_graph(
    graph: Callable[..., list[Tensor]], inputs: list[Tensor], written: Sequence[int]
) -> Callable[..., list[Tensor]]:
    """``graph`` on one device as one launch: its inputs are copied to where it was captured.

    The inputs at places ``written``, into which it may write, are copied back.
    """
    held = [t.clone() for t in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            graph(*held)
    torch.cuda.current_stream().wait_stream(stream)
    capture = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(capture):
        results = graph(*held)

    def replay(*values: Tensor) -> list[Tensor]:
        torch._foreach_copy_(held, list(values))
        capture.replay()
        if written:
            torch._foreach_copy_([values[place] for place in written], [held[place] for place in written])
        return [r.clone() for r in results]

    return replay


class Stepper:
    """Finds an algorithm's outer gradient by its plan; keeps what it has captured."""

    def __init__(self, algorithm: SupervisedAlgorithm) -> None:
        self.algorithm = algorithm
        self.captured: dict[Any, Captured | None] = {}

    def gradient(self, batch: TaskBatch) -> Metrics:
        """Leave the gradient on the parameters; the mean over tasks of each metric."""
        algorithm = self.algorithm
        algorithm.zero_grad()
        with algorithm.computing(), fold(algorithm.plan.batched and algorithm.precision == "float32"):
            return self._total(batch)

    def _total(self, batch: TaskBatch) -> Metrics:
        plan, algorithm = self.algorithm.plan, self.algorithm
        total: Metrics = {}
        for part, share in parts(batch, None if algorithm.whole else plan.chunk):
            captured = self._captured(part) if plan.capture != "none" else None
            if captured is None:
                loss, metrics = algorithm.outer_loss(part)
                (loss if share == 1 else loss * share).backward()
            else:
                metrics, gradients = captured(part)
                for p, g in zip(captured.learned.values(), gradients, strict=True):
                    if g is not None:
                        g = g if share == 1 else g * share
                        p.grad = g if p.grad is None else p.grad.add_(g)
            for name, value in metrics.items():
                value = value if share == 1 else value * share
                total[name] = total[name] + value if name in total else value
        return total

    def _captured(self, part: TaskBatch) -> Captured | None:
        """The recording for parts of this shape, made when first asked for; ``None`` where that cannot be."""
        changing = self.algorithm.changes(self.algorithm.iteration)
        if self.algorithm.iteration > 0 and changing != self.algorithm.changes(self.algorithm.iteration - 1):
            return None  # a function of the iteration alone, so that a resumed run does the same
        data = (part.support.x, part.support.y, part.query.x, part.query.y)
        key = (changing, self.algorithm.plan, *((t.shape, t.dtype, t.device) for t in data))
        if key not in self.captured:
            if len(self.captured) > 8:
                self.captured.clear()
            try:
                self.captured[key] = Captured(self.algorithm, part, self.algorithm.plan.capture)
            except Exception as error:
                log.warning(
                    "the step could not be captured and runs uncaptured (%s)", " ".join(str(error).split())[:200]
                )
                self.captured[key] = None
        return self.captured[key]
