"""An in-context learner beside rules that nobody had to learn, at every context length, on the same tasks.

    metarun experiment=in_context/linear
    python scripts/in_context.py outputs/in_context-linear/... runner.test_episodes=10000
    metarun experiment=formal_languages/in_context
    python scripts/in_context.py outputs/formal_languages-in_context/... runner.test_episodes=200

The words after the run's directory change keys of its task and runner. Printed: the mean squared error on the query
examples after 0, 1, ... support examples; what the learner's is in percent of the first baseline's, which for linear
functions is ridge regression with the noise's variance as its penalty, the posterior mean; and, where there is noise,
the same of the error without the noise's variance, which no rule can predict (an estimate: it scatters where small).
Of formal languages: total variation distance, accuracy and cross-entropy, beside n-grams and Baum-Welch, and the
cross-entropy of the true automata.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from metarun.config.build import build
from metarun.config.compose import compose
from metarun.config.trust import Trust
from metarun.errors import UserError
from metarun.evaluation.evaluator import Estimate
from metarun.runs.stored import rebuild
from metarun.tracking.console import set_up_logging
from metarun.training.experiment import Experiment

BASELINES = {
    "regression": ["ridge", "least_squares", "lasso", "nearest_neighbour", "averaging"],
    "sequence": ["ngram", "baum_welch"],
}
METRICS = {"regression": ["mse"], "sequence": ["tvd", "accuracy", "loss"]}


def baseline(run: Experiment, name: str, noise: float) -> dict[str, Tensor]:
    """Each metric of each task after 0, 1, ... examples, [n, shot + 1], of one baseline."""
    section = compose([f"algorithm={name}"]).config["algorithm"]
    if name == "ridge" and noise:
        section["penalty"] = noise**2
    return build({**run.config, "algorithm": section}).test()[""].curves


def rows(curves: dict[str, Tensor]) -> list[str]:
    """A line a number of examples."""
    lines = [f"{'examples':>8} " + " ".join(f"{name:>18}" for name in curves)]
    for count, columns in enumerate(zip(*(curve.unbind(1) for curve in curves.values()), strict=True)):
        cells = [f"{e.mean:>9.4f} +- {e.ci95:.4f}" for e in map(Estimate.of, columns)]
        lines.append(f"{count:>8} " + " ".join(f"{cell:>18}" for cell in cells))
    return lines


def table(curves: dict[str, Tensor], noise: float) -> list[str]:
    """What is printed; the first of ``curves`` is the learner's, the second what it is measured by."""
    learner, best = list(curves)[:2]
    headings = [f"{learner} / {best}", *(["without noise"] if noise else [])]
    lines = rows(curves)
    lines[0] += " " + " ".join(f"{heading:>18}" for heading in headings)
    for count in range(curves[learner].shape[1]):
        above, below = (float(curves[name][:, count].double().mean()) for name in (learner, best))
        ratios = [above / below, *([(above - noise**2) / (below - noise**2)] if noise else [])]
        lines[count + 1] += " " + " ".join(f"{f'{100 * r:.1f} %':>18}" for r in ratios)
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
    parser.add_argument("run", help="directory of a run on task=regression/functions or nlp/formal_languages")
    parser.add_argument("words", nargs="*", help="keys to change: runner.test_episodes=... task.noise=...")
    parser.add_argument("--baselines", nargs="*", help="regression: the first is what the learner is measured by")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    asked = parser.parse_intermixed_args()
    set_up_logging()
    directory, run, _ = rebuild("in_context", [asked.run, *asked.words], allowed=("task.", "runner."), trust=Trust())
    run.load(directory.path / "checkpoints" / ("best.pt" if run.runner.select == "best" else "last.pt"))
    noise = float(run.config["task"].get("noise", 0))
    kind = run.task.spec.kind
    of = {"learned": run.test()[""].curves}
    of |= {name: baseline(run, name, noise) for name in (asked.baselines or BASELINES[kind])}
    found = {metric: {name: curves[metric] for name, curves in of.items()} for metric in METRICS[kind]}
    for metric, curves in found.items():
        print("\n".join(table(curves, noise) if kind == "regression" else [metric, *rows(curves), ""]))
    for name, value in run.task.references("test", range(run.runner.test_episodes)).items():
        print(f"{name}: {value:.4f}")
    if asked.json:
        stored: dict[str, Any] = {
            metric: {name: [Estimate.of(column).as_dict() for column in c.unbind(1)] for name, c in curves.items()}
            for metric, curves in found.items()
        }
        asked.json.write_text(json.dumps({"task": run.config["task"], **stored}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"in_context: {error}")
