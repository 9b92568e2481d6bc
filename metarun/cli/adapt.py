"""``metarun adapt RUN --support PATH [--query PATH]``: apply a run's learner to a task of the user's own."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from metarun.cli.output import set_up_logging
from metarun.cli.stored import rebuild, trained
from metarun.errors import UserError, nearest, require

OPTIONS = {
    "--support": "what to adapt to: a folder of one folder of images a class, or a CSV of text,label or of numbers",
    "--query": "what to predict: images, a CSV of text, a CSV of inputs; with known answers, these are judged",
    "--out": "folder for what comes of it; else RUN/adapted/<time>",
    "--steps": "adaptation steps; else as many as on the run's test tasks",
}


def run(words: list[str]) -> int:
    """The command. Writes predictions.csv, sheet.png, result.json and learner.pt into a folder of their own."""
    set_up_logging()
    name, options = parse(words)
    # Imported here for torch's sake.
    from metarun.adapted import sources
    from metarun.adapted.inputs import Inputs
    from metarun.adapted.learner import AdaptedLearner
    from metarun.adapted.picture import sheet
    from metarun.algorithms.base import SupervisedAlgorithm

    directory, experiment, _ = rebuild("adapt", [name], allowed=())
    iteration = trained(directory, experiment)[1]
    algorithm, task, config = experiment.algorithm, experiment.task, experiment.config
    if not isinstance(algorithm, SupervisedAlgorithm):
        raise UserError(f"{name}: a learner of control tasks adapts by acting, not from files")
    inputs = Inputs.of(task)
    given = sources.support(inputs.spec, Path(options["--support"]).expanduser())
    learner = AdaptedLearner.adapt(
        algorithm, inputs, given.items, given.targets, steps=options["--steps"], seed=experiment.seed
    )
    asked = None
    if options["--query"] is not None:
        asked = sources.query(inputs.spec, Path(options["--query"]).expanduser(), learner.classes)

    out = Path(options["--out"] or directory.path / "adapted" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}").expanduser()
    out.mkdir(parents=True, exist_ok=True)
    alone = learner.leave_one_out()
    score = "accuracy" if learner.classes else "mse"
    result: dict[str, Any] = {
        "run": str(directory.path),
        "iterations": iteration,
        "support": {"path": options["--support"], "examples": len(given.items), "classes": learner.classes},
        "leave_one_out": {score: alone.score, "judged": alone.judged, "only_one_of_their_class": alone.left_out},
    }
    print(
        f"adapted to {len(given.items)} examples" + (f" of {len(learner.classes)} classes" if learner.classes else "")
    )
    if alone.judged:
        print(f"leave-one-out {score} {alone.score:.4g} on {alone.judged} of them")
    else:
        print("no leave-one-out: it takes two examples of a class")
    predictions = None
    if asked is not None:
        predictions = learner.predict(asked.items)
        write_table(out / "predictions.csv", inputs.spec.modality, asked, learner.classes, predictions)
        result["query"] = {"path": options["--query"], "examples": len(asked.items)}
        if asked.targets:
            known = judged(asked.targets, predictions)
            result["query"][score] = known
            print(f"query {score} {known:.4g} on {len(asked.items)}")
    texts = task.train_texts if hasattr(task, "train_texts") else None
    learner.save(out, config, texts)
    sheet(inputs.spec, given, asked, learner, predictions).savefig(out / "sheet.png", dpi=110)
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"results    {out}")
    return 0


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The run, and the options' values."""
    usage = "metarun adapt RUN --support PATH [--query PATH] [--out DIR] [--steps N]"
    names, values, rest = [], dict.fromkeys(OPTIONS), list(words)
    while rest:
        word, separator, value = rest.pop(0).partition("=")
        if not word.startswith("-"):
            names.append(word + separator + value)
        elif word not in OPTIONS:
            raise UserError(f"unknown option '{word}'{nearest(word, OPTIONS)}   {usage}")
        else:
            require(bool(separator or rest), f"{word} needs a value: {OPTIONS[word]}")
            values[word] = value if separator else rest.pop(0)
    require(len(names) == 1, f"adapt takes one run, not {len(names)}: {usage}")
    require(values["--support"] is not None, f"--support is missing: {OPTIONS['--support']}")
    steps: Any = values["--steps"]
    require(steps is None or str(steps).isdigit(), f"--steps {steps}: not a count")
    return names[0], {**values, "--steps": None if steps is None else int(steps)}


def judged(targets: list[Any], predictions: Any) -> float:
    """Accuracy, or mean squared error, of what is known."""
    if predictions.labels:
        return sum(a == b for a, b in zip(targets, predictions.labels, strict=True)) / len(targets)
    import torch

    return float((predictions.values - torch.tensor(targets, dtype=predictions.values.dtype)).square().mean())


def write_table(path: Path, modality: str, asked: Any, classes: list[str], predictions: Any) -> None:
    """A row for each input: what it is, its target where known, and the prediction."""
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
        writer.writerow([{"image": "file", "text": "text"}.get(modality, "input"), *known, *header])
        writer.writerows([name, *t, *f] for name, t, f in zip(asked.names(), targets, found, strict=True))
