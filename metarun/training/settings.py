"""Keys of the runner, a closed section shared by all runs. Their defaults are in conf/runner/default.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metarun.types import Count, DataPath, NonNegative, Positive, Precision, Rate, Split


@dataclass(frozen=True)
class Runner:
    """Execution of a run.

    Attributes:
        iterations: Number of outer steps.
        minutes: Time budget of training in minutes; ``None``: no budget. A run that reaches it is validated, tested and
            finished as usual. Validation counts, the test does not, and a resumed run continues counting.
        patience: Validations without an improvement after which training stops; ``None``: never. The run is then tested
            and finished as usual.
        meta_batch: Tasks of an outer step.
        max_grad_norm: Largest L2 norm of the gradient that an outer optimizer steps by; longer gradients are scaled
            down; ``None``: no limit.
        weight_decay: Decoupled weight decay of the outer optimizers, as in AdamW; ``None``: none.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: Number of processes that share every meta-batch, each on its own device.
        threads: CPU threads; ``None`` chooses by the operations of a step and stores the choice with the run.
        tune_above: Minimum seconds of all steps for which the fastest exact execution plan is searched; ``None``:
            never.
        chunk: Tasks of the meta-batch whose graph is held at once, which trades memory for time; ``None``: chosen.
        precision: float32, float64, or float32 with cheaper matrix products: bfloat16 in the layers, or tf32 for
            everything on the GPU.
        validate_every: Iterations between validations; 0: never.
        val_episodes: Number of validation tasks.
        test_episodes: Number of held-out tasks of the final test; 0: no test.
        eval_batch: Tasks that are adapted at once in validation and test.
        log_every: Iterations that a row of metrics averages over.
        checkpoint_seconds: Seconds between checkpoints, the most that a kill can cost.
        select: Tested meta-parameters: the best on validation, or the last.
        plots: If true, draw plots at the end.
        init_from: Directory of a run whose model initialises this run's model.
        directory: Parent of the run directories.
    """

    iterations: Count
    minutes: Rate | None
    patience: Positive | None
    meta_batch: Positive
    max_grad_norm: Rate | None
    weight_decay: Rate | None
    device: str
    devices: Positive
    threads: Positive | None
    tune_above: NonNegative | None
    chunk: Positive | None
    precision: Precision
    validate_every: Count
    val_episodes: Positive
    test_episodes: Count
    eval_batch: Positive
    log_every: Positive
    checkpoint_seconds: NonNegative
    select: Literal["best", "last"]
    plots: bool
    init_from: DataPath | None
    directory: str

    @property
    def selects_best(self) -> bool:
        """True if the best learner on validation is tested; false if the last one is."""
        return self.select == "best" and self.validate_every > 0 and self.iterations > 0

    def episodes(self, split: Split) -> int:
        """Return the number of tasks that an evaluation on a split takes."""
        return self.test_episodes if split == "test" else self.val_episodes
