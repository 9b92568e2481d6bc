"""Files that leave metarun: learners and optimizers in formats that other programs read, one module for each format.

This module names the formats and imports nothing, so that the command line knows them at once. The module of a format
has a function ``export(request)``, which writes the files and yields lines to print.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from metarun.config.trust import Trust


class Format(NamedTuple):
    """A format.

    Attributes:
        module: Module below ``metarun.export`` that writes it.
        source: The thing that is exported, as the user names it: ``LEARNER`` or ``RUN``.
        help: The files that are written, one clause.
    """

    module: str
    source: str
    help: str


class Request(NamedTuple):
    """The checked command line.

    Attributes:
        source: The learner or run.
        out: Output folder; ``None`` for a folder beside the source.
        queries: Number of random queries on which the files are checked.
        trust: Permissions for code that is not metarun's.
    """

    source: str
    out: str | None
    queries: int
    trust: Trust


FORMATS = {
    "onnx": Format("onnx", "LEARNER", "learner.onnx, for ONNX Runtime (needs metarun[export])"),
    "torch.export": Format("graph", "LEARNER", "learner.pt2, for torch.export.load"),
    "safetensors": Format("tensors", "LEARNER", "learner.safetensors with learner.json, which metarun loads again"),
    "optimizer": Format("optimizer", "RUN", "optimizer.pt, which metarun.load_optimizer makes a torch optimizer of"),
}
