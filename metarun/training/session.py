"""A run in progress: its state, and the files that its main process writes."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import torch

from metarun.algorithms.base import Algorithm, Metrics
from metarun.errors import Interrupted, Pruned, RunFailed, UserError
from metarun.evaluation.evaluator import Result, test_row
from metarun.tasks.base import Task
from metarun.tracking.console import Display
from metarun.tracking.files import MetricsFile, add_to_log
from metarun.tracking.rundir import RunDirectory, State, now
from metarun.tracking.sinks import Sink
from metarun.training import checkpoint
from metarun.training.device import ran_out
from metarun.training.signals import StopRequest

log = logging.getLogger("metarun")

OnValidation = Callable[[dict[str, Any]], None]
"""Function called with every row of validation; it may raise :class:`~metarun.errors.Pruned`."""


class Progress:
    """The state that a run needs to resume exactly, stored in every checkpoint."""

    def __init__(self) -> None:
        self.iteration = 0
        self.best: float | None = None
        self.best_iteration: int | None = None
        self.validated: int | None = None
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        """CPU time of the main process, all threads; NaN in runs whose checkpoints are from before it was measured."""
        self.metrics_size = 0
        self.temperature: float | None = None
        """Temperature fitted on the last validation."""
        self.ended_by: str | None = None
        """Key of the budget that ended training before ``runner.iterations``, if any."""
        self.clock: list[tuple[int, float]] = []
        """(iteration, elapsed seconds) of each validation. They are not in metrics.jsonl, which holds no times."""
        self.pending: list[Metrics] = []
        """Metrics of the iterations since the last logged row, still on the device."""

    def state(self) -> dict[str, Any]:
        """Return the attributes as stored in a checkpoint."""
        return dict(vars(self))

    def restore(self, state: dict[str, Any]) -> None:
        """Set the attributes from a checkpoint; raises ``ValueError`` if ``state`` has another form."""
        valid = all(name in vars(self) for name in state) and type(state["iteration"]) is int
        if not valid or state["iteration"] < 0 or type(state["metrics_size"]) is not int:
            raise ValueError("unknown names, or values that are not counts")
        vars(self).update({"cpu_seconds": nan, **state})


class Outputs:
    """The outputs of a run's main process during training: metrics, trackers, display and checkpoints.

    Args:
        directory: The run directory.
        progress: The run's progress; this object updates its time.
        metrics: metrics.jsonl, open after the rows of the last checkpoint.
        sink: The run's copies at its trackers.
        display: The progress display.
        on_validation: Function called with every row of validation.
    """

    def __init__(
        self,
        directory: RunDirectory,
        progress: Progress,
        metrics: MetricsFile,
        sink: Sink,
        display: Display,
        on_validation: OnValidation | None = None,
    ) -> None:
        self.directory, self.progress, self.on_validation = directory, progress, on_validation
        self.metrics, self.sink, self.display = metrics, sink, display
        self._clock = self._saved = time.monotonic()
        self._cpu = time.process_time()

    @property
    def best(self) -> Path:
        """Checkpoint of the learner that was best on validation."""
        return self.directory.path / "checkpoints" / "best.pt"

    @property
    def last(self) -> Path:
        """Checkpoint from which the run resumes."""
        return self.directory.path / "checkpoints" / "last.pt"

    def log(self, row: dict[str, Any]) -> None:
        """Write one row, to metrics.jsonl first."""
        self.metrics.write(row)
        self.sink.log(row)

    def seconds(self) -> float:
        """Return the training time of the run in seconds, including the time before it was resumed."""
        return self.progress.seconds + time.monotonic() - self._clock

    @property
    def unsaved(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self._saved

    def save(self, algorithm: Algorithm) -> None:
        """Write last.pt, from which the run resumes."""
        self._saved = time.monotonic()
        self.progress.seconds += self._saved - self._clock
        self._clock = self._saved
        before, self._cpu = self._cpu, time.process_time()
        self.progress.cpu_seconds += self._cpu - before
        self.progress.metrics_size = self.metrics.size
        self.metrics.sync()
        state = {"algorithm": algorithm.checkpoint(), "progress": self.progress.state()}
        checkpoint.save(self.last, state)

    def save_best(self, algorithm: Algorithm) -> None:
        """Write best.pt, which is tested if ``runner.select`` is ``best``."""
        checkpoint.save(
            self.best,
            {
                "algorithm": algorithm.checkpoint(),
                "iteration": self.progress.iteration,
                "temperature": self.progress.temperature,
            },
        )

    def write_results(self, results: Mapping[str, Result], summary: dict[str, Any], tested: Path) -> None:
        """Write the test results: the last row of metrics.jsonl, test.npz and summary.json.

        Args:
            results: The results of the test.
            summary: The run's summary.
            tested: The checkpoint that was tested.
        """
        if results:
            self.log(test_row(self.progress.iteration, results))
            curves = {name + suffix: c.numpy() for suffix, each in results.items() for name, c in each.curves.items()}
            self.directory.write_episodes(curves)
        self.directory.write_summary(summary)
        self.sink.result(summary, tested)

    def draw(self, summary: dict[str, Any], task: Task, algorithm: Algorithm) -> None:
        """Write the plots of a tested run, and send them to its trackers. Failures are logged and change no result."""
        from metarun.tracking.plots import draw_run

        try:
            with algorithm.computing():
                for path in draw_run(self.directory, summary, task, algorithm):
                    self.sink.image(path.stem, path)
        except Exception as error:
            log.warning("plots could not be drawn: %s: %s", type(error).__name__, error)


@dataclass(frozen=True)
class Session:
    """One process's part of a run: its progress, its stop request and, in the main process, its outputs."""

    progress: Progress
    stop: StopRequest
    outputs: Outputs | None = None


