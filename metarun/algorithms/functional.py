"""Modules as functions: called with other tensors in place of their own, what is known of their calls, and their
derivatives without torch's compiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd


def call_with(values: Mapping[str, Tensor], module: nn.Module, *arguments: Any) -> Any:
    """``module(*arguments)`` with ``values`` as its parameters and buffers of these names.

    Each takes the place of its tensor wherever that is used: under other names too (tied weights), and in a module
    that stands in several places, where torch's own way to do so leaves the values behind in the module.
    """
    places: dict[int, list[str]] = defaultdict(list)
    tensors: dict[str, Tensor] = {}
    for prefix, part in module.named_modules():
        for key, tensor in chain(part._parameters.items(), part._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{key}" if prefix else key
                tensors[name] = tensor
                places[id(tensor)].append(name)
    everywhere: dict[str, Tensor] = {}
    for name, value in values.items():
        for place in places[id(tensors[name])]:
            everywhere[place] = value
    return functional_call(module, everywhere, arguments, tie_weights=False)


class _Holder(nn.Module):
    """Holds a module, so that its tensors can be replaced while a function that uses it runs."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def function_of_tensors(module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function``, which uses ``module``, as a function of the module's tensors by name and its arguments."""
    holder = _Holder(module, function)
    return lambda values, *arguments: call_with({f"module.{n}": t for n, t in values.items()}, holder, *arguments)


def is_known(module: nn.Module) -> bool:
    """Return whether all layers of a module are torch's or metarun's. A user's own may keep a state that changes."""
    return all(type(layer).__module__.split(".")[0] in ("torch", "metarun") for layer in module.modules())


def repeats(module: nn.Module) -> bool:
    """Return whether a module gives the same outputs whenever it is called with the same inputs and parameters.

    Layers with dropout do not in training, and a user's own layers are not known to.
    """

    def draws(layer: nn.Module) -> bool:
        rate = layer.p if isinstance(layer, _DropoutNd) else getattr(layer, "dropout", 0)
        return layer.training and isinstance(rate, (int, float)) and rate > 0

    return is_known(module) and not any(map(draws, module.modules()))


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within the block or function, ``grad``, ``grad_and_value`` and ``vjp`` do not import torch's compiler.

    They switch compiled autograd off, for which they import the compiler, and that takes as long as importing all the
    rest of torch. Compiled autograd is off as long as nothing else has imported it.
    """
    if "_dynamo" in vars(torch):
        yield
        return
    stand_in = _Compiler()
    vars(torch)["_dynamo"] = stand_in
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is stand_in:
            del vars(torch)["_dynamo"]


class _Compiler:
    """Stands in for ``torch._dynamo``, which is imported as soon as anything else of it is asked for."""

    compiled_autograd = SimpleNamespace(_disable=nullcontext)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("torch._dynamo"), name)
