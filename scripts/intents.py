"""The table of a few-shot intent paper: each data set's five folds at 5 and 10 way, 1 and 5 shot, by one command.

    python scripts/intents.py experiment=minilm/folds --json intents.json
    python scripts/intents.py experiment=minilm/metric task.way=50 task.test_ways=[] --datasets OOS --shots 1

The words are those of a metarun run that tests at ``task.way`` and ``task.test_ways``; they must leave open the data
set, the fold and the shot. Printed is the mean over folds of the mean accuracy, in %, with the 95 % interval of the
episodes drawn (folds held fixed) and the standard deviation over the folds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from metarun.config.build import build
from metarun.config.compose import compose, named
from metarun.errors import RunFailed, UserError
from metarun.tasks.nlp.folds import FOLDS
from metarun.tracking.console import set_up_logging

NUMBERS = (1, 2, 3, 4, 5)


def fold(words: list[str], dataset: str, number: int, shot: int) -> dict[int, dict[str, float]]:
    """Way -> accuracy of a run on one fold."""
    asked = [f"task.dataset={dataset}", f"task.fold={number}", f"task.shot={shot}"]
    composed = compose([*words, *asked])
    run = build(named(composed), {"choices": composed.choices})
    found = run.run()["test"]
    ways = {f"accuracy{suffix}": shape.way for suffix, shape in run.task.variants().items() if shape is not None}
    return {way: found[name] for name, way in ways.items() if name in found}


def over_folds(folds: list[dict[str, float]]) -> dict[str, Any]:
    """Mean over folds, its interval from those of the folds, and their spread."""
    means = [each["mean"] for each in folds]
    return {
        "mean": mean(means),
        "ci95": sum(each["ci95"] ** 2 for each in folds) ** 0.5 / len(folds),
        "sd": stdev(means) if len(means) > 1 else 0.0,
        "folds": folds,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="what makes the run: experiment=... model.pooling=...")
    parser.add_argument("--datasets", nargs="+", choices=[*FOLDS], default=[*FOLDS], help="data sets with folds")
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5], help="support texts a class")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    asked = parser.parse_intermixed_args(argv)
    set_up_logging()
    words = ["runner.plots=false", "tracker.wandb=disabled", *asked.words]
    rows: dict[str, dict[str, Any]] = {}
    for dataset in asked.datasets:
        cells: dict[tuple[int, int], list[dict[str, float]]] = {}
        for shot in asked.shots:
            for number in NUMBERS:
                for way, accuracy in fold(words, dataset, number, shot).items():
                    cells.setdefault((way, shot), []).append(accuracy)
        rows[dataset] = {f"{way}-way {shot}-shot": over_folds(cells[way, shot]) for way, shot in sorted(cells)}
        if len(rows) == 1:
            print(f"{'':<10}" + "".join(f"{name:>26}" for name in rows[dataset]))
        shown = (
            f"{100 * c['mean']:.2f} +- {100 * c['ci95']:.2f} (sd {100 * c['sd']:.2f})" for c in rows[dataset].values()
        )
        print(f"{dataset:<10}" + "".join(f"{cell:>26}" for cell in shown), flush=True)
    print(f"mean over {len(NUMBERS)} folds; intervals of 95 %; sd over the folds")
    if asked.json:
        asked.json.write_text(json.dumps({"words": asked.words, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunFailed) as error:
        sys.exit(f"intents: {error}")
