"""The ways to compute an outer step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Capture = Literal["none", "graph", "compiled"]


@dataclass(frozen=True)
class Plan:
    """A way to compute a step. All give the same gradient; they differ in speed, in memory and in rounding."""

    batched: bool = True
    """True: the inner loops of all tasks of a part run at once, where that is exact; else one task after another."""
    chunk: int | None = None
    """The number of tasks whose graph is held at once; ``None``: the whole meta-batch."""
    capture: Capture = "none"
    """``graph``: the step's tensor operations are recorded once and repeated, without Python's and autograd's
    bookkeeping; the same bits (on CUDA as a CUDA graph). ``compiled``: that record, fused into machine code."""

    def __str__(self) -> str:
        how = "tasks batched" if self.batched else "one task after another"
        parts = "" if self.chunk is None else f", {self.chunk} at once"
        return how + parts + {"none": "", "graph": ", captured", "compiled": ", compiled"}[self.capture]
