"""Learners that estimators hold: those of runs, which are read once, and their predictions for rows of numbers."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.tasks.episode import Labelled

AT_ONCE = 1024
"""Number of rows that are predicted in one forward pass."""


def given(run: Any) -> SupervisedAlgorithm:
    """Return the algorithm of a run directory, or a copy of the algorithm itself."""
    algorithm = trained(str(run)) if isinstance(run, str | Path) else copy.deepcopy(run)
    if not isinstance(algorithm, SupervisedAlgorithm):
        raise ValueError(f"run: must be a run directory or a trained algorithm, not {type(run).__name__}")
    return algorithm


@lru_cache(maxsize=4)
def trained(run: str) -> SupervisedAlgorithm:
    """Return the algorithm of a run directory, on the CPU."""
    from metarun.api import load

    return load(run).learner.algorithm.to("cpu")


def predicted(algorithm: SupervisedAlgorithm, support: Labelled, X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the predictions [M, outputs] for rows [M, F] of the learner adapted to one support set."""
    with torch.no_grad():
        adapted = algorithm.adapt(support)
        return torch.cat([adapted(part[None])[0] for part in torch.from_numpy(X).split(AT_ONCE)]).numpy()
