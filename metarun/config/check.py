"""Checks of a configuration before anything is built: names, types, ranges, and whether the components fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from metarun.config.environment import resolved
from metarun.config.paper import Paper
from metarun.config.schema import Component, Declaration, Parameter, attributes, capabilities, declaration, is_section
from metarun.errors import UserError, nearest
from metarun.types import Seed, strictly

INJECTED = ("seed", "spec", "texts", "model")
"""Constructor parameters that are filled in while building rather than configured."""

CLOSED = {"runner": "metarun.training.settings.Runner", "tracker": "metarun.tracking.settings.Tracker"}
OPEN = ("task", "model", "algorithm")
RESERVED = ("multirun", "search", "reproduced", "gallery", "bench")
"""Directories that metarun uses beside those of runs."""
OBJECTS = "objects"
"""Key that lists the sections whose components were Python objects. They cannot be rebuilt from a configuration."""
TOP = (*OPEN, *CLOSED, "seed", "name", "paper", "search", "experiment", OBJECTS)


def check(config: Mapping[str, Any], objects: Mapping[str, Any] | None = None) -> None:
    """Check a resolved configuration.

    Args:
        config: The configuration.
        objects: Components that already exist, by section. Their constructor arguments are not checked.

    Raises:
        UserError: Something is wrong; the message describes the first problem.
    """
    objects = objects or {}
    config = resolved(config)
    for key in config:
        if key not in TOP:
            raise UserError(f"unknown key '{key}'{nearest(key, TOP)}   allowed at the top: {', '.join(TOP)}")
    if config.get("experiment") is not None:
        raise UserError(
            "the file of this experiment lacks its first line, # @package _global_, so its keys have no effect"
        )
    check_value("seed", config.get("seed"), Parameter(Seed, required=True))
    check_value("name", config.get("name"), _NAME)
    if isinstance(config.get("name"), str):
        check_name(config["name"])
    if config.get("paper") is not None:
        Paper.of(config["paper"])
    for section, target in CLOSED.items():
        check_arguments(section, config.get(section) or {}, declaration(target))
    check_objects(config, objects)
    for section in OPEN:
        if section not in objects:
            check_section(section, config.get(section))
    check_fit(config, objects)


def check_objects(config: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` if a run's component was a Python object that is not among ``objects``."""
    check_value(OBJECTS, config.get(OBJECTS), Parameter(list[Literal["task", "model", "algorithm"]] | None, False))
    for section in config.get(OBJECTS) or ():
        if section not in objects:
            stored = config.get(section)
            kind = stored.get("_target_") if isinstance(stored, Mapping) else stored
            raise UserError(
                f"the {section} of this run was a Python object ({kind}), which a configuration cannot rebuild   "
                f"in Python: metarun.load(RUN, {section}=...)"
            )


def check_name(name: str) -> None:
    """Raise :class:`UserError` unless ``name`` can be the name of a directory of runs inside runner.directory."""
    reason = ""
    if "/" in name or "\\" in name:
        reason = "cannot contain '/' or '\\'"
    elif not name.isprintable() or name != name.strip():
        reason = "cannot contain control characters, or spaces at its ends"
    elif name in RESERVED:
        reason = f"cannot be one of {', '.join(RESERVED)}, which metarun uses itself"
    elif not name or name.startswith((".", "-")):
        reason = "cannot be empty or begin with '.' or '-'"
    elif len(name.encode("utf-8", "replace")) > 200:
        reason = "cannot be longer than 200 bytes"
    if reason:
        raise UserError(f"name={name!r}: a run's name is a directory's name and {reason}")


def check_section(section: str, values: Any) -> Declaration:
    """Check the arguments of the class that ``values`` names, and return its declaration."""
    if not is_section(values):
        raise UserError(f"{section} has no _target_ (the import path of its class)")
    try:
        declared = declaration(str(values["_target_"]))
    except UserError as error:
        raise UserError(f"{section}.{error}") from None
    check_arguments(section, {key: value for key, value in values.items() if key != "_target_"}, declared)
    return declared


def check_arguments(section: str, values: Mapping[str, Any], declared: Declaration) -> None:
    """Check ``values`` against a constructor: unknown names, missing names, types and ranges."""
    allowed = [name for name in declared.parameters if name not in INJECTED]
    for name, value in values.items():
        if name in declared.parameters and name not in INJECTED:
            annotation = declared.parameters[name].annotation
            if isinstance(annotation, Component) or is_section(value):
                check_component(f"{section}.{name}", value, annotation)
            else:
                check_value(f"{section}.{name}", value, declared.parameters[name])
        elif declared.takes_any and is_section(value):
            check_section(f"{section}.{name}", value)
        elif not declared.takes_any:
            raise UserError(
                f"unknown key '{section}.{name}' for {declared.target}{nearest(name, allowed)}"
                f"   allowed: {', '.join(allowed)}"
            )
    for name in allowed:
        if declared.parameters[name].required and name not in values:
            raise UserError(f"{section}.{name} is missing; {declared.target} needs it")