@contextlib.contextmanager
def closing(metrics: MetricsFile, sink: Sink) -> Iterator[None]:
    """Close both at the end of the block. The sink's exit code is 0 (also for pruned runs), 1, or 128 plus a signal's
    number.
    """
    exit_code = 1
    try:
        yield
        exit_code = 0
    except Interrupted as error:
        exit_code = 128 + error.signal_number
        raise
    except Pruned:
        exit_code = 0
        raise
    finally:
        metrics.close()
        sink.finish(exit_code)


def restored(algorithm: Algorithm, task: Task, run: Path, device: torch.device) -> Progress:
    """Restore the last checkpoint in the run directory ``run``; return its progress, or new progress if there is
    none.
    """
    progress, last = Progress(), run / "checkpoints" / "last.pt"
    if last.is_file():
        state = checkpoint.load(last, device)
        checkpoint.restore(algorithm, task, last, state)
        try:
            progress.restore(state["progress"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint {last} is damaged: its progress cannot be read ({error})") from None
    return progress


@contextlib.contextmanager
def ending(directory: RunDirectory, new: bool) -> Iterator[None]:
    """Store an early end of the block in status.json: interrupted, pruned or failed.

    A resumed run (not ``new``) that is refused by a :class:`UserError` keeps its status.
    """

    def end(state: State, why: str = "") -> None:
        with contextlib.suppress(RunFailed):  # on a full disk, the free lock shows that the run has ended
            directory.write_status(state, why)
            directory.write_meta(end=now())

    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        end("interrupted", str(error) or "stopped at once")
        if isinstance(error, Interrupted):
            log.info("stopped after a checkpoint; to continue: metarun resume %s", directory.path)
        raise
    except Pruned:
        end("pruned")
        raise
    except BaseException as error:
        if new or not isinstance(error, UserError):
            with contextlib.suppress(OSError, UserError):
                add_to_log(directory.path / "metarun.log", traceback.format_exc())
            end("failed", f"{type(error).__name__}: {error}")
        if ran_out(error):
            details = " ".join(str(error).split())[:160]
            raise RunFailed(
                f"out of memory{details and f' ({details})'}; try a smaller runner.meta_batch, runner.chunk, "
                "runner.eval_batch or model"
            ) from error
        raise
