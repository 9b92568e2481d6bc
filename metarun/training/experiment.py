"""An experiment: a task family, an algorithm (which holds its model) and how to run them. Hydra is one caller."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from metarun import distributed
from metarun.algorithms.base import Algorithm
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.engine import precision
from metarun.engine.step import Engine
from metarun.engine.tuning import Tuned, tuned
from metarun.errors import Interrupted, Pruned, RunFailed, UserError, require
from metarun.evaluation.evaluator import Result, evaluate, final, robust
from metarun.tasks.base import Task
from metarun.tasks.inputs import Inputs
from metarun.tasks.rng import derived_seed
from metarun.tracking.console import Display
from metarun.tracking.files import LogFile, MetricsFile, add_to_log
from metarun.tracking.provenance import provenance
from metarun.tracking.rundir import RunDirectory, State, not_finite, now
from metarun.tracking.settings import Tracker
from metarun.tracking.wandb import WandbSink
from metarun.training import checkpoint, device
from metarun.training.checkpoint import encoding_state, misfit, take_model
from metarun.training.device import choose_device, choose_threads, keep_freed_memory
from metarun.training.loop import Progress, meta_batch_indices, meta_train
from metarun.training.settings import Runner
from metarun.training.signals import StopRequest
from metarun.types import Split

log = logging.getLogger("metarun")

PLANNED = {"runner.meta_batch", "runner.chunk", "runner.precision", "runner.device", "runner.tune_above"}
"""Keys on which it depends how a step is computed: one that is changed has that looked for again."""


class Experiment:
    """Meta-trains ``algorithm`` on ``task``, keeps the best on validation, and tests it on held-out tasks.

    ``name`` names the runs' directory. ``config`` is what is stored as config.yaml (enough to rebuild the run);
    ``facts`` are further entries for meta.json; ``paper`` is the published result to compare with, if any.
    """

    results: dict[str, Result]
    """Of the test that ends a run, every task's."""
    on_validation: Callable[[dict[str, Any]], None] | None = None
    """Told of every row of validation; it may raise :class:`~metarun.errors.Pruned`."""

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
        require(
            task.held_out_val or not self._selects(),
            "runner.select=best would choose on classes that this task meta-trains on; use runner.select=last",
        )
        self._divide()
        self.device = choose_device(runner.device)
        algorithm.to(self.device)
        self.engine = Engine(algorithm)
        precision.settle(algorithm, runner.precision, self.device)
        shape = algorithm.train_shape(task.shape)
        if shape is not None:
            task.check("train", shape)
        task.to(self.device)  # loads the data, which takes time: last

    def run(self, directory: RunDirectory | None = None) -> dict[str, Any]:
        """The whole life of a run; returns the summary. With the directory of an earlier one, goes on from there.

        Raises :class:`~metarun.errors.Interrupted` on SIGINT and SIGTERM, after a checkpoint. Of several processes the
        lead does all that; the others take their part of the outer loop and return an empty summary.
        """
        require(
            distributed.world_size() > 1 or self.runner.devices == 1,
            f"runner.devices={self.runner.devices} needs as many processes: start the run by metarun or torchrun",
        )
        with distributed.process_group(), distributed.finish_together():
            if distributed.is_main():
                return self._lead(directory)
            self._follow()
            return {}

    def _lead(self, directory: RunDirectory | None) -> dict[str, Any]:
        if self.runner.init_from and not (directory and (directory.path / "checkpoints" / "last.pt").is_file()):
            with self._encoding_anew():
                source = take_model(self.algorithm.model, Path(self.runner.init_from), self.device)
            log.info("the model starts from %s", source)
        directory = directory or RunDirectory.create(self.runner.directory, self.name, self.seed)
        with directory.locked(), self._logging(directory.path), StopRequest() as stop:
            new = not directory.meta()
            try:
                progress = self._begin(directory, new)
                summary = self._run(directory, progress, stop)
                directory.write_meta(end=now())
                directory.write_status("finished", not_finite(summary))
                return summary
            except (Interrupted, KeyboardInterrupt) as error:
                self._end(directory, "interrupted", str(error) or "stopped at once")
                if isinstance(error, Interrupted):
                    log.info("stopped after a checkpoint; go on with: metarun resume %s", directory.path)
                raise
            except Pruned:
                self._end(directory, "pruned")
                raise
            except BaseException as error:
                if new or not isinstance(error, UserError):  # an earlier run that is refused stays as it is
                    with contextlib.suppress(OSError, UserError):
                        add_to_log(directory.path / "metarun.log", traceback.format_exc())
                    self._end(directory, "failed", f"{type(error).__name__}: {error}")
                if device.ran_out(error):
                    said = " ".join(str(error).split())[:160]
                    raise RunFailed(
                        f"out of memory{said and f' ({said})'}; a smaller runner.meta_batch, runner.chunk, "
                        "runner.eval_batch or model needs less"
                    ) from error
                raise

    def _begin(self, directory: RunDirectory, new: bool) -> Progress:
        """All that comes before the first step: what is stored of the run, its checkpoint, how steps are computed."""
        asked = dict(self.facts.pop("changes", {}))
        meta = directory.meta()
        kept = None if "runner.threads" in asked else meta.get("threads")
        threads = kept or self.runner.threads or self._threads()
        torch.set_num_threads(threads)
        keep_freed_memory()
        device.forget_peak(self.device)
        if new:
            directory.write_status("running")
            directory.write_config(self.config)
            if isinstance(self.algorithm, SupervisedAlgorithm):
                directory.write_inputs(Inputs.of(self.task).as_dict())
            directory.write_data(self.task.record().as_dict())
            directory.write_meta(
                **provenance(),
                **self.facts,
                device=str(self.device),
                threads=threads,
                start=now(),
                end=None,
            )
        progress = self._restored(directory)
        if not new and directory.change(asked, after=progress.iteration):
            directory.write_meta(threads=threads)
            if PLANNED & set(asked):
                directory.write_meta(step=None)
        directory.write_status("running")
        self._plan(directory, progress)
        distributed.broadcast_object(
            {"threads": threads, "step": directory.meta().get("step"), "directory": str(directory.path)}
        )
        distributed.broadcast_parameters(self.algorithm)
        log.info("run directory %s", directory.path)
        if values := self.facts.get("tuned"):
            task, told = self.facts["choices"]["task"], ", ".join(f"{key}={value}" for key, value in values.items())
            log.info("tuned for %s: %s", task, told)
        if self.asked_iterations and not self.runner.iterations:
            log.info(
                "%s has no meta-parameters, so there is nothing to meta-train: evaluated at once, as by "
                "runner.iterations=0",
                self.facts.get("choices", {}).get("algorithm", type(self.algorithm).__name__),
            )
        self._measure_precision(directory, progress)
        return progress

    def _end(self, directory: RunDirectory, state: State, why: str = "") -> None:
        """Store how a run ended early, as far as the disk takes it: its lock tells that it runs no more."""
        with contextlib.suppress(RunFailed):
            directory.write_status(state, why)
            directory.write_meta(end=now())

    def _follow(self) -> None:
        """The part of a process that does not lead: it begins where the lead does, and leaves nothing behind."""
        told = distributed.broadcast_object()
        torch.set_num_threads(told["threads"])
        keep_freed_memory()
        progress, last = Progress(), Path(told["directory"]) / "checkpoints" / "last.pt"
        if last.is_file():
            self._restore_from(last, progress)
        if told["step"] is not None:
            self.engine.plan = Tuned.of(told["step"]).plan
        distributed.broadcast_parameters(self.algorithm)
        with StopRequest() as stop:
            meta_train(self, progress, stop)

    def test(self, split: Split = "test", stop: StopRequest | None = None) -> dict[str, Result]:
        """Judge the learner as it is: ``{suffix: result}`` for the task's shape and each further one it accepts."""
        return {
            suffix: evaluate(
                self.algorithm,
                self.task,
                split,
                self._episodes(split),
                batch=self.runner.eval_batch,
                shape=shape,
                stopped=lambda: stop.signal if stop else None,
            )
            for suffix, shape in self.task.variants().items()
            if self.algorithm.accepts(shape)
        }

    def references(self, split: Split) -> dict[str, float]:
        """What is known to be possible on the tasks of :meth:`test`."""
        return self.task.references(split, range(self._episodes(split)))

    def load(self, path: Path) -> int:
        """Take the meta-parameters of a checkpoint; returns its iteration."""
        state = checkpoint.load(path, self.device)
        self._restore(path, state)
        return checkpoint.iteration(state)

    def protocol(self) -> dict[str, Any]:
        """How the result was measured: what a reader needs to compare it."""
        return {
            **self.task.protocol(),
            **self.algorithm.protocol(),
            **({} if self.algorithm.precision == "float32" else {"precision": self.algorithm.precision}),
            "test_episodes": self.runner.test_episodes,
            "selection": f"{self.runner.select} on {self.runner.val_episodes} validation episodes"
            if self._selects()
            else "last iteration",
        }

    def log(self, row: Mapping[str, Any]) -> None:
        """One row, to metrics.jsonl first."""
        self.metrics.write(row)
        self.sink.log(row)

    def _plan(self, directory: RunDirectory, progress: Progress) -> None:
        """Settle how steps are computed: as the run did before it was stopped, or as is fastest here."""
        kept = directory.meta().get("step")
        if kept is not None:
            try:
                step: Tuned | None = Tuned.of(kept)
            except (TypeError, KeyError):
                raise UserError(f"{directory.path / 'meta.json'} is damaged: 'step' is not what a run writes") from None
        elif not self.runner.iterations or (progress.iteration and "step" not in directory.meta()):
            return
        else:
            shape = self.algorithm.train_shape(self.task.shape)
            indices = meta_batch_indices(0, self.runner.meta_batch, distributed.rank(), distributed.world_size())
            batch = self.task.batch("train", indices, shape)
            step = tuned(self.algorithm, batch, self.runner.iterations, self.runner.chunk, self.runner.tune_above)
            if step is not None:
                directory.write_meta(step=step.as_dict())
        if step is not None:
            self.engine.plan = step.plan
            log.info("step: %s", step)

    def _measure_precision(self, directory: RunDirectory, progress: Progress) -> None:
        """Once, before the first step: what a reduced precision does to the gradient of the first meta-batch.

        Of several processes the lead measures, on its own part.
        """
        algorithm = self.algorithm
        if algorithm.precision == "float32" or progress.iteration or not self.runner.iterations:
            return
        if "gradient_error" in directory.meta() or not isinstance(algorithm, SupervisedAlgorithm):
            return
        if algorithm.optimizer is None:
            return
        shape = algorithm.train_shape(self.task.shape)
        indices = meta_batch_indices(0, self.runner.meta_batch, distributed.rank(), distributed.world_size())
        batch = self.task.batch("train", indices, shape)
        seed = derived_seed(self.seed, "train", 0, stream=10)
        directory.write_meta(gradient_error=precision.measured(algorithm, batch, seed, self.engine.plan))

    def _restored(self, directory: RunDirectory) -> Progress:
        """Where the directory's last checkpoint left off, taken over; a fresh start without one."""
        self.checkpoints = directory.path / "checkpoints"
        progress = Progress()
        last = self.checkpoints / "last.pt"
        if last.is_file():
            self._restore_from(last, progress)
        require(
            progress.iteration <= self.runner.iterations,
            f"the run has {progress.iteration} iterations; runner.iterations can only be raised",
        )
        self.metrics = MetricsFile(directory.metrics, progress.metrics_size)
        return progress

    def _run(self, directory: RunDirectory, progress: Progress, stop: StopRequest) -> dict[str, Any]:
        if progress.iteration:
            log.info("going on after iteration %d", progress.iteration)
        self.sink = WandbSink.start(
            directory.path.resolve(),
            mode=self.tracker.wandb,
            project=self.tracker.project,
            entity=self.tracker.entity,
            group=self.tracker.group or self.facts.get("group"),
            tags=[*self.tracker.tags, *self.facts.get("choices", {}).values()],
            name=f"{self.name}-s{self.seed}",
            job_type="train",
            config=self.config,
            init_timeout=self.tracker.init_timeout,
            finish_timeout=self.tracker.finish_timeout,
        )
        exit_code = 1
        try:
            metric, higher = self.task.metric, self.task.higher_is_better
            with Display(self.runner.iterations, progress.iteration, metric, higher) as self.display:
                meta_train(self, progress, stop)
                if self._selects() and (self.checkpoints / "best.pt").is_file():
                    self.load(self.checkpoints / "best.pt")
                results = {}
                if self.runner.test_episodes:
                    held_out = "held-out " if self.protocol().get("held_out_tasks", True) else ""
                    self.display.note(f"testing on {self.runner.test_episodes} {held_out}tasks")
                    results = self.test("test", stop)
                self.results = results
            warn_of_divergence(results)
            summary = self._summary(progress, results)
            if results:
                self.log(test_row(progress.iteration, results))
                directory.write_episodes(
                    {name + suffix: c.numpy() for suffix, each in results.items() for name, c in each.curves.items()}
                )
            directory.write_summary(summary)
            self.sink.summary(summary)
            if self.runner.plots and results:
                self._draw(directory, summary)
            exit_code = 0
            return summary
        except Interrupted as error:
            exit_code = 128 + error.signal_number
            raise
        except Pruned:
            exit_code = 0
            raise
        finally:
            self.metrics.close()
            self.sink.finish(exit_code)

    def _summary(self, progress: Progress, results: dict[str, Result]) -> dict[str, Any]:
        return {
            "iterations": progress.iteration,
            "seed": self.seed,
            "wall_s": round(progress.seconds, 1),
            "best_iteration": progress.best_iteration if self._selects() else None,
            "ended_by": progress.ended_by,
            **self.findings("test", results),
            "parameters": sum(p.numel() for p in self.algorithm.parameters()),
            "peak_mb": round(device.peak(self.device) / 1e6, 1),
            "validated": [{"iteration": iteration, "seconds": seconds} for iteration, seconds in progress.clock],
            "paper": self.config.get("paper"),
        }

    def findings(self, split: Split, results: dict[str, Result]) -> dict[str, Any]:
        """What a test found, in plain values: estimates, references, the protocol and the adaptation curve."""
        if not results:
            return {"test": {}, "references": {}, "protocol": self.protocol(), "adaptation": []}
        return {
            "test": {name: estimate.as_dict() for name, estimate in final(results).items()},
            "references": self.references(split),
            **robust(self.task, results),
            "metric": self.task.metric,
            "higher_is_better": self.task.higher_is_better,
            "protocol": self.protocol(),
            "protocol_of_learner": list(self.algorithm.protocol()),
            "adaptation": results[""].adaptation(self.task.metric),
        }

    def _draw(self, directory: RunDirectory, summary: dict[str, Any]) -> None:
        from metarun.tracking.plots import draw_run

        try:
            with self.algorithm.computing():
                for path in draw_run(directory, summary, self.task, self.algorithm):
                    self.sink.image(path.stem, path)
        except Exception as error:  # a picture must not cost a result
            log.warning("plots could not be drawn: %s: %s", type(error).__name__, error)

    def _episodes(self, split: Split) -> int:
        return self.runner.test_episodes if split == "test" else self.runner.val_episodes

    def _selects(self) -> bool:
        return self.runner.select == "best" and self.runner.validate_every > 0 and self.runner.iterations > 0

    def _threads(self) -> int:
        if self.device.type != "cpu":
            return torch.get_num_threads()
        return choose_threads(
            self.algorithm,
            self.task,
            self.runner.meta_batch // distributed.world_size(),
            distributed.local_rank_and_size()[1],
        )

    def _divide(self) -> None:
        """Refuse what cannot be divided among several processes."""
        world, tasks = max(distributed.world_size(), self.runner.devices), self.runner.meta_batch
        require(
            tasks % world == 0,
            f"runner.meta_batch={tasks} cannot be shared evenly by {world} processes (runner.devices); "
            f"{tasks - tasks % world or world} or {tasks - tasks % world + world} can",
        )
        require(
            world == 1 or not self.algorithm.needs_full_meta_batch,
            f"{type(self.algorithm).__name__}, as configured here, needs each meta-batch whole; use runner.devices=1",
        )

    def _restore_from(self, last: Path, progress: Progress) -> None:
        state = checkpoint.load(last, self.device)
        self._restore(last, state)
        try:
            progress.restore(state["progress"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint {last} is damaged: its progress cannot be read ({error})") from None

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        if reason := misfit(self.algorithm, state["algorithm"]["parameters"]):
            raise UserError(f"checkpoint {path}: {reason}")
        try:
            with self._encoding_anew():
                self.algorithm.restore(state["algorithm"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"checkpoint {path} does not fit this model and algorithm ({reason})") from None

    @contextlib.contextmanager
    def _encoding_anew(self) -> Iterator[None]:
        """Have the task encode its inputs again if the block changes how the model encodes them."""
        model = getattr(self.algorithm, "model", None)
        before = encoding_state(model)
        yield
        if model is not None and encoding_state(model) != before:
            self.task.prepare(model)

    @contextlib.contextmanager
    def _logging(self, directory: Path) -> Iterator[None]:
        try:
            handler: logging.Handler = LogFile(directory / "metarun.log")
        except OSError as error:
            log.warning("metarun.log cannot be written: %s", error.strerror)
            handler = logging.NullHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()


def test_row(iteration: int, results: Mapping[str, Result]) -> dict[str, Any]:
    """The last row of metrics.jsonl."""
    row: dict[str, Any] = {"iteration": iteration}
    for name, estimate in final(results).items():
        row |= {f"test/{name}": estimate.mean, f"test/{name}_ci95": estimate.ci95}
    return row


def warn_of_divergence(results: Mapping[str, Result]) -> None:
    """Say how many tasks ended in infinity or NaN, which then is what the mean shows."""
    for suffix, result in results.items():
        for name, curve in result.curves.items():
            bad = int((~torch.isfinite(curve[:, -1])).sum())
            if bad:
                log.warning(
                    "%s of %d of %d test tasks is not finite: adaptation diverged there; a smaller algorithm.inner_lr "
                    "or fewer algorithm.test_steps is the usual cure",
                    name + suffix,
                    bad,
                    len(curve),
                )
