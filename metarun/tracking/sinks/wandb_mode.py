"""Choice of the W&B mode: online, offline or disabled."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

log = logging.getLogger("metarun")

MODES = ("online", "offline", "disabled")
ALIASES = {"run": "online", "shared": "online", "dryrun": "offline"}  # W&B's other names in WANDB_MODE
_reported: set[str] = set()  # each problem is reported once a process, however many runs a sweep makes in it


def requested_mode(argument: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the requested mode: the argument, else ``WANDB_MODE``, else ``None``."""
    if argument is not None:
        return argument
    mode = environment.get("WANDB_MODE", "").strip().lower()
    mode = ALIASES.get(mode, mode)
    if mode and mode not in MODES:
        log.warning("W&B: WANDB_MODE=%s is not one of %s; ignored", mode, ", ".join(MODES))
    return mode if mode in MODES else None


def choose_mode(argument: str | None) -> str:
    """Return "online", "offline" or "disabled": the requested mode, or offline if there is no API key."""
    wanted = requested_mode(argument, os.environ)
    if wanted == "disabled":
        return wanted
    import wandb

    # Silencing wandb outside of runs is a setting of the process.
    settings = wandb.setup(settings=wandb.Settings(silent=True, quiet=True)).settings
    if wanted == "offline" or (wanted is None and settings.mode == "offline"):  # as `wandb offline` sets it
        return "offline"
    if wandb.login(prompt=False, verify=False):
        return "online"
    say_once("W&B: online mode needs an API key" if wanted else "W&B: no API key")
    return "offline"


def say_once(problem: str) -> None:
    """Log a problem once, with the hint that the run is kept offline."""
    if problem not in _reported:
        _reported.add(problem)
        log.info("%s; the run is kept offline (`wandb login` stores a key)", problem)
