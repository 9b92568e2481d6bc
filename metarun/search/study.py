"""One search: a folder with Optuna's journal, and a run directory for each trial. Killed, it goes on where it was."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from metarun.errors import Pruned, RunFailed, UserError
from metarun.search.space import Search
from metarun.tracking.files import atomic_write
from metarun.tracking.rundir import RunDirectory
from metarun.untrusted import open_to_append, read_yaml, refuse_links

if TYPE_CHECKING:
    import optuna

    from metarun.training.experiment import Experiment

Builder = Callable[[Mapping[str, Any], str], "Experiment"]
"""From a trial's values and its name to its experiment."""


class Folder:
    """``search.yaml`` (what is searched), ``journal.log``, ``trials/NNNN`` and, at the end, ``search.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, search: Search, substance: Mapping[str, Any]) -> None:
        """Make it, or check that it holds the same search; more trials may be asked for than before."""
        self.path.joinpath("trials").mkdir(parents=True, exist_ok=True)
        refuse_links(self.path, besides=["journal.log.lock"])  # that is how Optuna locks its journal
        told = json.loads(json.dumps({"space": search.space, "objectives": search.objectives, "config": substance}))
        file = self.path / "search.yaml"
        if not file.is_file():
            atomic_write(file, yaml.safe_dump(told, sort_keys=False).encode())
        elif read_yaml(file) != told:
            raise UserError(f"{self.path} holds another search; name=... gives this one a folder of its own")

    @contextlib.contextmanager
    def locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock ``name`` (the system releases it when the process ends); whether it was to be had."""
        with open_to_append(self.path / f".{name}.lock") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
            else:
                yield True

    def trial(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"


class Study:
    """The trials of a search in a folder, for one worker; several processes may work on one folder.

    ``metric`` and ``higher`` are what the task is judged by, the objective where the search names none. One objective
    is pruned by the median rule; Optuna prunes none of several.
    """

    def __init__(
        self, folder: Folder, search: Search, metric: str, higher: bool, *, iterations: int, seed: int, worker: int = 0
    ) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.folder, self.search, self.metric, self.iterations = folder, search, metric, iterations
        self.objectives = dict(search.objectives or {metric: "maximize" if higher else "minimize"})
        single = len(self.objectives) == 1
        pruner = optuna.pruners.MedianPruner(n_startup_trials=search.startup)
        storage = JournalStorage(JournalFileBackend(str(folder.path / "journal.log")))
        with folder.locked("journal"):
            self.optuna = optuna.create_study(
                study_name="search",
                storage=storage,
                directions=[optuna.study.StudyDirection[d.upper()] for d in self.objectives.values()],
                pruner=pruner if single and search.prune else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            # Seeded by how far the search is: a worker that starts again does not draw the same trials again.
            self.optuna.sampler = optuna.samplers.TPESampler(
                n_startup_trials=search.startup, multivariate=True, constant_liar=True,
                seed=(seed + 1) * 10_000 + 1000 * worker + len(self.optuna.trials),
            )  # fmt: skip

    def work(self, build: Builder) -> None:
        """Take up trials until there are as many as asked for, those first whose worker was killed."""
        while self._one(build):
            pass

    def _one(self, build: Builder) -> bool:
        with contextlib.ExitStack() as held:
            with self.folder.locked("journal"):
                trial = self._stale(held) or self._new(held)
            if trial is None:
                return False
            self._run(trial, build)
        return True

    def _stale(self, held: contextlib.ExitStack) -> optuna.Trial | None:
        """A trial that is running by the journal, but nobody holds."""
        import optuna

        for frozen in self.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            if held.enter_context(self.folder.locked(f"{frozen.number:04d}", wait=False)):
                return optuna.Trial(self.optuna, frozen._trial_id)
        return None

    def _new(self, held: contextlib.ExitStack) -> optuna.Trial | None:
        if len(self.optuna.get_trials(deepcopy=False)) >= self.search.trials:
            return None
        trial = self.optuna.ask(self.search.distributions())
        held.enter_context(self.folder.locked(f"{trial.number:04d}"))
        return trial

    def _run(self, trial: optuna.Trial, build: Builder) -> None:
        """Train one trial and tell what came of it: its values; that it was given up; why it could not be run."""
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
                    warnings.simplefilter("ignore")  # a resumed run repeats what it had reported
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
        except RunFailed as error:  # it diverged: as bad as can be, which the sampler should know
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
            if not all(map(math.isfinite, values)):  # validation tasks diverged, though no meta-training task did
                trial.set_user_attr("why", "validation is not finite")
                tell(state=state.PRUNED)
            else:
                tell(values=values)

    # What came of it

    def best(self) -> list[optuna.trial.FrozenTrial]:
        """The best trial, or those that no other one betters in every objective; the first of equals first."""
        import optuna

        if not self.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            return []
        return self.optuna.best_trials if len(self.objectives) > 1 else [self.optuna.best_trial]

    def spent(self) -> int:
        """Iterations that all trials took together."""
        return sum(int(t.user_attrs.get("iterations", 0)) for t in self.optuna.get_trials(deepcopy=False))

    def counts(self) -> dict[str, int]:
        """Trials by what became of them."""
        found: dict[str, int] = {}
        for trial in self.optuna.get_trials(deepcopy=False):
            found[trial.state.name.lower()] = found.get(trial.state.name.lower(), 0) + 1
        return found


def chosen_row(directory: RunDirectory, metric: str, iteration: int | None) -> dict[str, Any]:
    """The row of validation at ``iteration``, the last one where that is ``None``."""
    rows = [row for row in directory.rows() if f"val/{metric}" in row]
    if not rows:
        raise UserError("runner.validate_every=0: a search judges by validation, and this run has none")
    return next((row for row in rows if row["iteration"] == iteration), rows[-1])


def _value(name: str, row: Mapping[str, Any], facts: Mapping[str, Any], metric: str) -> float:
    if name in facts:
        return float(facts[name])
    if f"val/{name}" not in row:
        known = [key.removeprefix("val/") for key in row if key.startswith("val/") and not key.endswith("_ci95")]
        raise UserError(f"search.objectives.{name}: validation reports {', '.join(known)}; seconds and parameters too")
    return float(row[f"val/{name}"])
