"""Composition of command-line words into one resolved configuration, by Hydra."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from metarun.config.catalogue import examine
from metarun.config.domains import KEY, with_sections
from metarun.config.environment import as_written
from metarun.config.explain import COMPOSING, explain
from metarun.config.grammar import split, written
from metarun.config.hydra_loader import compose_with, initialized, start, started
from metarun.config.locations import absolute
from metarun.config.origins import tuned
from metarun.config.overrides import Override, apply, read_single, value_at
from metarun.config.paths import (
    State,
    is_group,
    misplaced,
    option_file,
    options,
    users_state,
)
from metarun.config.trust import look_in_current_directory, names_other_code
from metarun.errors import UserError, listed, nearest, require, shortened
from metarun.moved import renamed, updated

log = logging.getLogger("metarun")

_DOMAINS = f"task.{KEY}"
_OPTIONAL = ("images", "experiment")
"""Groups that need no option."""
_GIVEN = "given"
"""Name of the option of a section that is given as a value."""
_DERIVED = {"tuned": "the task and the algorithm"}
"""Groups whose option follows from other groups."""
_OF_SWEEPS = ("hydra/launcher", "hydra.launcher.", "hydra.sweep.dir")
"""Hydra keys that a sweep honours. All others would have no effect and are refused."""
_INSTEAD = {
    "hydra.run": "a run's directory is determined by runner.directory=, name= and its start time",
    "hydra.output_subdir": "a run's directory is determined by runner.directory=, name= and its start time",
    "hydra.sweep.subdir": "a run's directory is determined by runner.directory=, name= and its start time",
    "hydra.searchpath": "--config-dir DIR adds your own configuration files",
    "hydra.mode": "-m starts a sweep",
    "hydra.verbose": "-v prints what is read and decided on the way",
    "hydra.job_logging": "-q prints results and errors only, -v details; a run's metarun.log has all messages",
    "hydra/job_logging": "-q prints results and errors only, -v details; a run's metarun.log has all messages",
    "hydra.sweeper": "a sweep runs every combination; `metarun search` tunes values",
    "hydra/sweeper": "a sweep runs every combination; `metarun search` tunes values",
}


@dataclass(frozen=True)
class Composed:
    """A composed configuration.

    Attributes:
        config: The configuration, resolved except for values of environment variables.
        choices: The chosen option of each group, ``{"task": "vision/glyphs", ...}``.
        asked: Keys that the user set, rather than an option's file.
        other_task: True if the task is another than that of the chosen recipe.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    asked: tuple[str, ...] = ()
    other_task: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the composition that a run stores in meta.json."""
        values = tuned(self.config, self.choices, self.asked)
        return {"choices": self.choices, "asked": list(self.asked), **({"tuned": values} if values else {})}


def compose(words: Sequence[str], sections: Mapping[str, Mapping[str, Any]] | None = None) -> Composed:
    """Compose the configuration for the given words.

    Args:
        words: Overrides as on the command line, ``key=value``.
        sections: Sections given as values instead of by the name of an option, ``{"task": {"_target_": ...}}``.

    Raises:
        UserError: A word names no key, an option does not exist, or a value cannot be resolved.
    """
    own, hydra = unresolved(words, sections)
    return described(own, hydra.runtime.choices, words, sections or {})


def described(
    config: DictConfig, options: Mapping[str, str], words: Sequence[str], sections: Mapping[str, Mapping[str, Any]]
) -> Composed:
    """Resolve the configuration for ``words`` and ``sections``, of which Hydra has chosen ``options``."""
    choices = chosen(options)
    for group, section in sections.items():
        choices[group] = str(section["_target_"]).rpartition(".")[2].lower()
    recipe, other_task = choices.get("experiment"), False
    if recipe and ("task" in sections or any(split(word)[1] == "task" for word in words)):
        other_task = choices["task"] != unresolved([f"experiment={recipe}"])[1].runtime.choices.task
    return Composed(resolve(config), choices, asked_keys(words), other_task)


def asked_keys(words: Sequence[str]) -> tuple[str, ...]:
    """Return the keys set by ``words``, without choices of options."""
    keys = (split(word)[1] for word in words)
    return tuple(key for key in keys if "." in key)


def unresolved(
    words: Sequence[str], sections: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[DictConfig, DictConfig]:
    """Return a configuration with unresolved interpolations, and Hydra's own section, which callers leave as it is.

    Arguments and errors are those of :func:`compose`.
    """
    sections = sections or {}
    overrides = read_single(words)
    for override in overrides:
        if of_sweeps(override):
            raise UserError(f"{shortened(override.word)}: this key is for sweeps; -m starts one")
    choices = [for_hydra(override) for override in overrides if is_group(override.key)]
    for group, section in sections.items():
        require(all(choice.key != group for choice in choices), f"{group} is given twice, by name and by value")
        ConfigStore.instance().store(_GIVEN, dict(section), group=group, provider="metarun")
    try:
        words = [*(choice.text for choice in choices), *(f"{group}={_GIVEN}" for group in sections)]
        config = compose_with(start(), words) if sections else _compose(words)
        plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
        del plain["hydra"]
        values = [override for override in overrides if not is_group(override.key)]
        apply(plain, (override for override in values if override.key == _DOMAINS))
        if isinstance(plain.get("task"), dict):
            plain["task"] = with_sections(plain["task"], _task_section)
        apply(plain, (override for override in values if override.key != _DOMAINS))
        return OmegaConf.create(plain), config.hydra
    except COMPOSING as error:
        raise UserError(explain(error)) from None


def _task_section(name: str) -> dict[str, Any]:
    """Return the section of a task's option."""
    (override,) = read_single([f"task={name}"])
    section: dict[str, Any] = OmegaConf.to_container(_compose([for_hydra(override).text]).task)  # type: ignore[assignment]
    return section


