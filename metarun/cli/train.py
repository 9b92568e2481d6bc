"""``metarun [train] key=value ...``: compose, check, run; ``-m`` for sweeps."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.cli import COMMANDS
from metarun.cli.launch import carry_out
from metarun.cli.output import print_summary, set_up_logging
from metarun.config.check import check
from metarun.config.compose import Composed, compose, default_name
from metarun.config.locations import absolute
from metarun.config.paths import conf_directory, options, use_config_dir
from metarun.errors import UserError, nearest

if TYPE_CHECKING:
    from metarun.tracking.rundir import RunDirectory

_HYDRA_ONLY = {
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--hydra-help",
    "--shell-completion",
    "-sc",
    "--resolve",
    "--package",
    "-p",
}
_FLAGS = (*_HYDRA_ONLY, "--multirun", "-m", "--config-dir", "-cd", "--help")


def run(words: list[str]) -> int:
    """The command."""
    if words[:1] in (["-sc"], ["--shell-completion"]) and _complete(words[1:]):
        return 0
    words = take_config_dir(words)
    flags = [w for w in words if w.startswith("-")]
    overrides = [w for w in words if not w.startswith("-")]
    if any(f.split("=")[0] in _HYDRA_ONLY for f in flags):
        return _hydra(words)
    for flag in flags:
        if flag not in ("-m", "--multirun"):
            raise UserError(f"unknown option '{flag}'{nearest(flag, _FLAGS)}   `metarun --help` lists them")
    set_up_logging()
    if flags:
        from metarun.cli.sweep import sweep

        return sweep(overrides)
    summary = train(compose(overrides))
    if summary:
        print_summary(summary)
    return 0


def train(
    composed: Composed, facts: Mapping[str, Any] | None = None, directory: RunDirectory | None = None
) -> dict[str, Any]:
    """One run of a composed configuration, or what is left of the one in ``directory``.

    As :func:`~metarun.cli.launch.carry_out` does it.
    """
    config = named(composed)
    check(config)
    return carry_out(config, {"choices": composed.choices, "asked": list(composed.asked), **(facts or {})}, directory)


def named(composed: Composed) -> dict[str, Any]:
    """The configuration with its run's name filled in and its paths absolute."""
    config = absolute(composed.config)
    config["name"] = config.get("name") or default_name(composed.choices)
    return config


def _complete(words: Sequence[str]) -> bool:
    """Tab completion of what Hydra knows nothing of: commands, runs, and options in nested groups.

    Returns whether there was anything to offer; Hydra completes the rest (keys).
    """
    if not words or not words[0].startswith("query="):
        return False
    *before, word = os.environ.get("COMP_LINE", "").split(" ")
    group, separator, start = word.partition("=")
    if separator:
        offers = [f"{group}={name}" for name, _ in options(group) if name.startswith(start)]
    elif before[1:] in (["resume"], ["eval"]):
        offers = [str(p.parent) for p in Path().glob("*/*/*/config.yaml") if str(p).startswith(word)]
    elif before[1:2] == ["cache"]:
        offers = [w for w in ("clear", "--older-than") if w.startswith(word) and w not in before]
    else:
        offers = [name for name in COMMANDS if len(before) == 1 and word and name.startswith(word)]
    if offers:
        print(" ".join(offers))
    return bool(offers)


def take_config_dir(words: Sequence[str]) -> list[str]:
    """Use the user's configuration directory from now on; returns the words without ``--config-dir DIR``."""
    kept, directory = [], None
    remaining = iter(words)
    for word in remaining:
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            directory = value or next(remaining, None)
            if not directory:
                raise UserError(f"{flag} needs a directory")
        else:
            kept.append(word)
    use_config_dir(directory)
    return kept


def _hydra(words: Sequence[str]) -> int:
    """Hand over to Hydra's own main, which prints what it was asked for."""
    import hydra

    sys.argv = ["metarun", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")(lambda config: None)()
    except SystemExit as error:
        return int(error.code or 0)
    return 0
