"""Errors of Hydra, OmegaConf and YAML in metarun's words: what is wrong, in which key or file."""

from __future__ import annotations

import re

import yaml
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from metarun.config.catalogue import explain_yaml
from metarun.config.paths import options
from metarun.errors import nearest, reason, shortened

COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError, OSError, ValueError)
"""What composing raises over what a user wrote, on the line or in a file."""


def explain(error: BaseException) -> str:
    """One line for an error of :data:`COMPOSING`."""
    if (
        isinstance(error, ConfigCompositionException)
        and error.__cause__
        and not isinstance(error, MissingConfigException)
    ):
        return explain(error.__cause__)
    return _explained(error) or f"the configuration cannot be composed: {shortened(_bare(error), 300)}"


def _explained(error: BaseException) -> str | None:
    where = getattr(error, "full_key", None) or "a value"
    text = _bare(error)
    match error:
        case MissingConfigException():
            return _missing_option(error)
        case UnsupportedInterpolationType():
            name = text.rpartition(" ")[2]
            resolvers = [r for r in ("oc.env", "oc.select", "oc.decode", "oc.create", "now", "hydra") if _known(r)]
            return f"{where}: '{name}' is no resolver{nearest(name, resolvers)}   known: {', '.join(resolvers)}"
        case InterpolationKeyError():
            found = re.search(r"'(.*)'", text)
            return f"{where}: interpolates '{found[1] if found else '?'}', which is no key"
        case InterpolationResolutionError() if found := re.search(r"Environment variable '(.*)' not found", text):
            return (
                f"{where}: the environment variable {found[1]} is not set; "
                f"${{oc.env:{found[1]},VALUE}} names a value for this case"
            )
        case InterpolationResolutionError() if "Recursive" in text:
            return f"{where} is made of itself by interpolation"
        case InterpolationResolutionError() | GrammarParseError():
            return f"{where}: its interpolation ${{...}} cannot be resolved"
        case MissingMandatoryValue():
            return f"{where} has no value yet (???); give one: {where}=..."
        case yaml.YAMLError():
            return explain_yaml(error)
        case UnicodeDecodeError():
            return "a configuration file is not UTF-8"
        case OSError() if error.filename:
            return reason(error)
        case RecursionError():
            return "the configuration goes round in a circle: an option builds on itself, or a value is made of itself"
        case ConfigKeyError() | ConfigAttributeError() if where != "a value":
            return f"unknown key '{where}'"
        case ConfigCompositionException() if found := re.search(
            r"In '(.*?)': Could not override '(.*?)(?:@.*)?'", text
        ):
            return f"{found[1]}: its defaults override '{found[2]}', which no option was chosen for"
        case ConfigCompositionException() if found := re.search(r"Multiple values for ([\w/]+)\. .*: (.*)'", text):
            return (
                f"{found[1]}={found[2]} is chosen a second time; a defaults list has 'override /{found[1]}: {found[2]}'"
            )
    return None


def _missing_option(error: MissingConfigException) -> str:
    """The error for an option that a ``defaults`` list names, or a launcher of a sweep."""
    group, name = re.fullmatch(
        r"((?:hydra/)?[^/]*)/?(.*)", (error.missing_cfg_file or "").removesuffix(".yaml")
    ).groups()  # type: ignore[union-attr]
    for launcher, extra in (("submitit", "slurm"), ("ray", "ray")):
        if group == "hydra/launcher" and name.startswith(launcher):
            return f"{group}={name} needs the launcher of {launcher}: pip install 'metarun[{extra}]'"
    found = re.match(r"In '(.*?)'", str(error))
    asked_by = f"{found[1]}: " if found and found[1] not in ("config", "hydra/config") else ""
    names = sorted(error.options or [name for name, _ in options(group)])
    return f"{asked_by}unknown {group} '{name}'{nearest(name, names)}   available: {', '.join(names) or 'none'}"


def _known(resolver: str) -> bool:
    return OmegaConf.has_resolver(resolver)


def _bare(error: BaseException) -> str:
    """A library's message without its location block, on one line."""
    kept = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in kept if not line.startswith(("full_key:", "object_type=", "reference_type=", "See https"))]
    return " ".join(kept)
