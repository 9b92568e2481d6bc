"""One-line explanations of errors raised by Hydra, OmegaConf and YAML."""

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
from metarun.errors import listed, nearest, reason, shortened

COMPOSING = (HydraException, OmegaConfBaseException, yaml.YAMLError, RecursionError, OSError, ValueError)
"""Exceptions raised while composing what a user wrote, on the command line or in a file."""


def explain(error: BaseException) -> str:
    """Return one line for an error of :data:`COMPOSING`."""
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
            return f"{where}: '{name}' is not a resolver{nearest(name, resolvers)}   known: {', '.join(resolvers)}"
        case InterpolationKeyError():
            found = re.search(r"'(.*)'", text)
            return f"{where}: interpolates '{found[1] if found else '?'}', which is not a key"
        case InterpolationResolutionError() if found := re.search(r"Environment variable '(.*)' not found", text):
            return (
                f"{where}: the environment variable {found[1]} is not set; "
                f"${{oc.env:{found[1]},VALUE}} names a value for this case"
            )
        case InterpolationResolutionError() if "Recursive" in text:
            return f"{where}: its interpolation refers to itself"
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
            return "the configuration is circular: an option builds on itself, or an interpolation refers to itself"
        case ConfigKeyError() | ConfigAttributeError() if where != "a value":
            return f"unknown key '{where}'"
        case ConfigCompositionException() if found := re.search(
            r"In '(.*?)': Could not override '(.*?)(?:@.*)?'", text
        ):
            return f"{found[1]}: its defaults override '{found[2]}', for which no option is chosen"
        case ConfigCompositionException() if found := re.search(r"Multiple values for ([\w/]+)\. .*: (.*)'", text):
            return (
                f"{found[1]}={found[2]} is chosen a second time; a defaults list has 'override /{found[1]}: {found[2]}'"
            )
    return None


def _missing_option(error: MissingConfigException) -> str:
    """Return the error for an unknown option in a ``defaults`` list, or for an unknown launcher of a sweep."""
    group, name = re.fullmatch(
        r"((?:hydra/)?[^/]*)/?(.*)", (error.missing_cfg_file or "").removesuffix(".yaml")
    ).groups()  # type: ignore[union-attr]
    for launcher, extra in (("submitit", "slurm"), ("ray", "ray")):
        if group == "hydra/launcher" and name.startswith(launcher):
            return f"{group}={name} needs the launcher of {launcher}: pip install 'metarun[{extra}]'"
    found = re.match(r"In '(.*?)'", str(error))
    asked_by = f"{found[1]}: " if found and found[1] not in ("config", "hydra/config") else ""
    names = sorted(error.options or [name for name, _ in options(group)])
    return f"{asked_by}unknown {group} '{name}'{nearest(name, names)}   available: {listed(names) or 'none'}"


def _known(resolver: str) -> bool:
    return OmegaConf.has_resolver(resolver)


def _bare(error: BaseException) -> str:
    """Return a library's message on one line, without its location block."""
    kept = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in kept if not line.startswith(("full_key:", "object_type=", "reference_type=", "See https"))]
    return " ".join(kept)