def launch(
    settings: Sequence[Override], jobs: Sequence[Sequence[str]], job: Callable[[DictConfig], None], first: int = 0
) -> None:
    """Let a sweep's launcher call ``job`` with the configuration of each job, possibly in other processes.

    Args:
        settings: Settings of the sweep itself, for which :func:`of_sweeps` holds.
        jobs: Words of each run.
        job: Function called with the run's configuration. Its exceptions are raised here.
        first: Number of the first job.
    """
    from hydra._internal.callbacks import Callbacks

    with initialized(job_name="metarun") as hydra:
        words = [*(setting.text for setting in settings), *jobs[0]]
        config = hydra.compose_config("config", words, run_mode=RunMode.MULTIRUN, with_log_configuration=True)
        context = HydraContext(hydra.config_loader, Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(context, job, config)
        for result in launcher.launch(jobs, first):
            _ = result.return_value  # raises what the job raised


def sweep_directory(settings: Sequence[Override], words: Sequence[str]) -> Path:
    """Return the directory of a sweep that starts now; ``words`` are those of one of its runs."""
    try:
        config = compose_with(start(), [*(setting.text for setting in settings), *words])
        return Path(config.hydra.sweep.dir).expanduser()
    except COMPOSING as error:
        raise UserError(explain(error)) from None


def of_sweeps(override: Override) -> bool:
    """Return whether an override is a setting of a sweep; raises :class:`UserError` for other keys of Hydra."""
    if not override.key.startswith(("hydra.", "hydra/")) and override.key != "hydra":
        return False
    if not override.key.startswith(_OF_SWEEPS):
        why = next((why for key, why in _INSTEAD.items() if override.key.startswith(key)), "it would have no effect")
        raise UserError(f"{shortened(override.word)}: metarun does not use this key: {why}")
    return True


def for_hydra(override: Override) -> Override:
    """Return an override in the form that Hydra takes. The chosen option is checked; choosing none becomes a deletion.

    Raises:
        UserError: The option does not exist or its file cannot be read.
    """
    group, name = override.key, override.value
    if not is_group(group):
        return override
    if group in _DERIVED:
        raise UserError(f"{shortened(override.word)}: the option follows from {_DERIVED[group]}")
    if override.sign == "~" or name is None:
        if group not in _OPTIONAL:
            names = listed(name for name, _ in options(group))
            raise UserError(f"{shortened(override.word)}: a run needs an option of {group}: {names}")
        return replace(override, sign="~", parsed=None)
    if isinstance(name, (int, float)):
        name = str(override.parsed)
    if not isinstance(name, str) or option_file(group, name) is None:
        known = [option for option, _ in options(group)]
        text = name if isinstance(name, str) else written(name)
        hint = misplaced(group, text) or nearest(text, known)
        raise UserError(f"unknown {group} '{shortened(text)}'{hint}   available: {listed(known)}")
    examine(group, name)
    return replace(override, sign="", parsed=name)


def _compose(words: Sequence[str]) -> DictConfig:
    """Return Hydra's configuration for these words, which the caller leaves as it is.

    It is composed once while the user's files stay the same, whatever the order of the groups: Hydra takes most of the
    time of a composition, and the runs of a sweep differ in few options.
    """
    return _hydras(tuple(sorted(words, key=lambda word: word.partition("=")[0])), users_state())


@lru_cache(maxsize=256)
def _hydras(words: tuple[str, ...], state: State) -> DictConfig:
    return compose_with(started(state), words)


def resolve(config: DictConfig) -> dict[str, Any]:
    """Return plain values, resolved except for environment variables.

    If the configuration names classes of the user's own, the current directory is added to the import path.

    Raises:
        UserError: A value cannot be resolved.
    """
    try:
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        plain = as_written(config)
    except COMPOSING as error:
        raise UserError(explain(error)) from None
    assert isinstance(plain, dict)
    for former, present in renamed(plain).items():
        log.warning("%s is now called %s", former, present)
    plain = updated(plain)
    if names_other_code(plain):
        look_in_current_directory()
    return {str(key): value for key, value in plain.items()}


def changed(config: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """Apply overrides to a stored configuration. Interpolations in the overrides are resolved as in :func:`resolve`."""
    changed: dict[str, Any] = deepcopy(dict(config))
    apply(changed, overrides)
    with_expressions = [override for override in overrides if "${" in str(override.value)]
    if with_expressions:
        try:
            resolved = as_written(OmegaConf.create(changed))
        except COMPOSING as error:
            raise UserError(explain(error)) from None
        for override in with_expressions:
            apply(changed, [replace(override, sign="++", parsed=value_at(resolved, override.key))])
    return changed


def chosen(choices: Mapping[str, str]) -> dict[str, str]:
    """Return the choices without Hydra's own groups and without derived ones."""
    return {group: name for group, name in choices.items() if "hydra" not in group and group not in _DERIVED and name}


def default_name(composed: Composed) -> str:
    """Return a run's default name: ``omniglot-maml``, or the path of a recipe whose task it has."""
    choices = composed.choices
    if choices.get("experiment") and not composed.other_task:
        return choices["experiment"].replace("/", "-")
    return f"{choices['task'].rsplit('/')[-1]}-{choices['algorithm'].rsplit('/')[-1]}"


def named(composed: Composed) -> dict[str, Any]:
    """Return the configuration with the run's name filled in and all paths absolute except ``runner.directory``."""
    config = absolute(composed.config)
    runner = config.get("runner")
    if isinstance(runner, dict) and isinstance(where := runner.get("directory"), str):
        config["runner"] = {**runner, "directory": os.path.expanduser(where)}
    config["name"] = config.get("name") or default_name(composed)
    return config
