"""A module called with other tensors in place of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


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
