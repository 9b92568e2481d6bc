"""Keys of the tracker, a closed section. Their defaults are in conf/tracker/default.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metarun.types import NonNegative


@dataclass(frozen=True)
class Tracker:
    """Destinations of the metrics besides metrics.jsonl.

    Attributes:
        sinks: The trackers.
        wandb: W&B mode; ``None``: WANDB_MODE, else online with an API key and offline without.
        project: W&B project.
        entity: W&B entity; ``None``: the user's default.
        group: W&B group; ``None``: the sweep's.
        tags: W&B tags.
        notes: W&B notes.
        checkpoint: If true, upload the tested checkpoint as a W&B artifact at the end.
        init_timeout: Seconds to wait for W&B at the start before continuing offline.
        finish_timeout: Seconds to wait for W&B at the end; if it fails, an offline copy gets up to ten more.
    """

    sinks: Sequence[Literal["wandb", "tensorboard"]]
    wandb: Literal["online", "offline", "disabled"] | None
    project: str
    entity: str | None
    group: str | None
    tags: Sequence[str]
    notes: str | None
    checkpoint: bool
    init_timeout: NonNegative
    finish_timeout: NonNegative
