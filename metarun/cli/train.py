"""``metarun [train] key=value ...``: compose a configuration, check it and run it; ``-m`` sweeps."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from metarun.cli.arguments import Arguments
from metarun.cli.output import print_summary
from metarun.config.compose import compose, resolve, unresolved
from metarun.config.overrides import read, value_at
from metarun.config.paths import conf_directory
from metarun.errors import UserError, shortened
from metarun.runs.launch import train


def run(arguments: Arguments) -> int:
    """Run the command."""
    words = arguments.overrides
    if (task := arguments["--shell-completion"]) is not None:
        from metarun.cli.completion import complete

        return complete(task)
    printed = [name for name in ("--multirun", "--cfg", "--info") if arguments[name]]
    if not arguments["--cfg"] and (arguments["--resolve"] or arguments["--package"]):
        raise UserError("--resolve and --package need --cfg: --cfg job --resolve")
    if len(printed) > 1:
        raise UserError("-m, --cfg and --info exclude each other: -m runs a sweep, the others print and stop")
    if arguments["--cfg"]:
        return _show(arguments)
    if arguments["--info"]:
        unresolved(words)  # raises what is wrong with the overrides
        return _hydra(["--info", arguments["--info"], *(override.text for override in read(words))])
    if arguments["--multirun"]:
        from metarun.cli.sweep import sweep

        return sweep(words)
    summary = train(compose(words))
    return print_summary(summary) if summary else 0


def _show(arguments: Arguments) -> int:
    """Print the configuration, or one of its keys, as YAML."""
    from omegaconf import OmegaConf

    which, package = arguments["--cfg"], arguments["--package"]
    own, hydra = unresolved(arguments.overrides)
    shown: Any = resolve(own) if arguments["--resolve"] else OmegaConf.to_container(own)
    if which == "all":
        shown = {"hydra": OmegaConf.to_container(hydra), **shown}
    if package not in (None, "_global_"):
        shown = value_at(shown, package)
        if shown is None:
            raise UserError(f"--package {shortened(package)}: no such key in --cfg {which}")
        print(f"# @package {package}")
    print(OmegaConf.to_yaml(shown) if isinstance(shown, (dict, list)) else shown, end="")
    return 0


def _hydra(words: Sequence[str]) -> int:
    """Call Hydra's own main, which prints the requested information."""
    import hydra

    sys.argv = ["metarun", *words]
    try:
        with _any_help():
            hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name="config")(lambda _: None)()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


@contextlib.contextmanager
def _any_help() -> Iterator[None]:
    """Let argparse accept any help text within the block.

    From Python 3.14 on it rejects Hydra 1.3's, an object that is made a string when it is printed
    (facebookresearch/hydra#3121).
    """
    owner: Any = argparse.ArgumentParser
    if sys.version_info < (3, 14) or not hasattr(owner, "_check_help"):
        yield
        return
    check = owner._check_help
    owner._check_help = lambda parser, action: None
    try:
        yield
    finally:
        owner._check_help = check
