"""A hyperparameter search: a folder with Optuna's journal and a run directory per trial. It resumes after a crash."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from metarun.errors import Pruned, RunFailed, UserError
from metarun.locks import lock, try_lock
from metarun.moved import updated
from metarun.progress import Progress
from metarun.search.space import Search
from metarun.tracking.files import atomic_write
from metarun.tracking.rundir import RunDirectory
from metarun.untrusted import open_to_append, read_yaml, refuse_links

if TYPE_CHECKING:
    import optuna

    from metarun.training.experiment import Experiment

Builder = Callable[[Mapping[str, Any], str], "Experiment"]
"""Builds the experiment of a trial from the values of the searched keys and the name of the trial."""


class SearchFolder:
    """Folder of a search.

    It holds the search section in ``search.yaml``, Optuna's ``journal.log``, the run directories ``trials/NNNN`` and,
    at the end, the results in ``search.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, search: Search, identity: Mapping[str, Any]) -> None:
        """Create the folder, or check that it holds the same search. The number of trials may differ.

        Raises:
            UserError: The folder holds another search.
        """
        self.path.joinpath("trials").mkdir(parents=True, exist_ok=True)
        refuse_links(self.path, besides=["journal.log.lock"])  # left by searches that Optuna's own lock guarded
        content = json.loads(json.dumps({"space": search.space, "objectives": search.objectives, "config": identity}))
        file = self.path / "search.yaml"
        if not file.is_file():
            atomic_write(file, yaml.safe_dump(content, sort_keys=False).encode())
        elif updated(read_yaml(file)) != content:
            raise UserError(f"{self.path} holds another search; choose another folder with name=...")

    @contextlib.contextmanager
    def locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock ``name`` within the block. The system releases it when the process ends.

        Args:
            name: Name of the lock.
            wait: If false, do not wait for a lock that another process holds.

        Yields:
            True if the lock was acquired.
        """
        with open_to_append(self.path / f".{name}.lock") as handle:
            if wait:
                lock(handle)
                yield True
            else:
                yield try_lock(handle)

    def trial(self, number: int) -> Path:
        """Return the run directory of a trial."""
        return self.path / "trials" / f"{number:04d}"


class JournalLock:
    """Optuna's lock of its journal, released by the kernel when its holder dies.

    Optuna's own lock is a link, which a killed worker leaves behind for others to wait for.
    """

    def __init__(self, folder: SearchFolder) -> None:
        self._folder = folder
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._held.enter_context(self._folder.locked("journal.log"))
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._held.close()


class Study:
    """Optuna study of a search, as one worker sees it. Several processes can work on one folder.

    Trials are pruned by the median rule if there is a single objective. Optuna cannot prune with several.

    Args:
        folder: Folder of the search.
        search: Search section.
        metric: Metric of the task. It is the objective if the search names none.
        higher_is_better: True if a higher value of ``metric`` is better.
        iterations: Iterations of a trial that is not pruned.
        seed: Seed of the sampler.
        worker: Number of this worker, from 0.
    """

    def __init__(
        self,
        folder: SearchFolder,
        search: Search,
        metric: str,
        higher_is_better: bool,
        *,
        iterations: int,
        seed: int,
        worker: int = 0,
    ) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.folder, self.search, self.metric, self.iterations = folder, search, metric, iterations
        self.objectives = dict(search.objectives or {metric: "maximize" if higher_is_better else "minimize"})
        self.combinations = search.combinations()
        single = len(self.objectives) == 1
        pruner = optuna.pruners.MedianPruner(n_startup_trials=search.startup)
        lock: Any = JournalLock(folder)  # has the two methods of Optuna's BaseJournalFileLock
        storage = JournalStorage(JournalFileBackend(str(folder.path / "journal.log"), lock))
        with folder.locked("journal"):
            self.optuna = optuna.create_study(
                study_name="search",
                storage=storage,
                directions=[optuna.study.StudyDirection[d.upper()] for d in self.objectives.values()],
                pruner=pruner if single and search.prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            # The seed depends on the number of trials, so a restarted worker does not sample the same trials again.
            self.optuna.sampler = optuna.samplers.TPESampler(
                n_startup_trials=search.startup, multivariate=True, constant_liar=True,
                seed=(seed + 1) * 10_000 + 1000 * worker + len(self.optuna.trials),
            )  # fmt: skip

    def work(self, build: Builder) -> None:
        """Run trials until the search has its number of them. Trials of killed workers come first."""
        total = len(self.combinations) or self.search.trials
        with Progress("trial", total, done=self._finished(), outer=True) as progress:
            while self._run_next(build):
                progress.update(self._finished() - progress.done)

    def _finished(self) -> int:
        """Return the number of finished trials, those of other workers included."""
        return sum(trial.state.is_finished() for trial in self.optuna.get_trials(deepcopy=False))

    def _run_next(self, build: Builder) -> bool:
        with contextlib.ExitStack() as held:
            with self.folder.locked("journal"):
                trial = self._abandoned(held) or self._new(held)
            if trial is None:
                return False
            self._run(trial, build)
        return True

    def _abandoned(self, held: contextlib.ExitStack) -> optuna.Trial | None:
        """Return a trial that is running according to the journal but locked by no process, and lock it."""
        import optuna

        for frozen in self.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            if held.enter_context(self.folder.locked(f"{frozen.number:04d}", wait=False)):
                return optuna.Trial(self.optuna, frozen._trial_id)
        return None

    def _new(self, held: contextlib.ExitStack) -> optuna.Trial | None:
        """Sample a new trial and lock it, or return ``None`` if there are enough or all combinations were tried."""
        import optuna

        tried = [trial.params for trial in self.optuna.get_trials(deepcopy=False)]
        if len(tried) >= self.search.trials:
            return None
        if self.combinations:
            left = [parameters for parameters in self.combinations if parameters not in tried]
            if not left:
                return None
            # Not by `enqueue_trial`: a kill before the next line would leave a trial that waits and counts.
            self.optuna.sampler = optuna.samplers.PartialFixedSampler(left[0], optuna.samplers.RandomSampler())
        trial = self.optuna.ask(self.search.distributions())
        held.enter_context(self.folder.locked(f"{trial.number:04d}"))
        return trial

    def _run(self, trial: optuna.Trial, build: Builder) -> None:
        """Train one trial and report its outcome to Optuna: objective values, pruned, or failed with a reason."""
        import optuna

        state = optuna.trial.TrialState
        directory = RunDirectory(self.folder.trial(trial.number))
        seen = 0
        pruned = len(self.objectives) == 1 and self.search.prune

        def watch(row: dict[str, Any]) -> None:
            nonlocal seen
            seen = int(row["iteration"])
            if len(self.objectives) == 1:
                name = next(iter(self.objectives))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a resumed run reports some validations again
                    trial.report(_value(name, row, {}, self.metric), seen)
                if pruned and seen < self.iterations and trial.should_prune():
                    raise Pruned

        def tell(**outcome: Any) -> None:
            trial.set_user_attr("iterations", seen)
            self.optuna.tell(trial, **outcome)

        try:
            directory.path.joinpath("checkpoints").mkdir(parents=True, exist_ok=True)
            experiment = build(self.search.values(trial.params), f"trial {trial.number}")
            experiment.on_validation = watch
            summary = experiment.run(directory)
        except Pruned:
            tell(state=state.PRUNED)
        except RunFailed as error:  # the run diverged: Optuna's sampler treats pruned trials as bad ones
            trial.set_user_attr("why", str(error))
            tell(state=state.PRUNED)
        except UserError as error:
            trial.set_user_attr("why", str(error))
            tell(state=state.FAIL)
        else:
            seen = summary["iterations"]
            facts = {
                "seconds": summary["wall_s"],
                "parameters": sum(p.numel() for p in experiment.algorithm.parameters()),
            }
            row = chosen_row(directory, self.metric, summary["best_iteration"])
            values = [_value(name, row, facts, self.metric) for name in self.objectives]
            if not all(map(math.isfinite, values)):  # diverged on validation tasks only
                trial.set_user_attr("why", "validation is not finite")
                tell(state=state.PRUNED)
            else:
                tell(values=values)

    # Results

    def best(self) -> list[optuna.trial.FrozenTrial]:
        """Return the best trial, or all Pareto-optimal trials if there are several objectives."""
        import optuna

        if not self.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            return []
        return self.optuna.best_trials if len(self.objectives) > 1 else [self.optuna.best_trial]

    def spent(self) -> int:
        """Return the total number of iterations of all trials."""
        return sum(int(t.user_attrs.get("iterations", 0)) for t in self.optuna.get_trials(deepcopy=False))

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each state."""
        found: dict[str, int] = {}
        for trial in self.optuna.get_trials(deepcopy=False):
            found[trial.state.name.lower()] = found.get(trial.state.name.lower(), 0) + 1
        return found


def chosen_row(directory: RunDirectory, metric: str, iteration: int | None) -> dict[str, Any]:
    """Return the validation row of ``iteration``, or the last validation row if there is none.

    Raises:
        UserError: The run was never validated.
    """
    rows = [row for row in directory.rows() if f"val/{metric}" in row]
    if not rows:
        raise UserError("runner.validate_every=0: a search selects by validation, and this run has none")
    return next((row for row in rows if row["iteration"] == iteration), rows[-1])


def _value(name: str, row: Mapping[str, Any], facts: Mapping[str, Any], metric: str) -> float:
    """Return the value of an objective from a validation row or from facts about the run."""
    if name in facts:
        return float(facts[name])
    if f"val/{name}" not in row:
        known = [key.removeprefix("val/") for key in row if key.startswith("val/") and not key.endswith("_ci95")]
        raise UserError(f"search.objectives.{name}: must be one of {', '.join([*known, 'seconds', 'parameters'])}")
    return float(row[f"val/{name}"])
