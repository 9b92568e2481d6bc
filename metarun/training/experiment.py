"""An experiment: a task family, an algorithm with its model, and the settings of a run. Hydra is only one caller."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from metarun import distributed
from metarun.algorithms.base import Algorithm
from metarun.engine import precision
from metarun.engine.step import Engine
from metarun.engine.tuning import Tuned
from metarun.errors import require
from metarun.evaluation.calibration import TemperatureSums
from metarun.evaluation.evaluator import Result, evaluate, warn_of_divergence
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape
from metarun.tracking import sinks
from metarun.tracking.console import Display
from metarun.tracking.files import MetricsFile, logging_to
from metarun.tracking.rundir import RunDirectory, not_finite, now
from metarun.tracking.settings import Tracker
from metarun.training import checkpoint, device, setup
from metarun.training.findings import findings, protocol
from metarun.training.loop import meta_train
from metarun.training.session import OnValidation, Outputs, Progress, Session, closing, ending, restored
from metarun.training.settings import Runner
from metarun.training.signals import StopRequest
from metarun.types import Split

log = logging.getLogger("metarun")


class Experiment:
    """Meta-trains an algorithm on a task family, selects the best checkpoint on validation, and tests it on held-out
    tasks.

    Args:
        task: The task family.
        algorithm: The learner, which holds its model.
        runner: Settings of the run.
        tracker: Settings of the tracking.
        seed: Seed of the run's random numbers.
        name: Name of the directory of its runs.
        config: Configuration stored as config.yaml, from which the run can be rebuilt.
        facts: Further entries of meta.json.

    Attributes:
        device: Device of the run.
        engine: The engine that takes the outer steps.
        on_validation: Function called with every row of validation; it may raise :class:`~metarun.errors.Pruned`.
    """

    def __init__(
        self,
        task: Task,
        algorithm: Algorithm,
        runner: Runner,
        tracker: Tracker,
        *,
        seed: int,
        name: str,
        config: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.asked_iterations = runner.iterations
        runner = runner if algorithm.learns else replace(runner, iterations=0)
        self.task, self.algorithm, self.runner, self.tracker = task, algorithm, runner, tracker
        self.seed, self.name = seed, name
        self.config = dict(config or {"seed": seed, "name": name, "runner": asdict(runner), "tracker": asdict(tracker)})
        self.facts = dict(facts or {})
        self.on_validation: OnValidation | None = None
        setup.require_consistent(task, algorithm, runner)
        sinks.require_packages(tracker)
        self.device = device.device_for(runner.device, task, algorithm)
        algorithm.to(self.device)
        self.engine = Engine(algorithm)
        precision.settle(algorithm, runner.precision, self.device)
        task.to(self.device)  # last, because it loads the data, which takes time

    def run(self, directory: RunDirectory | None = None) -> dict[str, Any]:
        """Train, test and store the results, or resume the run in ``directory``.

        Returns:
            The summary; empty in processes other than the main one.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; raised after a checkpoint.
            UserError: An earlier run cannot be resumed.
            RunFailed: Training failed, for example because the loss is not finite.
        """
        require(
            distributed.world_size() > 1 or self.runner.devices == 1,
            f"runner.devices={self.runner.devices} needs as many processes: start the run by metarun or torchrun",
        )
        with distributed.process_group(), distributed.finish_together():
            if distributed.is_main():
                return self._run_main(directory)
            self._run_other()
            return {}

    def test(self, split: Split = "test", stop: StopRequest | None = None) -> dict[str, Result]:
        """Evaluate the learner as it is.

        Returns:
            A result for each episode shape that the learner accepts, by the suffix in :meth:`Task.variants`.
        """
        return {
            suffix: self._evaluate(split, shape, stop, suffix.strip("_"))
            for suffix, shape in self.task.variants().items()
            if self.algorithm.accepts(shape)
        }

    def _evaluate(self, split: Split, shape: EpisodeShape | None, stop: StopRequest | None, label: str) -> Result:
        fitted = getattr(self.algorithm, "temperature", None)
        sums = TemperatureSums([1.0] if fitted is None else dict.fromkeys([1.0, fitted]))
        result = evaluate(
            self.algorithm,
            self.task,
            split,
            self.runner.episodes(split),
            batch=self.runner.eval_batch,
            shape=shape,
            stopped=lambda: stop.signal if stop else None,
            on_predictions=sums.add,
            label=label,
        )
        return replace(result, calibration=sums.tables())

    def load(self, path: Path) -> int:
        """Load the meta-parameters of a checkpoint and return its iteration."""
        state = checkpoint.load(path, self.device)
        checkpoint.restore(self.algorithm, self.task, path, state)
        checkpoint.require_statistics(self.algorithm, path)
        checkpoint.set_temperature(self.algorithm, state)
        return checkpoint.iteration(state)

    def findings(self, split: Split, results: dict[str, Result]) -> dict[str, Any]:
        """Return the results of a test as plain values, with the protocol: see :mod:`metarun.training.findings`."""
        return findings(self.task, self.algorithm, self.runner, split, results)

    def _run_main(self, directory: RunDirectory | None) -> dict[str, Any]:
        """Run the main process, the only one that validates, tests and writes."""
        if self.runner.init_from and not (directory and (directory.path / "checkpoints" / "last.pt").is_file()):
            checkpoint.start_from(Path(self.runner.init_from), self.algorithm, self.task, self.device)
        directory = directory or RunDirectory.create(self.runner.directory, self.name, self.seed)
        with directory.locked(), logging_to(directory.path / "metarun.log"), StopRequest() as stop:
            new = not directory.meta()
            with ending(directory, new):
                progress, metrics = self._begin(directory, new)
                summary = self._train_and_test(directory, progress, metrics, stop)
                directory.write_meta(end=now())
                directory.write_status("finished", not_finite(summary))
                return summary

    def _begin(self, directory: RunDirectory, new: bool) -> tuple[Progress, MetricsFile]:
        """Prepare the first step: store the run's facts, restore its state, plan its steps."""
        asked = dict(self.facts.pop("changes", {}))
        meta = directory.meta()
        kept = None if "runner.threads" in asked else meta.get("threads")
        if new:  # first, so that a run that is stopped from here on can be resumed
            facts = {**self.facts, "device": str(self.device)}
            setup.store_facts(directory, self.task, self.algorithm, self.config, facts)
        threads = kept or self.runner.threads or setup.threads_for(self.algorithm, self.task, self.runner, self.device)
        torch.set_num_threads(threads)
        device.keep_freed_memory()
        if self.device.type == "cpu":  # a GPU's driver reserves addresses that it never uses
            device.limit_memory()
        device.forget_peak(self.device)
        if "threads" not in directory.meta():
            directory.write_meta(threads=threads)
        progress = restored(self.algorithm, self.task, directory.path, self.device)
        require(
            progress.iteration <= self.runner.iterations,
            f"the run has {progress.iteration} iterations; runner.iterations can only be raised",
        )
        metrics = MetricsFile(directory.metrics, progress.metrics_size)
        if not new:
            setup.store_resumption(directory, progress.iteration)
            if directory.change(asked, after=progress.iteration):
                directory.write_meta(threads=threads)
                if setup.PLANNED & set(asked):
                    directory.write_meta(step=None)
        directory.write_status("running")
        setup.plan_steps(self.engine, self.task, self.runner, directory, progress.iteration)
        step = directory.meta().get("step")
        distributed.broadcast_object({"threads": threads, "step": step, "directory": str(directory.path)})
        distributed.broadcast_parameters(self.algorithm)
        setup.announce(directory, self.algorithm, self.facts, self.asked_iterations > self.runner.iterations)
        if not progress.iteration:
            setup.measure_precision(self.engine, self.task, self.runner, self.seed, directory)
        return progress, metrics

    def _run_other(self) -> None:
        """Run another process. It starts from the main process's state and writes nothing."""
        start = distributed.broadcast_object()
        torch.set_num_threads(start["threads"])
        device.keep_freed_memory()
        progress = restored(self.algorithm, self.task, Path(start["directory"]), self.device)
        if start["step"] is not None:
            self.engine.plan = Tuned.of(start["step"]).plan
        distributed.broadcast_parameters(self.algorithm)
        with StopRequest() as stop:
            meta_train(self.task, self.engine, self.runner, self.seed, Session(progress, stop))

    def _train_and_test(
        self, directory: RunDirectory, progress: Progress, metrics: MetricsFile, stop: StopRequest
    ) -> dict[str, Any]:
        if progress.iteration:
            log.info("continuing after iteration %d", progress.iteration)
        label, choices = f"{self.name}-s{self.seed}", self.facts.get("choices", {})
        facts = protocol(self.task, self.algorithm, self.runner)
        run = sinks.TrackedRun(directory.path.resolve(), label, self.config, choices, facts, self.facts.get("group"))
        sink = sinks.start(run, self.tracker)
        with closing(metrics, sink):
            task, iterations = self.task, self.runner.iterations
            with Display(iterations, progress.iteration, task.metric, task.higher_is_better) as display:
                outputs = Outputs(directory, progress, metrics, sink, display, self.on_validation)
                if not progress.iteration:
                    setup.take_statistics(self.algorithm, self.task, self.runner)
                meta_train(self.task, self.engine, self.runner, self.seed, Session(progress, stop, outputs))
                tested = outputs.best if self.runner.selects_best and outputs.best.is_file() else outputs.last
                if tested == outputs.best:
                    self.load(tested)
                else:
                    checkpoint.set_temperature(self.algorithm, {"progress": progress.state()})
                results = {}
                if self.runner.test_episodes:
                    held_out = "held-out " if facts.get("held_out_tasks", True) else ""
                    display.note(f"testing on {self.runner.test_episodes} {held_out}tasks")
                    results = self.test("test", stop)
            warn_of_divergence(results)
            summary = self._summary(progress, results)
            outputs.write_results(results, summary, tested)
            if self.runner.plots and results:
                outputs.draw(summary, self.task, self.algorithm)
            return summary

    def _summary(self, progress: Progress, results: dict[str, Result]) -> dict[str, Any]:
        return {
            "iterations": progress.iteration,
            "seed": self.seed,
            "wall_s": round(progress.seconds, 1),
            "cpu_s": round(progress.cpu_seconds, 1),
            "best_iteration": progress.best_iteration if self.runner.selects_best else None,
            "ended_by": progress.ended_by,
            **self.findings("test", results),
            "parameters": sum(p.numel() for p in self.algorithm.parameters()),
            "peak_mb": round(device.peak(self.device) / 1e6, 1),
            "validated": [{"iteration": iteration, "seconds": seconds} for iteration, seconds in progress.clock],
            "paper": self.config.get("paper"),
        }
