"""Model cards: what a learner is for, how it was made and scored, and where it ends, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.predictions import depend_on_each_other
from metarun.escape import for_markdown
from metarun.tasks.inputs import is_frozen

FILE = "model_card.md"
MOST = 50
"""Largest number of classes that are listed."""


def model_card(learner: AdaptedLearner, checked: str) -> str:
    """Return the model card of an exported learner.

    Args:
        learner: The learner. Without :attr:`AdaptedLearner.about`, as learners of earlier versions are, the card says
            less.
        checked: Result of the comparison of the files with the learner.
    """
    origin, support = _part(learner.about, "origin"), _part(learner.about, "support")
    algorithm, head = type(learner.algorithm).__name__, getattr(learner.algorithm, "head", None)
    name = origin.get("name") or algorithm
    examples, data = learner.support.y.shape[1], origin.get("data")
    parts = [
        f"# {for_markdown(name)}, adapted to {examples} examples\n",
        f"A few-shot learner of metarun {version('metarun')}. {for_markdown(checked)}.\n",
        "## Task\n",
        _table(
            {
                "predicts": _predicts(learner),
                "reads": _reads(learner),
                "classes": _classes(learner, _part(support, "classes")),
                "no class below": "" if learner.abstain is None else f"probability {learner.abstain:g}",
            }
        ),
        "## Protocol\n",
        _table(
            {
                "model": _model(learner),
                "algorithm": algorithm if head is None else f"{algorithm} with the head {type(head).__name__}",
                "meta-training": f"{origin['iterations']:,} iterations" if origin.get("iterations") else "none",
                "adaptation steps": "" if learner.steps is None else learner.steps,
                "temperature": f"{learner.temperature:.4g}" if learner.classes else "",
                **_part(origin, "changes"),
                **_part(origin, "protocol"),
            }
        ),
        "## Numbers\n",
        _numbers(learner.about),
        "## Data\n",
        _table(
            {
                "support set": f"{examples} examples, fingerprint {support.get('content', 'not recorded')}",
                "data of meta-training": f"fingerprint {data}" if data else "",
            }
        ),
        "## Limits\n",
        *(f"- {line}" for line in _limits(learner, origin)),
    ]
    return "\n".join(parts) + "\n"


def _predicts(learner: AdaptedLearner) -> str:
    if learner.classes:
        return f"probabilities of {len(learner.classes)} classes, in the order below"
    return f"{learner.support.y.shape[-1]} values"


def _reads(learner: AdaptedLearner) -> str:
    spec, preparation = learner.inputs.spec, learner.inputs.preparation
    if preparation is not None:
        colour = "grey" if preparation.channels == 1 else "RGB"
        ink = f", {preparation.ink} strokes of drawings" if preparation.ink else ""
        size = f"{preparation.height} x {preparation.width} pixels, resized by '{preparation.resize}'"
        return f"images, {colour}, {size}, uint8 in 0..255{ink}"
    if spec.modality == "text":
        longest = getattr(learner.algorithm.model, "max_tokens", None)
        return f"texts of up to {longest} tokens" if longest else "texts"
    columns = learner.columns.inputs if learner.columns else []
    return f"{spec.modality} {list(spec.input_shape)} {', '.join(columns)}"


def _classes(learner: AdaptedLearner, sizes: Mapping[str, Any]) -> str:
    named = [f"{name} ({sizes[name]} examples)" if name in sizes else name for name in learner.classes[:MOST]]
    more = f", and {len(learner.classes) - MOST} more" if len(learner.classes) > MOST else ""
    return ", ".join(named) + more


def _model(learner: AdaptedLearner) -> str:
    model = learner.algorithm.model
    count = sum(p.numel() for p in model.parameters())
    if learner.embedder is not None:
        count += sum(p.numel() for p in learner.embedder.parameters())
    return f"{type(model).__name__}, {count:,} parameters{', a frozen encoder' if is_frozen(model) else ''}"


def _numbers(about: Mapping[str, Any]) -> str:
    rows = []
    for title, part in (("support set by leave-one-out", "leave_one_out"), ("queries", "query")):
        found = _part(about, part)
        score = next((name for name in ("accuracy", "mse") if isinstance(found.get(name), float)), None)
        if score is not None:
            count = found.get("judged", found.get("examples", ""))
            low, high = found.get("ci95") or (None, None)
            interval = "" if low is None else f"{low:.3g} to {high:.3g}"
            beside = ", ".join(f"{name} {value:.3g}" for name, value in _part(found, "baselines").items())
            rows.append([title, f"{score} {found[score]:.4g}", interval, count, beside])
        kept = _part(found, "abstention")
        if isinstance(kept.get("accuracy"), float):
            low, high = kept["ci95"]
            rows.append([f"{title}, no class below {kept['threshold']:g}", f"accuracy {kept['accuracy']:.4g}",
                         f"{low:.3g} to {high:.3g}", kept["answered"], f"coverage {kept['coverage']:.3g}"])  # fmt: skip
    for name, found in _part(_part(about, "origin"), "test").items():
        if isinstance(found, Mapping) and isinstance(found.get("mean"), float):
            mean, half = found["mean"], found.get("ci95")
            interval = f"{mean - half:.4g} to {mean + half:.4g}" if isinstance(half, float) else ""
            rows.append(["test tasks of the run", f"{name} {mean:.4g}", interval, found.get("n", ""), ""])
    if not rows:
        return "No scores are recorded.\n"
    head = ["on", "score", "95 % interval", "n", "beside it"]
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)]) + "\n"


def _limits(learner: AdaptedLearner, origin: Mapping[str, Any]) -> list[str]:
    count, alone = learner.support.y.shape[1], _part(learner.about, "leave_one_out")
    lines = []
    if learner.classes:
        lines.append("Every input gets one of the classes above, also an input of none of them"
                     + ("." if learner.abstain is None else ", unless its probability is low."))  # fmt: skip
        lines.append(f"The scores rest on few examples: {count} in the support set. Read the intervals.")
    if alone.get("with_identical"):
        lines.append(
            f"{alone['with_identical']} support examples have a duplicate, which leave-one-out does not remove."
        )
    if depend_on_each_other(learner.algorithm):
        lines.append("It is transductive: predictions depend on which inputs are predicted together.")
    pretrained = getattr(learner.algorithm.model, "pretrained_on", None)
    if pretrained:
        lines.append(f"The encoder was pretrained on: {for_markdown(pretrained)}.")
    if not origin.get("test"):
        lines.append("The learner was not evaluated on held-out tasks.")
    lines.append("Inputs unlike the support examples (other cameras, other wording) were not tested.")
    return lines


def _part(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _table(values: Mapping[str, Any]) -> str:
    rows = [_row([name, value]) for name, value in values.items() if value not in ("", None)]
    return "\n".join([_row(["", ""]), _row(["---", "---"]), *rows]) + "\n"


def _row(cells: list[Any]) -> str:
    return f"| {' | '.join(cell if cell == '---' else for_markdown(cell) for cell in cells)} |"
