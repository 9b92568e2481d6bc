"""The tracker's keys: a closed section. Their values stand in conf/tracker/default.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metarun.types import NonNegative


@dataclass(frozen=True)
class Tracker:
    """Where metrics go besides metrics.jsonl."""

    wandb: Literal["online", "offline", "disabled"] | None
    """W&B mode; null follows WANDB_MODE, then online with an API key and offline without."""
    project: str
    entity: str | None
    group: str | None
    """W&B group; null takes the sweep's."""
    tags: Sequence[str]
    init_timeout: NonNegative
    """Seconds to wait for W&B at the start before going on offline."""
    finish_timeout: NonNegative
    """Seconds to wait for W&B at the end; where it fails, an offline copy has up to ten more."""
