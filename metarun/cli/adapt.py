"""``metarun adapt RUN --support PATH [--query PATH]``: adapt a run's learner to a task of the user's own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metarun import strict_json, style
from metarun.cli.adapt_report import report_leave_one_out, report_queries, report_seen_classes
from metarun.cli.arguments import Arguments
from metarun.errors import RunFailed, require
from metarun.escape import printable
from metarun.runs.stored import latest_here
from metarun.tracking.files import make_output_folder

if TYPE_CHECKING:
    from metarun.adapted.learner import AdaptedLearner
    from metarun.adapted.predictions import LeaveOneOut, Predictions
    from metarun.adapted.source import Source
    from metarun.runs.origin import Origin

log = logging.getLogger("metarun")


@dataclass(frozen=True)
class Request:
    """The checked command line."""

    run: str | None
    support: str
    query: str | None
    out: str | None
    steps: int | None
    target: str | None
    abstain: float | None
    labels: Literal["auto", "labelled", "unlabelled"]
    changes: list[str]
    """Overrides, ``key=value``."""


def run(arguments: Arguments) -> int:
    """Run the command. It writes predictions.csv, sheet.png, confusion.png, result.json and learner.pt to the output
    folder.
    """
    asked, trust = read(arguments), arguments.trust
    if asked.out is not None:
        require(not Path(asked.out).expanduser().is_file(), f"--out {asked.out}: there is a file of that name")
    # Imported here because they import torch.
    from metarun.adapted import scores, sources
    from metarun.models.pretrained import fingerprint
    from metarun.runs.origin import origin_of_run, pretrained_origin

    path = Path(asked.support).expanduser()
    if asked.run is None or Path(asked.run).is_dir():  # before torch and the run's data are loaded
        sources.refuse_missing("--support", path)
        if asked.query is not None:
            sources.refuse_missing("--query", Path(asked.query).expanduser())
    origin = pretrained_origin(path) if asked.run is None else origin_of_run([asked.run, *asked.changes], trust)
    learner, given = adapted(asked, origin)
    inputs = learner.inputs
    queries = predictions = None
    if asked.query is not None:
        queries = sources.query(inputs, Path(asked.query).expanduser(), learner.classes, given, asked.labels)
        tell("query", queries)
        x = inputs.tensor(queries.items, origin.learner.algorithm.model)
    score = "accuracy" if learner.classes else "mse"
    result: dict[str, Any] = {
        "run": str(origin.run) if origin.run else None,
        "learner": origin.name,
        "iterations": origin.learner.iteration,
        "changes": origin.changes,
        "support": {"path": asked.support, "examples": len(given.items), "classes": learner.classes,
                    "notes": given.notes},
    }  # fmt: skip
    start = "" if origin.run else f"{origin.name}, "
    print(
        f"{start}adapted to {len(given.items)} examples"
        + (f" of {len(learner.classes)} classes" if learner.classes else "")
    )
    result["support"]["meta_trained_on"] = report_seen_classes(learner.classes, origin.record)
    alone = learner.leave_one_out()
    support = contents(learner, given)
    found_alone = scores.score_alone(learner, given, alone)
    result["leave_one_out"] = report_leave_one_out(score, alone, support, found_alone)
    if asked.abstain is not None:
        kept = scores.Coverage.of(alone, given.targets, asked.abstain)
        print(kept)
        result["leave_one_out"]["abstention"] = kept.as_dict()
    found = None
    if queries is not None:
        predictions = learner.predict_prepared(x)
        known = set(support)
        in_support = [content in known for content in contents(learner, queries)]
        found = scores.score(learner, given, queries, predictions) if queries.targets else None
        result["query"] = {
            "path": asked.query,
            "examples": len(queries.items),
            "notes": queries.notes,
            **report_queries(score, queries, predictions, in_support, found, asked.abstain),
        }
    out = folder_for_results(asked.out, origin.folder)
    if queries is not None and predictions is not None:
        write_table(out / "predictions.csv", queries, learner, predictions)
    sizes = dict(sorted(Counter(given.targets).items())) if learner.classes else {}
    learner.about = {
        "origin": origin.about(),
        "support": {"examples": len(given.items), "classes": sizes, "content": fingerprint(
            {"x": learner.support.x, "y": learner.support.y})[:32]},
        "leave_one_out": result["leave_one_out"],
        "query": {key: value for key, value in result.get("query", {}).items() if key not in ("path", "notes")},
        "steps": asked.steps,
    }  # fmt: skip
    learner.save(out, origin.sections)
    told = str(found) if found else scores.of_leave_one_out(alone, found_alone)
    draw(out, learner, (given, alone), (queries, predictions), (origin.name, told))
    (out / "result.json").write_text(strict_json.dumps(result, indent=1))
    print(printable(f"results    {out}"))
    if alone.diverged:
        raise RunFailed(
            f"adaptation diverged for {alone.diverged} of the support examples left out; try fewer --steps or a "
            "smaller algorithm.inner_lr"
        )
    return 0


def adapted(asked: Request, origin: Origin) -> tuple[AdaptedLearner, Source]:
    """Read the support set and adapt the learner to it."""
    from metarun.adapted import sources
    from metarun.adapted.learner import AdaptedLearner
    from metarun.adapted.temperature import fit_temperature

    meta_trained = origin.learner
    inputs = meta_trained.inputs
    inputs.check()
    given = sources.support(inputs, Path(asked.support).expanduser(), asked.target)
    if inputs.spec.modality == "table":
        given.notes += beyond_training(len(given.items), origin.sections)
    tell("support", given)
    learner = AdaptedLearner.adapt(
        meta_trained.algorithm, inputs, given.items, given.targets, steps=asked.steps, seed=meta_trained.seed
    )
    learner.columns, learner.abstain = given.read_columns(), asked.abstain
    require(
        asked.abstain is None or bool(learner.classes), "--abstain is for classes, and this learner predicts numbers"
    )
    if inputs.spec.modality == "table":
        learner.calibrate()
    elif asked.run is None:
        fit_temperature(learner)
    return learner, given


def draw(
    out: Path,
    learner: AdaptedLearner,
    support: tuple[Source, LeaveOneOut],
    query: tuple[Source | None, Predictions | None],
    title: tuple[str, str],
) -> None:
    """Write the sheet of support set and queries, and the confusion matrices of classes with known answers.

    Args:
        out: Folder of the pictures.
        learner: The adapted learner.
        support: The support set with its leave-one-out evaluation.
        query: The queries with their predictions.
        title: Name of the learner's origin, and its score in words.
    """
    from metarun.adapted.confusion import confusion, confusion_figure
    from metarun.adapted.picture import sheet

    (given, alone), (queries, predictions) = support, query
    lines = (f"{title[0]}, adapted to {len(given.items)} examples", title[1])
    with style.applied():
        figure = sheet(learner.inputs.spec, given, queries, learner, predictions)
        style.entitle(figure, *lines)
        style.save(figure, out / "sheet.png")
        panels = []
        if learner.classes and alone.predictions is not None:
            targets = [given.targets[row] for row in alone.rows]
            counts = confusion(learner.classes, targets, alone.predictions.labels)
            panels.append((f"support set by leave-one-out, {len(targets)} examples", counts))
        if learner.classes and queries is not None and predictions is not None and queries.targets:
            counts = confusion(learner.classes, queries.targets, predictions.labels)
            most_probable = ", their most probable class" if learner.abstain else ""
            panels.append((f"{len(queries.targets)} queries{most_probable}", counts))
        if panels:
            figure = confusion_figure(learner.classes, panels)
            style.entitle(figure, *lines)
            style.save(figure, out / "confusion.png")


def beyond_training(rows: int, sections: Mapping[str, Any]) -> list[str]:
    """Return a note if a table has more support rows than those of meta-training.

    Args:
        rows: Number of support rows.
        sections: Configuration of the run.
    """
    trained = sections["algorithm"].get("train_shot") or sections["task"].get("shot")
    return [f"the learner was trained on at most {trained} rows"] if trained and rows > trained else []


def tell(option: str, source: Source) -> None:
    """Log how the data were read, on stderr, since results go to stdout."""
    log.info("%s: %s", option, "; ".join(source.notes))


def contents(learner: AdaptedLearner, source: Source) -> list[Hashable]:
    """Return one value for each input; identical inputs have equal values. Images are compared as prepared."""
    if learner.inputs.spec.modality == "image":
        return [sha256(row.tobytes()).digest() for row in learner.inputs.raw(source.items, None).numpy()]
    return [str(item) for item in source.items]  # a gap, NaN, is not equal to itself


def folder_for_results(out: str | None, below: Path) -> Path:
    """Create the folder ``--out``, or a new one in the folder ``below``."""
    folder = Path(out or below / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}").expanduser()
    make_output_folder(folder)
    return folder


def read(arguments: Arguments) -> Request:
    """Check the names and options; raises :class:`UserError` if they do not go together."""
    names, support, query = arguments.names, arguments["--support"], arguments["--query"]
    require(len(names) <= 1, f"adapt takes one run, not {len(names)}: {arguments.command.words}")
    require(support is not None, "--support is missing: the examples to adapt to")
    require(
        bool(names) or not arguments.overrides, f"adapt changes keys of a run: {arguments.command.words}{latest_here()}"
    )
    labelled, unlabelled = arguments["--labelled"], arguments["--unlabelled"]
    require(not (labelled and unlabelled), "--labelled and --unlabelled exclude each other")
    labels: Literal["auto", "labelled", "unlabelled"] = (
        "labelled" if labelled else "unlabelled" if unlabelled else "auto"
    )
    require(query is not None or labels == "auto", f"--{labels} needs --query")
    return Request(
        names[0] if names else None,
        support,
        query,
        arguments["--out"],
        arguments["--steps"],
        arguments["--target"],
        arguments["--abstain"],
        labels,
        arguments.overrides,
    )


def write_table(path: Path, queries: Source, learner: AdaptedLearner, predictions: Predictions) -> None:
    """Write a row for each query: its name, its target if known, and the prediction."""
    from metarun.adapted.streamed import PredictionsFile

    targets = queries.targets if learner.classes else [" ".join(f"{v:g}" for v in each) for each in queries.targets]
    with PredictionsFile(path, learner, known=bool(targets)) as table:
        table.add(queries.names(), predictions, targets)
