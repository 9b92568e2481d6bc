"""Records functions of tensors, as the gradient of an outer step, as graphs of operations to be repeated on others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from metarun.algorithms.base import Metrics
from metarun.algorithms.functional import function_of_tensors, is_known
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


class Recording:
    """A function of tensors that also reads a module's parameters and buffers, recorded as a graph of operations.

    Everything else that the function reads must not change. Random numbers are drawn anew whenever it is repeated, in
    the same order as by the function itself.

    Args:
        module: The module. Its learned parameters require gradients within the function.
        function: The function. It is called once, on ``example``.
        example: Tensors of the shapes and types on which it will be repeated.
        capture: ``graph`` or ``compiled``; on CUDA a ``graph`` becomes a CUDA graph.
    """

    def __init__(
        self, module: nn.Module, function: Callable[..., Sequence[Tensor]], example: Sequence[Tensor], capture: Capture
    ) -> None:
        self._bind(module)
        inputs = self._inputs(example)
        self.run: Callable[..., list[Tensor]]
        device = example[0].device
        with forked_rng(device):  # recording and warming up draw random numbers that the function will draw
            # On copies of the buffers: recording calls the function, which would move running statistics once more.
            buffers = {id(b) for b in module.buffers()}
            held = [id(t) for _, t in self._state()] + len(example) * [0]
            example_inputs = [t.clone() if i in buffers else t for i, t in zip(held, inputs, strict=True)]
            graph = simplified(traced(partial(self._called, function), example_inputs))
            if capture == "compiled":
                self.run = compiled(graph, inputs)
            elif device.type == "cuda":
                written = [place for place, t in enumerate(held) if t in buffers]
                self.run = cuda_graph(written_in_place(graph), inputs, written)
            else:
                self.run = written_in_place(graph)

    def of(self, module: nn.Module) -> Recording:
        """Return the recording for the parameters and buffers of ``module``, of which it was made on a copy."""
        other = copy.copy(self)
        other._bind(module)
        return other

    def __call__(self, *data: Tensor) -> list[Tensor]:
        """Return the values of the function, detached."""
        with torch.no_grad():
            return self.run(*self._inputs(data))

    def _bind(self, module: nn.Module) -> None:
        """Read parameters and buffers from ``module``."""
        self.module = module
        self.learned = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.places = [place_of(module, name) for name, _ in self._state()]

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        return chain(self.module.named_parameters(), self.module.named_buffers())

    def _inputs(self, data: Sequence[Tensor]) -> list[Tensor]:
        return [*(tensors[name].detach() for tensors, name in self.places), *data]

    def _called(self, function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> list[Tensor]:
        state = dict(zip((name for name, _ in self._state()), inputs, strict=False))
        data = inputs[len(state) :]
        state |= {name: state[name].detach().requires_grad_() for name in self.learned}
        with torch.enable_grad():
            values = function_of_tensors(self.module, function)(state, *data)
        return [value.detach() for value in values]


class RecordedGradient:
    """The gradient of a loss by the learned parameters of a module, recorded.

    Args:
        module: The module.
        loss: Function of tensors to the loss [] and scalars to log.
        example: Tensors of the shapes and types on which it will be repeated.
        capture: ``graph`` or ``compiled``.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., tuple[Tensor, Mapping[str, Tensor]]],
        example: Sequence[Tensor],
        capture: Capture,
    ) -> None:
        self.names: list[str] = []
        self.has: list[bool] = []
        self.recording = Recording(module, partial(self._gradient, module, loss), example, capture)

    def of(self, module: nn.Module) -> Any:
        """Return the recording for ``module``, of which it was made on a copy."""
        other = copy.copy(self)
        other.recording = self.recording.of(module)
        return other

    def __call__(self, *data: Tensor) -> tuple[Metrics, list[Tensor | None]]:
        """Return the scalars, and the gradient by each learned parameter (in order)."""
        values = self.recording(*data)
        split = len(self.names)
        found = iter(values[split:])
        return dict(zip(self.names, values[:split], strict=True)), [next(found) if has else None for has in self.has]

    def add_gradient(self, *data: Tensor, share: float = 1) -> Metrics:
        """Add the gradient, times ``share``, to those that the learned parameters hold, and return the scalars."""
        metrics, gradients = self(*data)
        for p, g in zip(self.recording.learned.values(), gradients, strict=True):
            if g is not None:
                g = g if share == 1 else g * share
                p.grad = g if p.grad is None else p.grad.add_(g)
        return metrics

    def _gradient(
        self, module: nn.Module, loss: Callable[..., tuple[Tensor, Mapping[str, Tensor]]], *data: Tensor
    ) -> list[Tensor]:
        value, metrics = loss(*data)
        learned = [p for p in module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value, learned, allow_unused=True)
        self.names, self.has = list(metrics), [g is not None for g in gradients]
        return [*metrics.values(), *(g for g in gradients if g is not None)]


class Captured(RecordedGradient):
    """The gradient of the outer loss on meta-batches of one shape, recorded."""

    def __init__(self, algorithm: SupervisedAlgorithm, example: TaskBatch, capture: Capture) -> None:
        self.way = example.support.way, example.query.way
        super().__init__(algorithm, partial(self._loss, algorithm), tensors_of(example), capture)

    def _loss(
        self, algorithm: SupervisedAlgorithm, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor
    ) -> tuple[Tensor, Metrics]:
        return algorithm.outer_loss(TaskBatch(Labelled(sx, sy, self.way[0]), Labelled(qx, qy, self.way[1])))


def tensors_of(batch: TaskBatch) -> tuple[Tensor, ...]:
    """Return the inputs and targets of support and query sets."""
    return batch.support.x, batch.support.y, batch.query.x, batch.query.y


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
