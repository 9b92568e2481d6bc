"""The runner's keys: a closed section, the same for every run. Their values stand in conf/runner/default.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metarun.types import Count, DataPath, NonNegative, Positive, Precision, Rate


@dataclass(frozen=True)
class Runner:
    """How a run is carried out."""

    iterations: Count
    """Outer steps."""
    minutes: Rate | None
    """Minutes of training after which the run is validated, tested and finished like one that has all its iterations;
    validation counts, the test does not, and a resumed run goes on counting. null: no such budget."""
    meta_batch: Positive
    """Tasks an outer step."""
    device: str
    """auto, cpu, cuda, cuda:N or mps."""
    devices: Positive
    """Processes that share every meta-batch, each on a device of its own."""
    threads: Positive | None
    """CPU threads; null chooses by the size of the work and keeps the choice with the run."""
    tune_above: NonNegative | None
    """Seconds that all steps must take for the fastest exact way to compute one to be looked for; null: never."""
    chunk: Positive | None
    """Tasks of the meta-batch whose graph is held at once: less memory, more time; null: chosen."""
    precision: Precision
    """float32, float64, or float32 with cheaper products: layers in bfloat16, all on the GPU in TF32."""
    validate_every: Count
    """Iterations between validations; 0 for none."""
    val_episodes: Positive
    test_episodes: Count
    """Held-out tasks that the learner is judged on at the end; 0 for none."""
    eval_batch: Positive
    """Tasks adapted at once in validation and test."""
    log_every: Positive
    """Iterations a row of metrics averages over."""
    checkpoint_seconds: NonNegative
    """Seconds between checkpoints; what a kill can cost."""
    select: Literal["best", "last"]
    """Which meta-parameters are tested: best on validation, or the last."""
    plots: bool
    """Draw plots at the end."""
    init_from: DataPath | None
    """Directory of a run whose model, as far as its own selection chose it, this run's model starts from."""
    directory: str
    """Where run directories are made."""
