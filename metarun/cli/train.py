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
from metarun.config.compose import Composed, chosen, compose, default_name, resolve, use_directories
from metarun.config.paths import conf_directory, options, user_directories
from metarun.errors import RunFailed, UserError, nearest
from metarun.tracking.history import earlier, note_earlier

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
_PRECHECKED = 32  # jobs of a sweep that are checked before the first starts


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
    sys.path.insert(0, os.getcwd())  # a user's own classes, by their import path
    set_up_logging()
    if flags:
        return _sweep(words, overrides)
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
    return carry_out(config, {"choices": composed.choices, **(facts or {})}, directory)


def named(composed: Composed) -> dict[str, Any]:
    """The configuration with its run's name filled in."""
    config = dict(composed.config)
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
        offers = [f"{group}={name}" for name, _ in options(group, []) if name.startswith(start)]
    elif before[1:] in (["resume"], ["eval"]):
        offers = [str(p.parent) for p in Path().glob("*/*/*/config.yaml") if str(p).startswith(word)]
    else:
        offers = [name for name in COMMANDS if len(before) == 1 and word and name.startswith(word)]
    if offers:
        print(" ".join(offers))
    return bool(offers)


def take_config_dir(words: Sequence[str]) -> list[str]:
    """Register the user's configuration directories; returns the words without ``--config-dir DIR``."""
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
    use_directories(user_directories(directory))
    return kept


def _sweep(words: list[str], overrides: list[str]) -> int:
    """Hydra's multirun: every combination is checked first, then run; failures are collected to the end.

    Combinations that an earlier sweep finished are skipped, those that were stopped go on.
    """
    for each in _jobs(overrides)[:_PRECHECKED]:
        check(named(compose(each)))
    failures: list[str] = []
    count = 0

    def job(config: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        nonlocal count
        count += 1
        hydra = HydraConfig.get()
        asked = " ".join(hydra.overrides.task)
        print(f"\nmetarun: run {count}: {asked}", file=sys.stderr)
        composed = Composed(resolve(config), chosen(hydra.runtime.choices))
        try:
            finished, started = earlier(named(composed))
            for run in (finished, started):
                if run is not None:
                    note_earlier(Path(hydra.sweep.dir), run.path)
            if finished is not None:
                print(f"metarun: done before: {finished.path}", file=sys.stderr)
                return
            facts = {"group": hydra.sweep.dir.rsplit("/", 1)[-1]}
            print_summary(train(composed, facts, started))
        except Exception as error:
            kind = "" if isinstance(error, (UserError, RunFailed)) else f"{type(error).__name__}: "
            log = getattr(error, "run_log", None)
            failures.append(f"{asked}: {kind}{error}" + (f"   log: {log}" if log else ""))
            print(f"metarun: {kind}{error}", file=sys.stderr)

    late = {each: _late(each) for each in overrides}
    _hydra([late.get(word, word) for word in words], job)
    if failures:
        raise RunFailed(f"{len(failures)} of {count} runs failed:\n  " + "\n  ".join(failures))
    return 0


def _late(override: str) -> str:
    """A key of a task, model or algorithm as a choice of one value.

    Hydra sets fixed values before it knows a job's options, and refuses what the default algorithm has no such key for.
    """
    key, _, value = override.partition("=")
    if not key.startswith(("task.", "model.", "algorithm.")) or len(_jobs([override])) > 1:
        return override
    return f"{key}=choice({value})"


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        return [job for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    except OverrideParseException as error:
        raise UserError(" ".join(str(error).split())) from None


def _hydra(words: Sequence[str], job: Any = lambda config: None) -> int:
    """Hand over to Hydra's own main."""
    import hydra

    sys.argv = ["metarun", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")(job)()
    except SystemExit as error:
        return int(error.code or 0)
    return 0
