"""``metarun reproduce ID [key=value ...]``: run a paper's recipe and compare the result with the paper's."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.cli.arguments import Arguments
from metarun.cli.processes import count_gpus, run_all
from metarun.config.paper import Finding, Paper, worst
from metarun.errors import RunFailed, UserError, nearest
from metarun.escape import printable
from metarun.reports.reproductions import RESULTS, findings, metric_of, recipes, record, row, stated_time, store
from metarun.runs.history import EXECUTION_KEYS, earlier
from metarun.runs.stored import same_data
from metarun.tracking.rundir import RunDirectory

log = logging.getLogger("metarun")

_TRIAL = (
    "runner.iterations=2", "runner.meta_batch=1", "runner.validate_every=1", "runner.val_episodes=2",
    "runner.test_episodes=2", "runner.tune_above=1e9", "runner.plots=false", "tracker.wandb=disabled",
)  # fmt: skip
"""Overrides that make a recipe so short that it takes seconds."""


def run(arguments: Arguments) -> int:
    """Run the command for seeds 0..N - 1. Finished runs are reused, stopped ones resumed, missing ones started."""
    from metarun.config.check import check
    from metarun.config.compose import compose, named

    name, overrides = recipe_of(arguments), arguments.overrides
    seeds, jobs = arguments["--seeds"] or 3, arguments["--jobs"] or max(count_gpus(), 1)
    if arguments["--smoke"]:
        return _try(name, [*overrides, *options_of_new_runs(arguments)])
    configs = {seed: named(compose([f"experiment={name}", f"seed={seed}", *overrides])) for seed in range(seeds)}
    for config in configs.values():
        check(config)
    new = [f"experiment={name}", *overrides]
    log.info("metarun: %s, %d seed%s, %s", name, seeds, "s" * (seeds > 1), stated_time(name) or "no time is stated")
    try:
        run_all({f"seed {s}": lambda s=s: _words(configs[s], s, new, arguments) for s in configs}, jobs, "seed")  # type: ignore[misc]
    except RunFailed:  # a run that ended with a non-finite result is a miss, not a failure
        if not all(earlier(config, same_data(config))[0] for config in configs.values()):
            raise
    runs = {seed: earlier(config, same_data(config))[0] for seed, config in configs.items()}
    if missing := [seed for seed, found in runs.items() if found is None]:
        raise RunFailed(f"seed {', '.join(map(str, missing))} did not finish")
    result = record(name, configs[0], {seed: found for seed, found in runs.items() if found is not None})
    path = store(RESULTS, result)
    paper = Paper.of(configs[0]["paper"])
    found = findings(paper, result)
    _print(paper, result, found)
    print(f"\n{path}")
    good = worst(found) in ("pass", "consistent", None) and all(each.bar_reached is not False for each in found)
    return 0 if good else 1


def _try(name: str, words: Sequence[str]) -> int:
    """Run two iterations of a recipe with its own data, task, model and algorithm in a temporary directory.

    Nothing is recorded. Every number that the paper claims must be measured.

    Raises:
        RunFailed: The run fails.
        UserError: The run does not measure a number that the paper claims.
    """
    paper = recipes()[name]
    with tempfile.TemporaryDirectory() as folder:
        # What it would print are places in a folder that is gone a moment later.
        short = [*_TRIAL, f"runner.directory={folder}", "--quiet"]
        log.info("metarun: trying two iterations of %s", name)
        run_all({name: lambda: ["train", f"experiment={name}", "seed=0", *words, *short]}, 1, results=False)
        (run,) = (RunDirectory.open(path.parent) for path in Path(folder).glob("*/*/summary.json"))
        found = paper.findings({0: run.summary() or {}})
    print(f"{name}: works; it measures {', '.join(metric_of(finding.claim) for finding in found)}; nothing recorded")
    return 0


def recipe_of(arguments: Arguments) -> str:
    """Return the name of the recipe; raises :class:`UserError` if it has no paper, or if a key is of the protocol."""
    for word in arguments.overrides:
        key = word.partition("=")[0]
        if not key.startswith(EXECUTION_KEYS):
            raise UserError(
                f"reproduce cannot change '{key}', which is part of the protocol   allowed: {', '.join(EXECUTION_KEYS)}"
            )
    names, known = arguments.names, recipes()
    if len(names) != 1:
        raise UserError("reproduce takes one recipe, such as maml/sinusoid   metarun list recipes shows all")
    if names[0] not in known:
        below = [name for name in known if name.startswith(f"{names[0].lower().rstrip('/')}/")]
        hint = f"; there are {', '.join(below)}" if below else nearest(names[0], known)
        raise UserError(f"no recipe '{names[0]}' with a paper{hint}   metarun list recipes shows all")
    return names[0]


def _words(config: Mapping[str, Any], seed: int, new: Sequence[str], arguments: Arguments) -> list[str] | None:
    """Return the command that is left to run for a seed; ``None`` if its run has finished.

    Args:
        config: Configuration of the seed.
        seed: The seed.
        new: Words of a new run.
        arguments: The words of this command, whose options the run gets too.
    """
    finished, stopped = earlier(config, same_data(config))
    if finished is not None:
        log.info("metarun: seed %d: %s", seed, finished.path)
        return None
    if stopped:
        return ["resume", str(stopped.path), *arguments.passed_on()]
    return ["train", *new, f"seed={seed}", *options_of_new_runs(arguments)]


def options_of_new_runs(arguments: Arguments) -> list[str]:
    """Return the options that a new run gets too. Its code is what the user names, so it needs no ``--trust``."""
    return [each for each in arguments.passed_on() if not each.startswith("--trust")]


def _print(paper: Paper, result: Mapping[str, Any], found: Sequence[Finding]) -> None:
    from rich.table import Table

    from metarun.cli.output import plain_console

    columns = ("metric", f"published ({paper.where})", "ours", "worst seed", "our own bar", "verdict")
    table = Table(*columns, title=printable(paper.title))
    for finding in found:
        table.add_row(*map(printable, row(paper, finding)))
    plain_console().print(table)
    if paper.open:
        print(printable(f"protocol: {paper.open}"))
    if not result["clean"]:
        print("not counted: the recipe or the code was not committed when it ran")
    print(f"{result['id']}: {worst(found) or 'no published value to compare with'}")
