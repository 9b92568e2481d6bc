"""The number format of a run (``runner.precision``), and the measured error of a reduced one.

Parameters, inner updates, losses and the optimizer are float32 (or float64) whatever the precision. ``bfloat16``: the
layers of the network multiply in it (:mod:`metarun.kernels.bfloat16`). ``tf32``: all float32 products on the GPU do.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine.plan import Plan
from metarun.engine.step import Engine
from metarun.errors import RunFailed, require
from metarun.tasks.episode import TaskBatch
from metarun.tasks.rng import forked_rng
from metarun.types import Precision

log = logging.getLogger("metarun")

FULL = ("float32", "float64")


def parameters_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of parameters and data."""
    return torch.float64 if precision == "float64" else torch.float32


def settle(algorithm: Algorithm, precision: Precision, device: torch.device) -> None:
    """Have ``algorithm`` compute in ``precision`` from now on; raises :class:`UserError` where that cannot be."""
    _allow_tf32(precision == "tf32" and has_tf32(device))
    if precision in FULL:
        return
    require(
        isinstance(algorithm, SupervisedAlgorithm),
        f"runner.precision={precision} is for learners from support sets; this one learns control, and takes "
        f"{' or '.join(FULL)}",
    )
    if precision == "tf32" and not has_tf32(device):
        log.warning("runner.precision=tf32 has no effect on %s, which has no TF32: all is float32", device)
        return
    algorithm.precision = precision


def has_tf32(device: torch.device) -> bool:
    """NVIDIA's GPUs from Ampere on have it."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def gradient_error(algorithm: SupervisedAlgorithm, batch: TaskBatch, seed: int, plan: Plan | None = None) -> float:
    """The relative error |g - g32| / |g32| of the outer gradient g in the algorithm's precision.

    g32 is the gradient in float32, with the same parameters and random numbers. ``algorithm`` is left as it is.

    Args:
        algorithm: The learner, in its reduced precision.
        batch: T tasks.
        seed: The seed of the step's random numbers.
        plan: How gradients are computed; g32 never from a recording.

    Returns:
        The error; NaN if neither gradient is finite.

    Raises:
        RunFailed: g is not finite, and g32 is.
    """
    plan = plan or Plan()
    reduced = _gradient(algorithm, batch, seed, plan)
    exact = copy.deepcopy(algorithm)
    exact.precision = "float32"
    with _without_tf32():
        truth = _gradient(exact, batch, seed, replace(plan, capture="none"))
    if bool(torch.isfinite(truth).all()) and not bool(torch.isfinite(reduced).all()):
        raise RunFailed(
            f"runner.precision={algorithm.precision}: the gradient of the first meta-batch is NaN or infinite, and in "
            "float32 it is not; use runner.precision=float32"
        )
    off, size = float((reduced - truth).norm()), float(truth.norm())
    return off / size if off else 0.0


def measured(algorithm: SupervisedAlgorithm, batch: TaskBatch, seed: int, plan: Plan) -> dict[str, Any]:
    """Log :func:`gradient_error`; returns it as it is kept with the run."""
    error = gradient_error(algorithm, batch, seed, plan)
    if not isfinite(error):
        log.warning("the gradient of the first meta-batch is NaN or infinite in float32 too: no error in %s measured",
                    algorithm.precision)  # fmt: skip
        return {"precision": algorithm.precision, "relative_error": None}
    shown = f"{error:.1e}".replace("e-0", "e-")
    log.info("gradient in %s: relative error %s of float32", algorithm.precision, shown)
    return {"precision": algorithm.precision, "relative_error": error}


def _gradient(algorithm: SupervisedAlgorithm, batch: TaskBatch, seed: int, plan: Plan) -> Tensor:
    """The outer gradient in one vector, in float64; of a copy, since a step may move running statistics."""
    learner = copy.deepcopy(algorithm)
    with forked_rng(batch.query.x.device, seed):
        learner.begin_iteration(0)
        Engine(learner, plan).gradient(batch)
    return torch.cat([p.grad.flatten().double().cpu() for p in learner.parameters() if p.grad is not None])


def _allow_tf32(allowed: bool) -> None:
    # torch's own defaults let convolutions use it and matrix products not, by which float32 would mean neither.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(False)
    try:
        yield
    finally:
        _allow_tf32(before)
