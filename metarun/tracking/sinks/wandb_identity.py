"""The W&B id of a run directory, and the offline files of that id."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from metarun.tracking.files import atomic_write
from metarun.untrusted import read_text


def new_id() -> str:
    """Return a new W&B id or, in a W&B sweep, the id that its agent assigned, since the sweep counts no other."""
    given = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return given or secrets.token_hex(4)


@dataclass
class Identity:
    """The W&B id of a run directory, stored in ``wandb_id`` together with whether it was ever online."""

    directory: Path
    run_id: str = field(default_factory=new_id)
    online: bool = False

    @classmethod
    def of(cls, directory: Path) -> Identity:
        file = directory / "wandb_id"
        words = read_text(file).split() if file.exists() else []
        return cls(directory, words[0], "online" in words[1:]) if words else cls(directory)

    def save(self) -> None:
        content = f"{self.run_id}{' online' if self.online else ''}\n"
        atomic_write(self.directory / "wandb_id", content.encode())

    def offline_files(self) -> list[Path]:
        return sorted((self.directory / "wandb").glob(f"offline-run-*-{self.run_id}"))

    def uploaded(self) -> bool:
        """Return whether W&B may have rows of this id: it was online, or ``wandb sync`` has marked it."""
        return self.online or any(any(files.glob("*.synced")) for files in self.offline_files())
