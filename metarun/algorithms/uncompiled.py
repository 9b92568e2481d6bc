"""Derivatives of ``torch.func`` without importing torch's compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch


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
