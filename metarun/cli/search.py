"""``metarun search SPACE [key=value ...]``: tune hyperparameters by validation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun import strict_json
from metarun.cli.arguments import Arguments
from metarun.cli.processes import count_gpus, run_all
from metarun.config.catalogue import catalogue
from metarun.errors import RunFailed, UserError, nearest
from metarun.escape import printable
from metarun.extras import imported
from metarun.runs.history import experiment_identity
from metarun.search.space import Search
from metarun.tracking.files import atomic_write

if TYPE_CHECKING:
    from metarun.search.study import SearchFolder, Study
    from metarun.training.experiment import Experiment

log = logging.getLogger("metarun")

_EACH = ("runner.test_episodes=0", "runner.plots=false")
"""Overrides of every trial. Only the best one is tested, at the end."""


def run(arguments: Arguments) -> int:
    """Run the command. Repeating it continues a stopped search without losing or repeating a trial."""
    from metarun.config.check import check
    from metarun.config.compose import compose, named
    from metarun.config.environment import resolved

    space, overrides = space_of(arguments), arguments.overrides
    content = next(e.content for e in catalogue("search") if e.name == space)
    search = Search.of({**content, "trials": arguments["--trials"] or content.get("trials")})
    workers = arguments["--workers"] or max(count_gpus(), 1)
    imported("optuna", "search", "search")

    composed = compose(overrides)
    config = named(composed)
    if not any(word.startswith("name=") for word in overrides):
        config["name"] += f"-{space.replace('/', '-')}"
    check(config)
    for values in _corners(search):
        check(named(compose([*overrides, *values])))
    used = resolved(config)
    if not used["runner"]["validate_every"]:
        raise UserError("a search selects by validation: runner.validate_every must not be 0")
    from metarun.search.study import SearchFolder

    folder = SearchFolder(Path(used["runner"]["directory"], "search", used["name"]))
    folder.begin(search, experiment_identity(config))
    if workers > 1:
        again = ["search", space, *overrides, *arguments.passed_on(), f"--trials={search.trials}", "--workers=1"]
        each = {f"worker {k}": lambda k=k: [*again, f"--worker={k}"] for k in range(workers)}
        run_all(each, workers)
    worker = arguments["--worker"]
    study = _study(folder, search, used, worker or 0)
    if workers == 1:
        study.work(lambda values, name: _experiment(overrides, values, config, name))
    return 0 if worker is not None else _finish(study, folder, config)


def _study(folder: SearchFolder, search: Search, config: Mapping[str, Any], worker: int) -> Study:
    from metarun.config.schema import declaration
    from metarun.search.study import Study

    family = declaration(str(config["task"]["_target_"]))
    facts = family.attributes
    return Study(
        folder, search, facts["metric"], facts.get("higher_is_better", True),
        iterations=config["runner"]["iterations"], seed=config["seed"], worker=worker,
    )  # fmt: skip


def _experiment(
    overrides: Sequence[str], values: Mapping[str, Any], config: Mapping[str, Any], name: str
) -> Experiment:
    from metarun.config.build import build
    from metarun.config.compose import compose, named

    log.info("metarun: %s: %s", name, " ".join(_words(values)))
    composed = compose([*overrides, *_EACH, *_words(values)])
    facts = {**composed.facts, "group": config["name"]}
    return build({**named(composed), "name": config["name"]}, facts)


def _finish(study: Study, folder: SearchFolder, config: Mapping[str, Any]) -> int:
    """Print the table, draw the plots, and test the best trial, the only use of test tasks; return the exit status."""
    from metarun.cli.output import number, print_summary
    from metarun.config.trust import Trust, named_code
    from metarun.reports.search import draw, importances
    from metarun.runs.stored import rebuild, trained

    best = study.best()
    if not best:
        reasons = {t.user_attrs.get("why", "given up") for t in study.optuna.get_trials(deepcopy=False)}
        raise RunFailed("no trial was finished: " + "; ".join(sorted(reasons)[:3]))
    whole = study.iterations * len(study.optuna.trials)
    importance = importances(study)
    result: dict[str, Any] = {
        "trials": study.counts(),
        "iterations": study.spent(),
        "iterations_without_pruning": whole,
        "importance": importance,
        "best": [
            {
                "trial": t.number,
                **dict(zip(study.objectives, t.values, strict=True)),
                "values": study.search.values(t.params),
            }
            for t in best
        ],
    }
    draw(study, importance, folder.path / "search.png")
    counts = ", ".join(f"{n} {state}" for state, n in study.counts().items())
    print(
        f"\n{counts}"
        + (f"; {study.spent()} of {whole} iterations ({1 - study.spent() / whole:.0%} saved)" if whole else "")
    )
    for key, share in importance.items():
        print(f"  importance {share:.2f}  {key}")
    for t in best:
        scores = ", ".join(f"{name} {number(v)}" for name, v in zip(study.objectives, t.values, strict=True))
        print(printable(f"trial {t.number}: {scores}   " + " ".join(_words(study.search.values(t.params)))))
    status = 0
    if len(best) == 1 and config["runner"]["test_episodes"]:
        tests = f"runner.test_episodes={config['runner']['test_episodes']}"
        trust = Trust.of([str(name) for _, name in named_code(config)], expressions=True)
        trial = str(folder.trial(best[0].number))
        directory, experiment, _ = rebuild("search", [trial, tests], allowed=("runner.",), trust=trust)
        trained(directory, experiment)
        result |= experiment.findings("test", experiment.test())
        status = print_summary(result)
    atomic_write(folder.path / "search.json", (strict_json.dumps(result, indent=1) + "\n").encode())
    print(f"{folder.path / 'search.json'}, search.png")
    return status


def space_of(arguments: Arguments) -> str:
    """Return the name of the search space; raises :class:`UserError` unless exactly one known name is given."""
    names, spaces = arguments.names, [e.name for e in catalogue("search")]
    if len(names) != 1:
        raise UserError(f"search takes one space: {', '.join(spaces)}")
    if names[0] not in spaces:
        raise UserError(f"no search space '{names[0]}'{nearest(names[0], spaces)}   spaces: {', '.join(spaces)}")
    return names[0]


def _corners(search: Search) -> list[list[str]]:
    """Return overrides with both ends of every range, to check that the configuration accepts them."""
    ends = {
        key: values if isinstance(values, list) else [values["low"], values["high"]]
        for key, values in search.space.items()
    }
    return [
        _words({key: values[min(at, len(values) - 1)] for key, values in ends.items()})
        for at in range(max(map(len, ends.values())))
    ]


def _words(values: Mapping[str, Any]) -> list[str]:
    """Return the overrides that set keys to these values."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
