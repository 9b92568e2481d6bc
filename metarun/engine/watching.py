"""Watching the operations of a step."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class OperationMode(TorchDispatchMode):
    """The base class of modes that see every operation.

    torch guards modes against torch.compile. Its guard imports the compiler, which takes a process longer than all else
    before its first step, and nothing here is compiled that way.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
