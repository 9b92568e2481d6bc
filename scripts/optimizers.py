"""Learned optimizers, or a learned loss, beside ordinary ones whose step size is tuned, on one problem, by one command.

    python scripts/optimizers.py task=regression/quadratics
    python scripts/optimizers.py experiment=l2l/glyphs --learned l2l --json glyphs.json
    python scripts/optimizers.py experiment=ml3/sinusoid --learned ml3 --against sgd

The words are those of a metarun run; they must leave the algorithm open. What is learned is meta-trained by a run of
its own. SGD, momentum, RMSprop and Adam (algorithm=scratch) take each step size of a grid, the one with the lowest mean
log10 loss after the last step on the meta-validation tasks is chosen, and with that a run judges it on the meta-test
tasks: the same, with the same starting points, for all. What is compared is the mean over tasks of log10 of the loss
after the last step, with its 95 % interval, and the difference, task by task, to the best baseline or to one that is
named: for a loss that plain descent descends, ``--against sgd``. The mean of the loss itself stands beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.config.build import build
from metarun.config.compose import compose, named
from metarun.errors import RunFailed, UserError
from metarun.evaluation.evaluator import Estimate
from metarun.tracking.console import set_up_logging
from metarun.tracking.rundir import RunDirectory
from metarun.training.experiment import Experiment

RULES = {
    "sgd": {"_target_": "SGD"},
    "momentum": {"_target_": "Momentum", "momentum": 0.9},
    "rmsprop": {"_target_": "RMSprop", "decay": 0.9, "eps": 1e-8},
    "adam": {"_target_": "Adam", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "carry": False},
}
GRID = [round(10 ** (k / 4), 6) for k in range(-12, 5)]
"""Step sizes from .001 to 10, four a decade."""
DIVERGED = 1e6
"""A task that ends above this, or in infinity or NaN, counts with this."""


def log_losses(curves: Mapping[str, Tensor]) -> Tensor:
    """log10 of each task's loss after each step, [n, steps + 1]."""
    losses = curves["loss"] if "loss" in curves else curves["mse"]
    return losses.double().nan_to_num(nan=DIVERGED, posinf=DIVERGED).clamp(1e-30, DIVERGED).log10()


def experiment(
    words: list[str], algorithm: str, rule: dict[str, Any] | None = None, lr: float | None = None
) -> Experiment:
    """A run of ``words`` with the algorithm; with another update rule and step size where given."""
    composed = compose([*words, f"algorithm={algorithm}", *(["runner.iterations=0"] if rule else [])])
    if rule is not None:
        target = f"metarun.algorithms.gradient.rules.{rule['_target_']}"
        composed.config["algorithm"] |= {"rule": {**rule, "_target_": target}, "inner_lr": lr}
    return build(named(composed), {"choices": composed.choices})


def judged(run: Experiment) -> dict[str, Any]:
    """Carry out the run: log10 losses of its meta-test tasks, and the seconds that it took."""
    directory = RunDirectory.create(run.runner.directory, run.name, run.seed)
    began = time.monotonic()
    run.run(directory)
    seconds = time.monotonic() - began
    return {"curves": log_losses({k: torch.tensor(v) for k, v in directory.episodes().items()}), "seconds": seconds}


def baseline(words: list[str], name: str) -> dict[str, Any]:
    """An ordinary optimizer at its best step size."""
    scores = {}
    for lr in GRID:
        ends = log_losses(experiment(words, "scratch", RULES[name], lr).test("val")[""].curves)[:, -1]
        scores[lr] = float(ends.mean())
    best = min(scores, key=lambda lr: scores[lr] if isfinite(scores[lr]) else inf)
    return {"lr": best, "val": scores[best], "grid": scores, **judged(experiment(words, "scratch", RULES[name], best))}


def table(rows: dict[str, dict[str, Any]], against: str) -> list[str]:
    """What is printed; differences are to the row named ``against``."""
    steps = next(iter(rows.values()))["curves"].shape[1] - 1
    lines = [
        f"{'optimizer':<10} {'step size':>9} {'log10 loss at step ' + str(steps):>28} {'at ' + str(steps // 5):>8} "
        f"{'minus ' + against:>18} {'mean loss':>18} {'seconds':>8}"
    ]
    for name, row in rows.items():
        curves, end = row["curves"], row["curves"][:, -1]
        lines.append(
            f"{name:<10} {row['lr'] if row.get('lr') else 'learned':>9} {estimate(end):>28}"
            f" {float(curves[:, steps // 5].mean()):>8.3f} {estimate(end - rows[against]['curves'][:, -1], '+'):>18}"
            f" {estimate(10**end):>18} {row['seconds']:>8.0f}"
        )
    return [*lines, f"{len(end)} meta-test tasks; intervals of 95 %"]


def estimate(values: Tensor, sign: str = "") -> str:
    """Mean and interval of one value a task."""
    found = Estimate.of(values)
    return f"{found.mean:{sign}.3f} +- {found.ci95:.3f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", help="what makes the run: task=... seed=...")
    parser.add_argument("--learned", nargs="*", default=["l2l", "pes"], help="algorithms to meta-train")
    parser.add_argument(
        "--against", choices=[*RULES], help="the baseline that differences are to; default: the best one"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    asked = parser.parse_intermixed_args(argv)
    set_up_logging()
    late = [word for word in asked.learned if "=" in word]  # --learned takes all that follows it
    asked.learned = [word for word in asked.learned if "=" not in word]
    words = ["runner.plots=false", "tracker.wandb=disabled", *asked.words, *late]
    rows = {name: baseline(words, name) for name in RULES}
    best = min(rows, key=lambda name: rows[name]["val"] if isfinite(rows[name]["val"]) else inf)
    rows |= {name: judged(experiment(words, name)) for name in asked.learned}
    against = asked.against or best
    print("\n".join(table(rows, against)))
    if asked.json:
        stored = {
            name: {
                **{key: value for key, value in row.items() if key != "curves"},
                "log10_loss": [Estimate.of(column).as_dict() for column in row["curves"].unbind(1)],
                "mean_loss": Estimate.of(10 ** row["curves"][:, -1]).as_dict(),
                "difference": Estimate.of(row["curves"][:, -1] - rows[against]["curves"][:, -1]).as_dict(),
            }
            for name, row in rows.items()
        }
        whole = {"words": asked.words, "best_control": best, "against": against, "rows": stored}
        asked.json.write_text(json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunFailed) as error:
        sys.exit(f"optimizers: {error}")
