"""Command-line words to one resolved configuration, through Hydra; its errors turned into one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.environment import as_written
from metarun.config.paths import conf_directory, options, user_directories
from metarun.config.trust import look_in_current_directory, names_other_code
from metarun.errors import UserError, nearest


@dataclass(frozen=True)
class Composed:
    """A configuration, resolved but for values of the environment, and the options that made it.

    These are ``{"task": "vision/glyphs", ...}``.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    asked: tuple[str, ...] = ()
    """The keys that the user set, rather than an option's file."""


class _UserConf(SearchPathPlugin):
    """Puts the user's directories before the shipped ones, so that they can shadow as well as add."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for directory in reversed(user_directories()):
            search_path.prepend("metarun-user", f"file://{directory}", anchor="main")


def compose(overrides: Sequence[str]) -> Composed:
    """The configuration that ``overrides`` ask for, resolved; raises :class:`UserError` for what cannot be."""
    try:
        composed = _compose(overrides)
        return Composed(resolve(composed), chosen(composed.hydra.runtime.choices), asked_keys(overrides))
    except MissingConfigException as error:
        raise UserError(_unknown_option(error)) from None
    except ConfigCompositionException as error:
        raise UserError(_bad_override(error, overrides)) from None
    except Exception as error:  # whatever it is, it comes of what the user wrote: on the line or in a file
        raise UserError(_first_lines(error)) from None


def _compose(overrides: Sequence[str]) -> DictConfig:
    Plugins.instance().register(_UserConf)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_directory()), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides), return_hydra_config=True)


def asked_keys(overrides: Sequence[str]) -> tuple[str, ...]:
    """The keys that ``overrides`` set; choices of options are none."""
    keys = (word.partition("=")[0].lstrip("+") for word in overrides)
    return tuple(key for key in keys if "." in key)


def sweep_directory(overrides: Sequence[str]) -> Path:
    """Where a sweep that starts now keeps what is its own."""
    return Path(_compose(overrides).hydra.sweep.dir)


def multirun(overrides: Sequence[str], job: Callable[[DictConfig], None]) -> None:
    """Have Hydra's launcher call ``job`` with every combination of the overrides' values, maybe in another process."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_directory()), version_base="1.3", job_name="metarun"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.multirun("config", task_function=job, overrides=list(overrides))


def resolve(config: DictConfig) -> dict[str, Any]:
    """Plain values without Hydra's own section, resolved but for those of the environment.

    Raises :class:`UserError` where one cannot be resolved. Classes of the user's own that they name may lie in the
    current directory.
    """
    own = OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"])
    try:
        OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
        plain = as_written(own)
    except OmegaConfBaseException as error:
        raise UserError(_first_lines(error)) from None
    assert isinstance(plain, dict)
    if names_other_code(plain):
        look_in_current_directory()
    return {str(key): value for key, value in plain.items()}


def chosen(choices: Mapping[str, str]) -> dict[str, str]:
    """metarun's own of all groups' choices: without Hydra's, and without what follows from the others."""
    return {group: name for group, name in choices.items() if "hydra" not in group and group != "tuned" and name}


def default_name(choices: Mapping[str, str]) -> str:
    """A run's name where none is given: ``omniglot-maml``; the recipe's path for a recipe."""
    if choices.get("experiment"):
        return choices["experiment"].replace("/", "-")
    return f"{choices['task'].rsplit('/')[-1]}-{choices['algorithm'].rsplit('/')[-1]}"


def _unknown_option(error: MissingConfigException) -> str:
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, name = missing.partition("/")
    for launcher, extra in (("submitit", "slurm"), ("ray", "ray")):
        if name.startswith(f"launcher/{launcher}"):
            return f"hydra/{name} needs the launcher of {launcher}: pip install 'metarun[{extra}]'"
    names = [name for name, _ in options(group)]
    if not names:
        return f"there is no configuration '{missing}'"
    return f"unknown {group} '{name}'{nearest(name, names)}   available: {', '.join(names)}"


def _bad_override(error: ConfigCompositionException, overrides: Sequence[str]) -> str:
    text = str(error)
    cause = str(error.__cause__ or "")
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found.group(1)
        parent, _, leaf = key.rpartition(".")
        groups = [o for o in overrides if "." not in o.split("=")[0] and "=" in o and not o.startswith(("~", "+"))]
        try:
            base = _compose([o for o in groups if o.split("=")[0] != key])
            node = OmegaConf.select(base, parent) if parent else base
            siblings = [str(k) for k in node if k != "hydra"] if isinstance(node, DictConfig) else []
        except (HydraException, OmegaConfBaseException):
            siblings = []
        if siblings and leaf not in siblings:
            where = f"{parent}." if parent else ""
            best = nearest(leaf, siblings).replace("'", f"'{where}", 1)
            return f"unknown key '{key}'{best}   allowed: {', '.join(siblings)}"
        if siblings == [] and parent:
            top = [str(k) for k in _compose([]) if k != "hydra"]
            return f"unknown key '{key}': there is no '{parent}'{nearest(parent.split('.')[0], top)}"
        return f"{key}: {_first_lines(cause)}"
    if "Could not append" in text or "Could not delete" in text:
        return f"{text.splitlines()[0]} {_first_lines(cause)}".strip()
    return _first_lines(text)


def _first_lines(error: object) -> str:
    """A library's message without its location block, on one line."""
    kept = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in kept if not line.startswith(("full_key:", "object_type=", "reference_type=", "See https"))]
    return " ".join(kept) or "the configuration cannot be composed"
