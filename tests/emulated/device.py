"""A `cuda` device on a build of torch without CUDA: what runs on it has real values, computed by the CPU's kernels.

:func:`install` registers it for the whole process and for good, so the tests that use it run in a process of their own
(:mod:`tests.emulated.process`). Afterwards ``torch.device("cuda")`` works as far as metarun uses it: tensors and their
views, autograd, ``torch.func``, ``make_fx``, optimizers, generators and seeds, pinned memory, ``torch.save``, memory
statistics and CUDA graphs. An operation on tensors of two devices raises, as does one that waits for the device while
a graph is captured. :func:`watching` counts what makes the host wait for the device, and every copy between the two.

It proves nothing about the GPU's own kernels: their numerics, random numbers, speed, memory and asynchrony.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

METARUN = f"{os.sep}metarun{os.sep}"
WAITS = ("sync", "to device, waiting", "to host, waiting")
"""Events at which the host stands still until the device has done all that it was asked."""

Event = tuple[str, str, str]
"""What happened, at which operation, and the line of metarun that asked for it."""


class Watch:
    """Events since it began, and whether any happened while a graph was captured."""

    def __init__(self) -> None:
        self.events: Counter[Event] = Counter()

    def count(self, *kinds: str) -> int:
        """How many events of these kinds there were."""
        return sum(n for (kind, _, _), n in self.events.items() if kind in kinds)

    def waits(self) -> dict[Event, int]:
        """Those that made the host wait, with their numbers."""
        return {event: n for event, n in self.events.items() if event[0] in WAITS}


_watches: list[Watch] = []


@contextmanager
def watching() -> Iterator[Watch]:
    """Count, within the block, what happens between host and device."""
    watch = Watch()
    _watches.append(watch)
    try:
        yield watch
    finally:
        _watches.remove(watch)


def _note(what: bytes, operation: bytes) -> None:
    if _watches:
        event = what.decode(), operation.decode(), _asked_by()
        for watch in _watches:
            watch.events[event] += 1


def _asked_by() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if METARUN in file and f"{METARUN}tests{os.sep}" not in file and f"tests{os.sep}emulated" not in file:
            return f"{file.rpartition(METARUN)[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "backward"  # on the autograd engine's thread


_keep: list[Any] = []


def install(library: Path) -> None:
    """Make ``cuda`` a device of this process by the compiled ``library``; torch must not have been imported yet."""
    if "torch" in sys.modules:
        raise RuntimeError("torch asks for its devices when it is imported: install the emulated one before")
    native = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import torch

    native.emulated_bytes.restype = ctypes.c_int64
    listener = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)(_note)
    native.emulated_listen(listener)
    _keep.extend((native, listener))

    cuda: Any = torch.cuda
    cuda._lazy_init = lambda: None
    cuda._initialized = True
    cuda.is_available = lambda: True
    cuda.is_initialized = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.set_device = lambda device: None
    cuda.synchronize = lambda device=None: _note(b"synchronize", b"torch.cuda.synchronize")
    cuda.random.device_count, cuda.random.current_device = cuda.device_count, cuda.current_device
    cuda._exchange_device = cuda._maybe_exchange_device = lambda index: 0
    torch.storage._to = _storage_to  # type: ignore[attr-defined]
    torch.storage._StorageBase.clone = _storage_clone  # type: ignore[method-assign]
    cuda.empty_cache = lambda: None
    cuda.get_device_name = lambda device=None: "a CPU in place of a GPU"
    cuda.get_device_capability = lambda device=None: (8, 0)
    cuda.get_device_properties = lambda device=None: SimpleNamespace(
        name=cuda.get_device_name(), major=8, minor=0, total_memory=16 << 30, multi_processor_count=1
    )
    cuda.mem_get_info = lambda device=None: ((16 << 30) - native.emulated_bytes(0), 16 << 30)
    cuda.memory_allocated = cuda.memory_reserved = lambda device=None: native.emulated_bytes(0)
    cuda.max_memory_allocated = cuda.max_memory_reserved = lambda device=None: native.emulated_bytes(1)
    cuda.reset_peak_memory_stats = lambda device=None: native.emulated_forget_peak()
    cuda.default_generators = (torch.Generator(device="cuda"),)  # the first one made is the device's own
    cuda.is_current_stream_capturing = lambda: Graph.captured is not None
    cuda.Stream, cuda.Event = Stream, Event_
    cuda.current_stream = cuda.default_stream = lambda device=None: Stream()
    cuda.stream = lambda stream: stream
    cuda.CUDAGraph, cuda.graph = Graph, capture


def _storage_to(storage: Any, device: Any, non_blocking: bool = False) -> Any:
    """What ``storage.to(device)`` does; torch's own asks for an allocator of CUDA."""
    import torch

    device = torch.device(device)
    if storage.device.type == device.type:
        return storage
    there = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device).untyped_storage()
    return there.copy_(storage, non_blocking)


def _storage_clone(storage: Any) -> Any:
    """The same for ``storage.clone()``."""
    import torch

    return torch.empty(storage.nbytes(), dtype=torch.uint8, device=storage.device).untyped_storage().copy_(storage)


class Stream:
    """One of several queues of work; here all of them are done at once and in order."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        pass

    def wait_stream(self, other: Stream) -> None: ...
    def wait_event(self, event: Event_) -> None: ...
    def synchronize(self) -> None:
        _note(b"synchronize", b"torch.cuda.Stream or Event")

    def record_event(self, event: Event_ | None = None) -> Event_:
        return event or Event_()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None: ...


class Event_:  # noqa: N801 (Event is what is counted)
    """A place in a stream, which is passed as soon as it is recorded."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None: ...
    def record(self, stream: Stream | None = None) -> None: ...
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _note(b"synchronize", b"torch.cuda.Stream or Event")

    def elapsed_time(self, other: Event_) -> float:
        return 1.0


class Graph:
    """A captured sequence of operations on fixed memory. Replaying it does them again, and runs no Python."""

    captured: Graph | None = None
    """The one that is being captured."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        import torch

        with torch.no_grad():
            for operation, arguments, options, results in self.calls:
                again = operation(*as_they_are(arguments), **as_they_are(options))
                for old, new in zip(tensors(results), tensors(again), strict=True):
                    if new.data_ptr() != old.data_ptr():
                        old.copy_(new)


@contextmanager
def capture(graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    """Within the block, operations are captured in ``graph``; one that waits for the device raises."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = as_they_are((args, kwargs or {}))
            result = func(*args, **(kwargs or {}))
            graph.calls.append((func, *given, as_they_are(result)))
            return result

    Graph.captured = graph
    _keep[0].emulated_capture(1)
    try:
        with Recorder():
            yield
    finally:
        _keep[0].emulated_capture(0)
        Graph.captured = None


def as_they_are(values: Any) -> Any:
    """Nested ``values`` with tensors that lie in the same memory and keep their shape, whatever becomes of the others'.

    A CPU tensor is a number to a graph, which keeps its value.
    """
    import torch
    from torch.utils._pytree import tree_map

    def one(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        return x.detach() if x.is_cuda else x.clone()

    return tree_map(one, values)


def tensors(values: Any) -> list[torch.Tensor]:
    """All tensors in nested ``values``, in order."""
    import torch
    from torch.utils._pytree import tree_leaves

    return [v for v in tree_leaves(values) if isinstance(v, torch.Tensor)]
