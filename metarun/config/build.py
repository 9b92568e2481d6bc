"""Construction of objects from a checked configuration."""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.config.check import check
from metarun.config.environment import resolved
from metarun.config.fit import adjustable, lowered
from metarun.config.overrides import value_at
from metarun.config.schema import is_section
from metarun.config.trust import is_component
from metarun.errors import RunFailed, UserError, foreign, users_frame

if TYPE_CHECKING:
    from metarun.algorithms.base import Algorithm
    from metarun.tasks.base import Task
    from metarun.training.experiment import Experiment

log = logging.getLogger("metarun")


def build(
    config: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    directory: Path | None = None,
    settle: Callable[[Task], None] | None = None,
    objects: Mapping[str, Any] | None = None,
    trains: bool = True,
) -> Experiment:
    """Build the experiment that a configuration describes.

    It is built with the values of environment variables and stores their names.

    Args:
        config: A resolved configuration.
        facts: Further entries of meta.json.
        directory: Directory of an earlier run whose checkpoint will be loaded. The vocabulary of its text model is
            loaded here already, because it determines how texts are encoded.
        settle: Function called with the task before a model sees it. It may give the task the splits of an earlier run,
            or refuse it.
        objects: Components that already exist, by section. A model is copied, so that one module can start several
            experiments; a task or an algorithm is used as it is.
        trains: False if it is only evaluated. The data may then be too small for meta-training.

    Raises:
        UserError: The configuration is wrong or its parts do not fit together.
    """
    objects = objects or {}
    check(config, objects)
    written, config = config, resolved(config)
    import torch

    from metarun.engine.precision import parameters_dtype
    from metarun.models.roles import misfit
    from metarun.tasks.fewshot import DoesNotFit
    from metarun.tracking.settings import Tracker
    from metarun.training.checkpoint import take_vocabulary, vocabularies
    from metarun.training.experiment import Experiment
    from metarun.training.settings import Runner

    runner, tracker = Runner(**config["runner"]), Tracker(**config["tracker"])
    torch.set_default_dtype(parameters_dtype(runner.precision))
    seed, free = config["seed"], adjustable(facts or {})

    def made(config: Mapping[str, Any]) -> tuple[Task, Algorithm]:
        task = component("task", config, objects, seed=seed)
        if not hasattr(task, "seed"):
            task.seed = seed
        if settle is not None:
            settle(task)
        torch.manual_seed(seed)
        model = component("model", config, objects, spec=task.spec, texts=lambda: task.train_texts)
        if vocabularies(model) and (source := _source(directory, runner.init_from)):
            from metarun.training import checkpoint

            take_vocabulary(model, checkpoint.load(source, torch.device("cpu"))["algorithm"]["parameters"])
        algorithm_type = objects.get("algorithm") or locate(config["algorithm"])
        if why := misfit(model, getattr(algorithm_type, "roles", ()), task.spec.modality):
            raise UserError(why)
        task.prepare(model)
        return task, component("algorithm", config, objects, model=model, spec=task.spec)

    kept, fits = config, False
    while not fits:
        shape = None
        try:
            task, algorithm = made(config)
            if trains and (shape := algorithm.train_shape(task.shape)) is not None:
                task.check("train", shape)
            fits = True
        except DoesNotFit as error:
            config = lowered(config, error, free, shape)
    for remark in task.remarks():
        log.info("%s", remark)
    if changed := {key: [was, now] for key in free if (was := value_at(kept, key)) != (now := value_at(config, key))}:
        facts = {**(facts or {}), "lowered": changed}
        for key, (_, now) in changed.items():
            section, name = key.split(".")
            written = {**written, section: {**written[section], name: now}}
    return Experiment(task, algorithm, runner, tracker, seed=seed, name=config["name"], config=written, facts=facts)


def _source(directory: Path | None, init_from: str | None) -> Path | None:
    """Return the checkpoint from which the experiment takes its model, if there is one."""
    from metarun.training.checkpoint import best_or_last

    if directory is not None and best_or_last(directory).is_file():
        return best_or_last(directory)
    return best_or_last(Path(init_from)) if init_from else None


def component(section: str, config: Mapping[str, Any], objects: Mapping[str, Any], **injected: Any) -> Any:
    """Return the component of a section: the given object (a copy if it is a model), else the result of
    :func:`construct`.
    """
    if section == "model" and "algorithm" in objects:
        return objects["algorithm"].model
    if section not in objects:
        return construct(config[section], **injected)
    return copy.deepcopy(objects[section]) if section == "model" else objects[section]


def locate(values: Mapping[str, Any]) -> Any:
    """Import the class named by a section's ``_target_``."""
    target = str(values["_target_"])
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise UserError(f"{target} needs a package that is not installed: {error}") from None
    except ImportError as error:
        raise UserError(f"{target} cannot be imported: {error}") from None
    if not is_component(target):
        foreign.add(target)
    return found


def construct(values: Mapping[str, Any], **injected: Any) -> Any:
    """Build the object that ``_target_`` and its arguments describe. Sections among the arguments are built likewise.

    Args:
        values: The section.
        injected: Arguments for constructor parameters of these names. Functions are called, so that costly values are
            computed only if needed.

    Raises:
        UserError: A constructor of the user's own raised an exception.
    """
    constructor = locate(values)
    arguments = {
        key: construct(value, **injected) if is_section(value) else value
        for key, value in values.items()
        if key != "_target_"
    }
    for parameter in inspect.signature(constructor).parameters:
        if parameter in injected and parameter not in arguments:
            value = injected[parameter]
            arguments[parameter] = value() if inspect.isfunction(value) else value
    try:
        return constructor(**arguments)
    except (UserError, RunFailed):
        raise
    except Exception as error:
        if is_component(values["_target_"]):
            raise  # a bug in metarun
        message = str(error).strip() or "without a message"
        frame = users_frame(error)
        place = f" in {frame.filename}:{frame.lineno}" if frame else ""
        raise UserError(
            f"{values['_target_']} cannot be built: it raised {type(error).__name__}{place}: {message}"
        ) from error