def check_component(key: str, value: Any, annotation: Any) -> None:
    """Check a section inside a section: its arguments, and that its class is a subclass of the declared one."""
    wanted = declaration(annotation.path) if isinstance(annotation, Component) else None
    if wanted is not None and not is_section(value) and not wanted.is_module:
        return  # a type of the user's own, checked by its constructor
    given = check_section(key, value)
    if wanted is not None and given.ancestors and wanted.target not in given.ancestors:
        raise UserError(f"{key}._target_={given.target}: not a subclass of {wanted.target}")


def check_value(key: str, value: Any, parameter: Parameter) -> None:
    """Raise :class:`UserError` unless ``value`` has the parameter's type and is in its range."""
    if parameter.annotation is Any:
        return
    from pydantic import ValidationError

    try:
        strictly(parameter.annotation).validate_python(value)
    except ValidationError as error:
        reasons: list[str] = []
        for one in error.errors():
            where = "".join(f"[{i}]" for i in one["loc"] if isinstance(i, int))
            reason = (
                where + (" " if where else "") + one["msg"].removeprefix("Input ").replace("less than inf", "finite")
            )
            if reason not in reasons and not (len(error.errors()) > 1 and one["type"] == "none_required"):
                reasons.append(reason)
        null = " (or null)" if type(None) in getattr(parameter.annotation, "__args__", ()) else ""
        shown = "null" if value is None else value
        hint = nearest(value, choices_of(parameter.annotation)) if isinstance(value, str) else ""
        raise UserError(f"{key}={shown}: {', or '.join(reasons)}{null}{hint}") from None


def choices_of(annotation: Any) -> list[str]:
    """Return the strings that a ``Literal`` allows, also inside a union; true and false for ``bool``."""
    if annotation is bool:
        return ["true", "false"]
    inner = getattr(annotation, "__args__", ())
    return [word for part in inner for word in ([part] if isinstance(part, str) else choices_of(part))]


def check_fit(config: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` if model or algorithm do not fit the task; the message lists what fits."""
    task, model, algorithm = (capabilities(objects[s]) if s in objects else attributes(config[s]) for s in OPEN)
    if why := misfit(task, model, algorithm):
        for section, name, value in (("task", "kind", task.get("kind")), ("model", "role", model.get("role"))):
            known = _known(name)
            if isinstance(value, str) and value not in known:
                raise UserError(
                    f"the {section}'s {name} is '{value}'{nearest(value, known)}   known: {', '.join(known)}"
                )
        fits = _fitting(task)
        raise UserError(f"{why}\n  {fits}" if fits else why)


def misfit(task: Mapping[str, Any], model: Mapping[str, Any] | None, algorithm: Mapping[str, Any]) -> str | None:
    """Return why task, model and algorithm cannot be combined, or ``None`` if they can.

    Classes that declare no capabilities, such as a user's own, are accepted.
    """
    kind, modality = task.get("kind"), task.get("modality")
    kinds = algorithm.get("kinds")
    if kind and kinds and kind not in kinds:
        return f"the algorithm learns {_or(kinds)} and does not fit this task, which is {kind}"
    if modality and algorithm.get("modalities") and modality not in algorithm["modalities"]:
        read = _or(algorithm["modalities"])
        return f"the algorithm itself reads {read} and does not fit this task, whose inputs are {modality}"
    if model is None:
        return None
    modalities, role = model.get("modalities"), model.get("role")
    roles = algorithm.get("roles", ("features",))
    if role and role not in roles:
        return f"the algorithm drives a model that is a {_or(roles)}, not a {role}".replace(
            "a features", "an embedding"
        )
    if modality and modalities and modality not in modalities:
        return f"the model reads {_or(modalities)} and does not fit this task, whose inputs are {modality}"
    return None


def _fitting(task: Mapping[str, Any]) -> str:
    """List the shipped options that fit: 'algorithms: maml, protonet; models: conv4, mlp'."""
    from metarun.config.catalogue import catalogue

    algorithms = {e.name: e.attributes for e in catalogue("algorithm") if not misfit(task, None, e.attributes)}
    models = [e.name for e in catalogue("model") if any(not misfit(task, e.attributes, a) for a in algorithms.values())]
    return f"what fits: algorithm={','.join(algorithms)}   model={','.join(models)}"


def _known(name: str) -> list[str]:
    """Return the kinds of tasks, or the roles of models, of the shipped components."""
    from metarun.config.catalogue import catalogue
    from metarun.config.paths import conf_directory

    group = "task" if name == "kind" else "model"
    shipped = [e.attributes.get(name) for e in catalogue(group) if e.path.is_relative_to(conf_directory())]
    return sorted({value for value in shipped if isinstance(value, str)})


def _or(words: Iterable[str]) -> str:
    return " or ".join(words)


_NAME = declaration(CLOSED["tracker"]).parameters["entity"]
