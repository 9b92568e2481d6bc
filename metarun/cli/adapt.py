"""``metarun adapt RUN --support PATH [--query PATH]``: adapt a run's learner to a task of the user's own."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metarun import strict_json, style
from metarun.cli.arguments import Arguments
from metarun.errors import RunFailed, UserError, require
from metarun.escape import for_csv, printable
from metarun.runs.stored import latest_here, recorded, reread
from metarun.tasks.same_data import named

if TYPE_CHECKING:
    from torch import Tensor

    from metarun.adapted.learner import LeaveOneOut, Predictions
    from metarun.adapted.sources import Source
    from metarun.tasks.record import DataRecord

log = logging.getLogger("metarun")


@dataclass(frozen=True)
class Request:
    """The checked command line."""

    run: str
    support: str
    query: str | None
    out: str | None
    steps: int | None
    target: str | None
    labels: Literal["auto", "labelled", "unlabelled"]
    changes: list[str]
    """Overrides, ``key=value``."""


def run(arguments: Arguments) -> int:
    """Run the command. It writes predictions.csv, sheet.png, result.json and learner.pt to the output folder."""
    asked, trust = read(arguments), arguments.trust
    if asked.out is not None:
        require(not Path(asked.out).expanduser().is_file(), f"--out {asked.out}: there is a file of that name")
    # Imported here because they import torch.
    from metarun.adapted import scores, sources
    from metarun.adapted.learner import AdaptedLearner
    from metarun.adapted.picture import sheet
    from metarun.runs.learner import learner_of

    directory, config, facts, changes = reread(
        "adapt", [asked.run, *asked.changes], allowed=("task.", "algorithm.", "runner."), trust=trust
    )
    meta_trained = learner_of(directory, config, facts, changes)
    algorithm, inputs = meta_trained.algorithm, meta_trained.inputs
    inputs.check()
    given = sources.support(inputs, Path(asked.support).expanduser(), asked.target)
    tell("support", given)
    learner = AdaptedLearner.adapt(
        algorithm, inputs, given.items, given.targets, steps=asked.steps, seed=meta_trained.seed
    )
    if inputs.spec.modality == "table":
        learner.calibrate()
    queries = predictions = None
    if asked.query is not None:
        path = Path(asked.query).expanduser()
        queries = sources.query(inputs, path, learner.classes, given, asked.labels)
        tell("query", queries)
        x = inputs.tensor(queries.items, algorithm.model)
    score = "accuracy" if learner.classes else "mse"
    result: dict[str, Any] = {
        "run": str(directory.path),
        "iterations": meta_trained.iteration,
        "changes": changes,
        "support": {"path": asked.support, "examples": len(given.items), "classes": learner.classes,
                    "notes": given.notes},
    }  # fmt: skip
    print(
        f"adapted to {len(given.items)} examples" + (f" of {len(learner.classes)} classes" if learner.classes else "")
    )
    result["support"]["meta_trained_on"] = report_seen_classes(learner.classes, recorded(directory))
    alone = learner.leave_one_out()
    support = contents(inputs.spec.modality, given, learner.support.x[0])
    result["leave_one_out"] = report_leave_one_out(score, alone, support)
    if queries is not None:
        predictions = learner.predict_prepared(x)
        known = set(support)
        in_support = [content in known for content in contents(inputs.spec.modality, queries, x)]
        result["query"] = {"path": asked.query, "examples": len(queries.items), "notes": queries.notes}
        result["query"] |= report_queries(score, queries, predictions, in_support)
    found = None
    if queries is not None and predictions is not None and queries.targets:
        found = scores.score(learner, given, queries, x, predictions)
        print(f"  {found.beside}")
        result["query"] |= {"ci95": [found.low, found.high], "baselines": found.baselines}
    out = folder_for_results(asked.out, directory.path)
    if queries is not None:
        write_table(out / "predictions.csv", inputs.spec.modality, queries, learner.classes, predictions)
    learner.save(out, config)
    with style.applied():
        figure = sheet(inputs.spec, given, queries, learner, predictions)
        about = f"{directory.path.resolve().parent.name}/{directory.path.resolve().name}"
        told = str(found) if found else scores.of_leave_one_out(learner, alone)
        style.entitle(figure, f"{about}, adapted to {len(given.items)} examples", told)
        figure.savefig(out / "sheet.png")
    (out / "result.json").write_text(strict_json.dumps(result, indent=1))
    print(printable(f"results    {out}"))
    if alone.diverged:
        raise RunFailed(
            f"adaptation diverged for {alone.diverged} of the support examples left out; try fewer --steps or a "
            "smaller algorithm.inner_lr"
        )
    return 0


def tell(option: str, source: Source) -> None:
    """Log how the data were read, on stderr, since results go to stdout."""
    log.info("%s: %s", option, "; ".join(source.notes))


def report_seen_classes(classes: Sequence[str], record: DataRecord | None) -> list[str]:
    """Print which ``classes`` have the names of meta-training classes of the run, and return these."""
    seen = record.trained_on(classes, {}) if record else []
    if seen:
        print(
            printable(f"{len(seen)} of the {len(classes)} classes have names of meta-training classes: {named(seen)}")
        )
        print("  if they are the same classes, the scores below are not about new ones")
    return seen


def report_leave_one_out(score: str, alone: LeaveOneOut, support: Sequence[Hashable]) -> dict[str, Any]:
    """Print the leave-one-out score and return its entry of result.json.

    Args:
        score: Name of the score.
        alone: The leave-one-out result.
        support: Content of each support example, to count duplicates.
    """
    twins = sum(count for count in Counter(support).values() if count > 1)
    if alone.score is not None:
        print(f"leave-one-out {score} {alone.score:.4g} on {alone.evaluated} of them")
        if twins:
            print(f"  {twins} of which have a duplicate in the support set, which stays when one of them is left out")
    elif not alone.diverged:
        print("no leave-one-out score: it needs two examples of a class")
    found = {score: alone.score, "judged": alone.evaluated, "only_one_of_their_class": alone.left_out}
    return {**found, "diverged": alone.diverged, "with_identical": twins}


def report_queries(score: str, queries: Source, predictions: Predictions, known: Sequence[bool]) -> dict[str, Any]:
    """Print the score of the predictions, if answers are known, and return their entry of result.json.

    Args:
        score: Name of the score.
        queries: The queries.
        predictions: Predictions for them.
        known: True for each query that is identical to a support example.
    """
    found: dict[str, Any] = {"in_support": sum(known)}
    if any(known):
        print(f"{sum(known)} of {len(known)} queries are identical to a support example")
    if queries.targets:
        found[score] = score_of(queries.targets, predictions, range(len(known)))
        print(f"query {score} {found[score]:.4g} on {len(known)}")
        new = [i for i, seen in enumerate(known) if not seen]
        if 0 < len(new) < len(known):
            found[f"{score}_of_new"] = score_of(queries.targets, predictions, new)
            print(f"query {score} {found[f'{score}_of_new']:.4g} on the {len(new)} that are not in the support set")
    return found


def contents(modality: str, source: Source, x: Tensor) -> list[Hashable]:
    """Return one value for each input; identical inputs have equal values. Images are compared as prepared (``x``)."""
    if modality == "image":
        return [row.tobytes() for row in x.cpu().numpy()]
    return [str(item) for item in source.items]  # a gap, NaN, is not equal to itself


def folder_for_results(out: str | None, run: Path) -> Path:
    """Create the folder ``--out``, or a new one in the run directory."""
    folder = Path(out or run / "adapted" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"--out {folder}: no folder can be made there ({reason})") from None
    return folder


def read(arguments: Arguments) -> Request:
    """Check the names and options; raises :class:`UserError` if they do not go together."""
    names, support, query = arguments.names, arguments["--support"], arguments["--query"]
    require(bool(names), f"adapt needs a run directory: {arguments.command.words}{latest_here()}")
    require(len(names) == 1, f"adapt takes one run, not {len(names)}: {arguments.command.words}")
    require(support is not None, "--support is missing: the examples to adapt to")
    labelled, unlabelled = arguments["--labelled"], arguments["--unlabelled"]
    require(not (labelled and unlabelled), "--labelled and --unlabelled exclude each other")
    labels: Literal["auto", "labelled", "unlabelled"] = (
        "labelled" if labelled else "unlabelled" if unlabelled else "auto"
    )
    require(query is not None or labels == "auto", f"--{labels} needs --query")
    return Request(
        names[0],
        support,
        query,
        arguments["--out"],
        arguments["--steps"],
        arguments["--target"],
        labels,
        arguments.overrides,
    )


def score_of(targets: Sequence[Any], predictions: Predictions, which: Sequence[int]) -> float:
    """Return the accuracy, or the mean squared error, on the queries ``which``."""
    if predictions.labels:
        return sum(targets[i] == predictions.labels[i] for i in which) / len(which)
    import torch

    answers = predictions.values[torch.tensor(which)]
    return float((answers - torch.tensor([targets[i] for i in which], dtype=answers.dtype)).square().mean())


def write_table(path: Path, modality: str, asked: Any, classes: list[str], predictions: Any) -> None:
    """Write a row for each input: its name, its target if known, and the prediction."""
    known = ["known"] if asked.targets else []
    if classes:
        header = ["predicted", *(f"p_{name}" for name in classes)]
        numbers = predictions.probabilities.tolist()
        found = [[label, *(f"{p:.6g}" for p in row)] for label, row in zip(predictions.labels, numbers, strict=True)]
        targets = [[target] for target in asked.targets]
    else:
        header = [f"predicted_{i}" for i in range(predictions.values.shape[1])]
        found = [[f"{v:.8g}" for v in row] for row in predictions.values.tolist()]
        targets = [[" ".join(f"{v:g}" for v in target)] for target in asked.targets]
    targets = targets or [[] for _ in found]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(for_csv, [{"image": "file", "text": "text"}.get(modality, "input"), *known, *header]))
        for name, target, prediction in zip(asked.names(), targets, found, strict=True):
            writer.writerow(map(for_csv, [name, *target, *prediction]))
