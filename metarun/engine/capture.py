"""Records the gradient of an outer step as a graph of tensor operations, to be repeated on other meta-batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import call_with, is_known
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine.graph import simplified, written_in_place
from metarun.engine.plan import Capture
from metarun.tasks.episode import Labelled, TaskBatch
from metarun.tasks.rng import forked_rng


def can_capture(algorithm: SupervisedAlgorithm) -> bool:
    """True if a step may be recorded: by the algorithm's own word, and as all its parts are torch's or metarun's.

    A user's own module may depend on state that a recording cannot see.
    """
    return is_known(algorithm) and algorithm.is_capturable and not algorithm.needs_full_meta_batch


class Captured:
    """The gradient of the outer loss on meta-batches of one shape, recorded as a graph of tensor operations.

    Parameters, buffers and the meta-batch are its inputs; everything else that the step reads must not change.
    Random numbers are drawn anew whenever it is repeated, in the same order as by the step itself.
    """

    def __init__(self, algorithm: SupervisedAlgorithm, example: TaskBatch, capture: Capture) -> None:
        self._bind(algorithm)
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
            graph = simplified(traced(self._gradient, example_inputs))
            if capture == "compiled":
                self.run = compiled(graph, inputs)
            elif device.type == "cuda":
                written = [place for place, t in enumerate(held) if t in buffers]
                self.run = cuda_graph(written_in_place(graph), inputs, written)
            else:
                self.run = written_in_place(graph)

    def of(self, algorithm: SupervisedAlgorithm) -> Captured:
        """Return the recording for the parameters and buffers of ``algorithm``, of which it was made on a copy."""
        other = copy.copy(self)
        other._bind(algorithm)
        return other

    def _bind(self, algorithm: SupervisedAlgorithm) -> None:
        """Read parameters and buffers from ``algorithm``."""
        self.algorithm = algorithm
        self.learned = {n: p for n, p in algorithm.named_parameters() if p.requires_grad}
        self.places = [place_of(algorithm, name) for name, _ in self._state()]

    def __call__(self, batch: TaskBatch) -> tuple[Metrics, list[Tensor | None]]:
        """Return the metrics, and the gradient by each learned parameter (in order)."""
        with torch.no_grad():
            values = self.run(*self._inputs(batch))
        split = len(self.names)
        found = iter(values[split:])
        return dict(zip(self.names, values[:split], strict=True)), [next(found) if has else None for has in self.has]

    def add_gradient(self, batch: TaskBatch, share: float) -> Metrics:
        """Add the gradient, times ``share``, to those that the learned parameters hold, and return the metrics."""
        metrics, gradients = self(batch)
        for p, g in zip(self.learned.values(), gradients, strict=True):
            if g is not None:
                g = g if share == 1 else g * share
                p.grad = g if p.grad is None else p.grad.add_(g)
        return metrics

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        return chain(self.algorithm.named_parameters(), self.algorithm.named_buffers())

    def _inputs(self, batch: TaskBatch) -> list[Tensor]:
        data = (batch.support.x, batch.support.y, batch.query.x, batch.query.y)
        return [*(tensors[name].detach() for tensors, name in self.places), *data]

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


def traced(function: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> GraphModule:
    """Return the graph of the operations of ``function`` on ``inputs``."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    # Shapes are noted in a fake mode. Without one in use a new one is made for each operation, half of all the time.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        return make_fx(function)(*inputs)


def place_of(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """Return the dictionary that holds the parameter or buffer of this dotted name, and its key there.

    A step looks its tensors up there: going through all modules takes as long as a small step itself.
    """
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    return (owner._parameters if key in owner._parameters else owner._buffers), key


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
