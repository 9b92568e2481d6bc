"""Whether a run is sent to W&B, kept for a later upload, or neither."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

log = logging.getLogger("metarun")

MODES = ("online", "offline", "disabled")
ALIASES = {"run": "online", "shared": "online", "dryrun": "offline"}  # W&B's other names in WANDB_MODE
_said: set[str] = set()  # problems are reported once a process, however many runs a sweep makes in it


def requested_mode(argument: str | None, environment: Mapping[str, str]) -> str | None:
    """The mode asked for: the argument, else ``WANDB_MODE``; None where there is no such wish."""
    if argument is not None:
        return argument
    mode = environment.get("WANDB_MODE", "").strip().lower()
    mode = ALIASES.get(mode, mode)
    if mode and mode not in MODES:
        log.warning("W&B: WANDB_MODE=%s is not one of %s; ignored", mode, ", ".join(MODES))
    return mode if mode in MODES else None


def choose_mode(argument: str | None) -> str:
    """ "online", "offline" or "disabled": what was asked for, as far as there is an API key for it."""
    wanted = requested_mode(argument, os.environ)
    if wanted == "disabled":
        return wanted
    import wandb

    # The silence of what wandb says outside of a run is a setting of the process.
    settings = wandb.setup(settings=wandb.Settings(silent=True, quiet=True)).settings
    if wanted == "offline" or (wanted is None and settings.mode == "offline"):  # as `wandb offline` sets it
        return "offline"
    if wandb.login(prompt=False, verify=False):
        return "online"
    say_once("W&B: online was asked for, without an API key" if wanted else "W&B: no API key")
    return "offline"


def say_once(problem: str) -> None:
    if problem not in _said:
        _said.add(problem)
        log.info("%s; the run is kept offline (`wandb login` stores a key)", problem)
