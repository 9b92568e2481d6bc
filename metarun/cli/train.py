"""``metarun [train] key=value ...``: compose a configuration, check it and run it; ``-m`` sweeps."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.cli.commands import COMMANDS
from metarun.cli.output import print_summary
from metarun.config.compose import compose, resolve, unresolved
from metarun.config.overrides import read, value_at
from metarun.config.paths import conf_directory, options, take_config_dir
from metarun.errors import UserError, nearest, shortened
from metarun.runs.launch import train
from metarun.tracking.console import set_up_logging

if TYPE_CHECKING:
    pass

_SHOWN = ("job", "all")
_INFORMATION = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_SHELLS = ("bash", "zsh", "fish")
_SHORT = {"-m": "--multirun", "-c": "--cfg", "-p": "--package", "-i": "--info", "-sc": "--shell-completion",
          "-cp": "--config-path", "-cn": "--config-name", "-r": "--run"}  # fmt: skip
_OPTIONS = ("--multirun", "-m", "--cfg", "--resolve", "--package", "--config-dir", "--info", "--shell-completion")
_REFUSED = {
    "--config-path": "metarun has one configuration, to which --config-dir DIR adds your own files",
    "--config-name": "metarun has one configuration, to which --config-dir DIR adds your own files",
    "--experimental-rerun": "`metarun resume RUN` continues a run",
    "--run": "without options, metarun starts one run",
    "--hydra-help": "`metarun --help` shows metarun's options",
}
"""Options of Hydra that metarun does not have, with what to use instead."""


@dataclass
class _Request:
    """The options and overrides on the command line."""

    overrides: list[str] = field(default_factory=list)
    multirun: bool = False
    cfg: str | None = None
    resolve: bool = False
    package: str | None = None
    info: str | None = None


def run(words: list[str]) -> int:
    """Run the command."""
    if words[:1] in (["-sc"], ["--shell-completion"]):
        return _complete(words[1:])
    asked = _parse(take_config_dir(words))
    if asked.cfg is not None:
        return _show(asked)
    if asked.info is not None:
        unresolved(asked.overrides)  # raises what is wrong with the overrides
        return _hydra(["--info", asked.info, *(override.text for override in read(asked.overrides))])
    set_up_logging()
    if asked.multirun:
        from metarun.cli.sweep import sweep

        return sweep(asked.overrides)
    summary = train(compose(asked.overrides))
    return print_summary(summary) if summary else 0


def _parse(words: Sequence[str]) -> _Request:
    """Return the options and overrides in ``words``; raises :class:`UserError` for unknown options."""
    asked, remaining = _Request(), list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("-"):
            asked.overrides.append(word)
            continue
        typed, separator, value = word.partition("=")
        option = _SHORT.get(typed, typed)

        def needed(what: str, typed: str = typed, separator: str = separator, value: str = value) -> str:
            given = value if separator else remaining.pop(0) if remaining else ""
            if not given:
                raise UserError(f"{typed} needs {what}")
            return given

        match option:
            case "--multirun" if not separator:
                asked.multirun = True
            case "--resolve" if not separator:
                asked.resolve = True
            case "--cfg":
                asked.cfg = _one_of(typed, needed(f"one of {', '.join(_SHOWN)}"), _SHOWN)
            case "--package":
                asked.package = needed("a key, such as algorithm")
            case "--info":
                following = not separator and remaining and remaining[0] in _INFORMATION
                asked.info = _one_of(
                    typed, value if separator else remaining.pop(0) if following else "all", _INFORMATION
                )
            case "--shell-completion":
                raise UserError(f"{typed} must come first: metarun -sc install=SHELL, one of {', '.join(_SHELLS)}")
            case _ if option in _REFUSED:
                raise UserError(f"metarun has no option {typed}: {_REFUSED[option]}")
            case _:
                raise UserError(
                    f"unknown option '{shortened(word)}'{nearest(word, _OPTIONS)}   `metarun --help` lists them"
                )
    if asked.cfg is None and (asked.resolve or asked.package is not None):
        raise UserError("--resolve and --package need --cfg: --cfg job --resolve")
    if asked.multirun + (asked.cfg is not None) + (asked.info is not None) > 1:
        raise UserError("-m, --cfg and --info exclude each other: -m runs a sweep, the others print and stop")
    return asked


def _one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise UserError(f"{option} {shortened(value)}{nearest(value, allowed)}   allowed: {', '.join(allowed)}")
    return value


def _show(asked: _Request) -> int:
    """Print the configuration, or one of its keys, as YAML."""
    from omegaconf import OmegaConf

    config = unresolved(asked.overrides)
    if asked.resolve:
        hydra = OmegaConf.to_container(config.hydra)
        plain = {**({"hydra": hydra} if asked.cfg != "job" else {}), **resolve(config)}
    else:
        plain = OmegaConf.to_container(config)  # type: ignore[assignment]
    shown: Any = {key: value for key, value in plain.items() if asked.cfg == "all" or key != "hydra"}
    if asked.package not in (None, "_global_"):
        assert asked.package is not None
        shown = value_at(shown, asked.package)
        if shown is None:
            raise UserError(f"--package {shortened(asked.package)}: no such key in --cfg {asked.cfg}")
        print(f"# @package {asked.package}")
    print(OmegaConf.to_yaml(shown) if isinstance(shown, (dict, list)) else shown, end="")
    return 0


def _complete(words: Sequence[str]) -> int:
    """Complete the line for the shell. metarun completes commands, runs and options in nested groups, Hydra
    completes keys.
    """
    task, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    if task not in ("install", "uninstall", "query") or shell not in _SHELLS:
        raise UserError(f"-sc needs install=SHELL or uninstall=SHELL, SHELL one of {', '.join(_SHELLS)}")
    if task != "query":
        return _hydra(["-sc", *words])
    line = os.environ.get("COMP_LINE")
    if line is None:
        raise UserError("-sc query=SHELL is for the shell; tab completion is set up by -sc install=SHELL")
    *before, word = line.split(" ")
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
        return 0
    with contextlib.redirect_stderr(io.StringIO()):  # a message would appear in the line being typed
        _hydra(["-sc", *words])
    return 0


def _hydra(words: Sequence[str]) -> int:
    """Call Hydra's own main, which prints the requested information."""
    import hydra

    sys.argv = ["metarun", *words]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")(lambda config: None)()
    except SystemExit as error:
        return int(error.code or 0)
    return 0
