"""One runner for meta-learning: a task family, a model and an algorithm make an experiment.

The names below are the public Python API. They are imported when they are first used, so that ``import metarun`` is
fast and imports no torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the constant of typing, for whose import help would wait
if TYPE_CHECKING:
    from typing import Any

    from metarun.api import (
        AdaptedLearner,
        Algorithm,
        ClassData,
        Environment,
        EpisodeShape,
        Experiment,
        FewShot,
        Head,
        ImageFewShot,
        Labelled,
        LearnedOptimizer,
        Predictions,
        RLAlgorithm,
        Rollout,
        Rule,
        Run,
        RunFailed,
        Spec,
        SupervisedAlgorithm,
        Table,
        Task,
        TaskBatch,
        TrainedAgent,
        TrainedLearner,
        TrialLearner,
        UserError,
        __version__,
        adapt,
        evaluate,
        experiment,
        load,
        load_optimizer,
        make,
        uniforms,
    )

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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'metarun' has no attribute {name!r}")
    import metarun.api

    return getattr(metarun.api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
