"""The keys of ``metarun bench``: a closed section. Their values stand in conf/bench/default.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metarun.types import Positive


@dataclass(frozen=True)
class Settings:
    """What is compared, and how."""

    workloads: Sequence[str]
    peers: Sequence[str] | None
    """Beside learn2learn's loop; null for those that are installed."""
    rounds: Positive
    threads: Positive
    device: str
    meta_batch: Positive | None
    """Tasks an outer step; null for the workload's own."""
    memory: bool
    iterations: Positive
    """Of the end-to-end run."""
    out: str
