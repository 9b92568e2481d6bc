"""The public Python API, exported by ``import metarun``.

Named components take their values from the same YAML files as on the command line, so every default is declared once,
is what ``metarun show NAME`` prints, and is what a run stores. A component that is a Python object has the values that
its own constructor gave it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.optimizer import LearnedOptimizer
from metarun.adapted.optimizer_file import load_optimizer
from metarun.adapted.predictions import Predictions
from metarun.algorithms.base import Algorithm
from metarun.algorithms.gradient.pieces import Rule
from metarun.algorithms.metric.head import Head
from metarun.algorithms.rl.base import RLAlgorithm, TrialLearner
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import construct
from metarun.config.catalogue import catalogue
from metarun.config.check import INJECTED, OBJECTS, OPEN, check, check_section
from metarun.config.compose import compose, named
from metarun.config.paths import config_dir_in_use
from metarun.config.trust import Trust
from metarun.errors import RunFailed, UserError, nearest, require
from metarun.models.roles import misfit
from metarun.runs.agent import TrainedAgent
from metarun.runs.evaluate import evaluate_run
from metarun.runs.experiment import Experiment, default_words, sections_of
from metarun.runs.learner import TrainedLearner
from metarun.runs.run import Run, Table, torch_settings
from metarun.runs.words import value_words, words_of
from metarun.tasks.base import Task
from metarun.tasks.class_data import ClassData
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.fewshot import FewShot
from metarun.tasks.rl.base import Environment
from metarun.tasks.rl.rollout import Rollout
from metarun.tasks.rng import uniforms
from metarun.tasks.vision.base import ImageFewShot
from metarun.tracking.console import shown
from metarun.tracking.rundir import RunDirectory
from metarun.types import Split

__all__ = [
    "AdaptedLearner",
    "Algorithm",
    "ClassData",
    "Environment",
    "EpisodeShape",
    "Experiment",
    "FewShot",
    "Head",
    "ImageFewShot",
    "Labelled",
    "LearnedOptimizer",
    "Predictions",
    "RLAlgorithm",
    "Rollout",
    "Rule",
    "Run",
    "RunFailed",
    "Spec",
    "SupervisedAlgorithm",
    "Table",
    "Task",
    "TaskBatch",
    "TrainedAgent",
    "TrainedLearner",
    "TrialLearner",
    "UserError",
    "__version__",
    "adapt",
    "evaluate",
    "experiment",
    "load",
    "load_optimizer",
    "make",
    "uniforms",
]

try:
    __version__ = version("metarun")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


def experiment(
    *overrides: str | Mapping[str, Any], config_dir: str | Path | None = None, display: bool = False, **settings: Any
) -> Experiment:
    """Compose an experiment as the command line does: ``metarun.experiment("task=vision/glyphs", algorithm="maml")``.

    Args:
        overrides: Words as on the command line (``"runner.iterations=100"``), or mappings from keys to values.
        config_dir: A folder of your own configuration files, as ``--config-dir``.
        display: Whether progress and messages are shown on stderr.
        settings: Keys with their values. A value that is a mapping sets the keys below it:
            ``runner={"iterations": 100}``. ``task``, ``model`` and ``algorithm`` take the name of an option, a class
            (which is built like the ``_target_`` of an option's file, with its own defaults), or an object: a
            :class:`Task`, a torch module, an :class:`Algorithm`. A task that is a class or an object is run with the
            default model and algorithm of the first task family in the catalogue that has its kind and modality.

    Returns:
        The checked experiment, which has not been built yet.

    Raises:
        UserError: A key or an option does not exist, a value is of the wrong type, or the parts do not fit together.
    """
    given: dict[str, Any] = {}
    words = [word for each in (*overrides, settings) for word in words_of(each, given)]
    sections, objects = sections_of(given)
    with config_dir_in_use(config_dir):
        words += default_words(given.get("task"), words, sections)
        composed = compose(words, sections)
        config = named(composed)
        if "task" in objects and not any(each.startswith("seed=") for each in words):
            config["seed"] = getattr(objects["task"], "seed", config["seed"])
        if objects:
            config[OBJECTS] = [section for section in OPEN if section in objects]
        check(config, objects)
        facts = composed.facts
    own_seed = getattr(objects.get("task"), "seed", config["seed"])
    require(own_seed == config["seed"], f"seed={config['seed']}, but the task was made with seed {own_seed}")
    return Experiment(config, facts, objects, display)


def load(path: str | Path, trust: bool | str | Collection[str] = False, **objects: Any) -> Run:
    """Open the directory of a run: ``metarun.load("outputs/glyphs-maml/2026-01-31_12-00-00-000000_s0")``.

    A run directory is data: no code that it names is called but metarun's own.

    Args:
        path: The run directory.
        trust: Which other code the stored configuration may call: ``True`` for all that it names, or import paths of
            your own modules or classes.
        objects: The ``task``, ``model`` or ``algorithm`` of a run that was started with a Python object in its place.

    Returns:
        The run. Its files are read when they are asked for.

    Raises:
        UserError: There is no run directory at ``path``, or it holds links.
    """
    for section in objects:
        require(section in OPEN, f"load has no argument '{section}'{nearest(section, OPEN)}")
    return Run(RunDirectory.open(path).path, Trust.of(trust), objects)


def evaluate(
    run: Run | str | Path,
    *overrides: str | Mapping[str, Any],
    split: Split = "test",
    new_classes: bool = False,
    allow_seen_classes: bool = False,
    trust: bool | str | Collection[str] = False,
    display: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Evaluate the learner of a run again, as ``metarun eval`` does; the result is also stored in its directory.

    Args:
        run: A run, or its directory.
        overrides: Changes of ``task.``, ``algorithm.`` or ``runner.`` keys, as in :func:`experiment`.
        split: The split whose tasks are evaluated.
        new_classes: Evaluate on the classes of the data that the run does not know.
        allow_seen_classes: Evaluate also on classes that the run meta-trained on.
        trust: As in :func:`load`, where ``run`` is a directory.
        display: Whether messages are shown on stderr.
        settings: Keys with their values, as in :func:`experiment`.

    Returns:
        ``{"test": {metric: {"mean", "ci95", "n"}}, "protocol": ..., "adaptation": [...], ...}``; ``ci95`` is the half
        width of the 95 % confidence interval over ``n`` tasks.

    Raises:
        UserError: The run cannot be rebuilt, or the data are not those it was made of.
    """
    opened = _opened(run, trust)
    words = value_words("an evaluation", *overrides, settings)
    with shown(display), torch_settings():
        return evaluate_run(
            [str(opened.path), *words],
            opened.trust,
            split=split,
            new_classes=new_classes,
            allow_seen_classes=allow_seen_classes,
            objects=opened.objects,
        )


def adapt(
    run: Run | str | Path,
    support: Any,
    targets: Sequence[Any] | None = None,
    *,
    steps: int | None = None,
    seed: int | None = None,
    trust: bool | str | Collection[str] = False,
) -> AdaptedLearner:
    """Adapt the learner of a run to your own task: ``metarun.adapt(run, "flowers/").predict("unknown.jpg").labels``.

    Args:
        run: A run, or its directory.
        support: The examples of the task, as in :meth:`TrainedLearner.adapt`.
        targets: The targets of the examples, as in :meth:`TrainedLearner.adapt`.
        steps: Adaptation steps; ``None`` takes as many as the run does on its test tasks.
        seed: The seed of the adaptation's random numbers; ``None`` takes the run's.
        trust: As in :func:`load`, where ``run`` is a directory.

    Returns:
        The adapted learner, whose ``predict(examples)`` gives labels, probabilities and values.

    Raises:
        UserError: The run's learner is an RL learner (``run.agent``), or the support set does not fit the learner.
        TypeError: An example is no image, text or row of numbers.
    """
    return _opened(run, trust).learner.adapt(support, targets, steps=steps, seed=seed)


def make(name: str, /, *, config_dir: str | Path | None = None, **arguments: Any) -> Any:
    """Build one task family, model or algorithm of the catalogue: ``metarun.make("regression/sinusoid", shot=10)``.

    Args:
        name: A name that ``metarun list`` prints, ``conv4``; ``group/name`` where two groups share it.
        config_dir: A folder of your own configuration files, as ``--config-dir``.
        arguments: Constructor arguments in place of those of the option's file. A mapping changes the keys of an inner
            section. A model needs ``spec`` (``task.spec``), an algorithm ``spec`` and ``model``; a task takes ``seed``.

    Returns:
        The component.

    Raises:
        UserError: Nothing has this name, an argument is unknown, missing, or of the wrong type, or the model lacks
            what the algorithm needs.
    """
    injected = {key: arguments.pop(key) for key in INJECTED if key in arguments}
    with config_dir_in_use(config_dir):
        found = [(g, e.name) for g in OPEN for e in catalogue(g) if name in (e.name, f"{g}/{e.name}")]
        if not found:
            names = [e.name for g in OPEN for e in catalogue(g)]
            raise UserError(f"nothing is called '{name}'{nearest(name, names)}   `metarun list` prints all names")
        require(len(found) == 1, f"'{name}' is in several groups: {', '.join('/'.join(each) for each in found)}")
        (group, option) = found[0]
        others = {other: {"_target_": "none"} for other in OPEN if other != group}  # nothing tuned for a pair
        changes = words_of({group: arguments}, {})
        section = compose([f"{group}={option}", *changes], others).config[group]
    declared = check_section(group, section)
    if group == "task":
        injected.setdefault("seed", 0)
    for parameter in INJECTED:
        if parameter in declared.parameters and declared.parameters[parameter].required:
            require(parameter in injected, f"{name} needs {parameter}=...")
    if group == "algorithm" and {"model", "spec"} <= injected.keys():
        why = misfit(injected["model"], declared.attributes.get("roles", ()), injected["spec"].modality)
        require(why is None, str(why))
    return construct(section, **injected)


def _opened(run: Run | str | Path, trust: bool | str | Collection[str]) -> Run:
    return run if isinstance(run, Run) else load(run, trust)
