"""Schema of the keys of ``metarun bench``. Their defaults are in conf/bench/default.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metarun.types import Positive


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark."""

    workloads: Sequence[str]
    """Names of workloads, ``end_to_end``, ``rollouts``, ``tables`` or ``runs``."""
    peers: Sequence[str] | None
    """Libraries to compare with besides learn2learn. ``None`` means all that are installed."""
    rounds: Positive
    """Number of rounds. Each measures all implementations in turn."""
    threads: Positive
    """Number of CPU threads."""
    device: str
    meta_batch: Positive | None
    """Tasks per outer step. ``None`` means the workload's own number."""
    memory: bool
    """If true, also measure the memory that a step adds."""
    iterations: Positive
    """Outer steps of the end-to-end run."""
    out: str
    """Folder for the results."""
