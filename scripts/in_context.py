"""An in-context learner beside rules that nobody had to learn, at every context length, on the same tasks.

    metarun experiment=in_context/linear
    python scripts/in_context.py outputs/in_context-linear/... runner.test_episodes=10000

The words after the run's directory change keys of its task and runner. Printed: the mean squared error on the query
examples after 0, 1, ... support examples; what the learner's is in percent of the first control's, which for linear
functions is ridge regression with the noise's variance as its penalty, the posterior mean; and, where there is noise,
the same of the error without the noise's variance, which no rule can predict (an estimate: it scatters where small).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from metarun.cli.output import set_up_logging
from metarun.cli.stored import rebuild
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.evaluation.evaluator import Estimate
from metarun.training.experiment import Experiment

CONTROLS = ["ridge", "least_squares", "lasso", "nearest_neighbour", "averaging"]


def control(run: Experiment, name: str, noise: float) -> Tensor:
    """Each task's error after 0, 1, ... examples, [n, shot + 1], of one control."""
    section = compose([f"algorithm={name}"]).config["algorithm"]
    if name == "ridge" and noise:
        section["penalty"] = noise**2
    return build({**run.config, "algorithm": section}).test()[""].curves["mse"]


def table(curves: dict[str, Tensor], noise: float) -> list[str]:
    """What is printed; the first of ``curves`` is the learner's, the second what it is measured by."""
    learner, best = list(curves)[:2]
    headings = [f"{learner} / {best}", *(["without noise"] if noise else [])]
    lines = [f"{'examples':>8} " + " ".join(f"{name:>18}" for name in [*curves, *headings])]
    for count in range(curves[learner].shape[1]):
        of = {name: Estimate.of(curve[:, count]) for name, curve in curves.items()}
        ratios = [of[learner].mean / of[best].mean]
        if noise:
            ratios.append((of[learner].mean - noise**2) / (of[best].mean - noise**2))
        cells = [f"{e.mean:>9.4f} +- {e.ci95:.4f}" for e in of.values()] + [f"{100 * r:.1f} %" for r in ratios]
        lines.append(f"{count:>8} " + " ".join(f"{cell:>18}" for cell in cells))
    worst = max(
        range(1, curves[learner].shape[1]),
        key=lambda k: float(curves[learner][:, k].mean() / curves[best][:, k].mean()),
    )
    ratio = float(curves[learner][:, worst].mean() / curves[best][:, worst].mean())
    return [
        *lines,
        f"{len(curves[learner])} functions; from 1 example on at most {100 * ratio - 100:.1f} % above {best}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="directory of a run on task=regression/functions")
    parser.add_argument("words", nargs="*", help="keys to change: runner.test_episodes=... task.noise=...")
    parser.add_argument("--controls", nargs="*", default=CONTROLS, help="the first is what the learner is measured by")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    asked = parser.parse_intermixed_args()
    set_up_logging()
    directory, run, _ = rebuild("in_context", [asked.run, *asked.words], allowed=("task.", "runner."))
    run.load(directory.path / "checkpoints" / ("best.pt" if run.runner.select == "best" else "last.pt"))
    noise = float(run.config["task"].get("noise", 0))
    changed: dict[str, Any] = {"learned": run.test()[""].curves["mse"]}
    curves = changed | {name: control(run, name, noise) for name in asked.controls}
    print("\n".join(table(curves, noise)))
    if asked.json:
        stored = {name: [Estimate.of(column).as_dict() for column in c.unbind(1)] for name, c in curves.items()}
        asked.json.write_text(json.dumps({"task": run.config["task"], "mse": stored}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"in_context: {error}")
