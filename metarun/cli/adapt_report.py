"""The results of ``metarun adapt``, as printed and as stored in result.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from metarun.escape import printable
from metarun.tasks.same_data import named

if TYPE_CHECKING:
    from metarun.adapted.predictions import LeaveOneOut, Predictions
    from metarun.adapted.scores import Score
    from metarun.adapted.source import Source
    from metarun.tasks.record import DataRecord


def report_seen_classes(classes: Sequence[str], record: DataRecord | None) -> list[str]:
    """Print which ``classes`` have the names of meta-training classes of the run, and return these."""
    seen = record.trained_on(classes, {}) if record else []
    if seen:
        print(
            printable(f"{len(seen)} of the {len(classes)} classes have names of meta-training classes: {named(seen)}")
        )
        print("  if they are the same classes, the scores below are not about new ones")
    return seen


def report_leave_one_out(
    score: str, alone: LeaveOneOut, support: Sequence[Hashable], found: Score | None
) -> dict[str, Any]:
    """Print the leave-one-out score and return its entry of result.json.

    Args:
        score: Name of the score.
        alone: The leave-one-out result.
        support: Content of each support example, to count duplicates.
        found: The accuracy with its interval and baselines; ``None`` in regression.
    """
    twins = sum(count for count in Counter(support).values() if count > 1)
    if alone.score is not None:
        print(f"leave-one-out {score} {alone.score:.4g} on {alone.evaluated} of them")
        if found is not None:
            print(f"  {found.beside}")
            if score == "accuracy" and max(found.baselines.values()) > alone.score:
                print("  a baseline does better: the learner may not suit these data   see metarun help data")
        if twins:
            print(f"  {twins} of which have a duplicate in the support set, which stays when one of them is left out")
    elif not alone.diverged:
        print("no leave-one-out score: it needs two examples of a class")
    beside = {} if found is None else {"ci95": [found.low, found.high], "baselines": found.baselines}
    counts = {"judged": alone.evaluated, "only_one_of_their_class": alone.left_out}
    return {score: alone.score, **counts, "diverged": alone.diverged, "with_identical": twins, **beside}


def report_queries(
    score: str,
    queries: Source,
    predictions: Predictions,
    known: Sequence[bool],
    found: Score | None,
    abstain: float | None,
) -> dict[str, Any]:
    """Print the score of the predictions, if answers are known, and return their entry of result.json.

    Args:
        score: Name of the score.
        queries: The queries.
        predictions: Predictions for them.
        known: True for each query that is identical to a support example.
        found: The score with its interval and baselines; ``None`` if no answers are known.
        abstain: Probability below which no class is named; ``None``: a class always is.
    """
    from metarun.adapted.scores import Coverage

    entry: dict[str, Any] = {"in_support": sum(known)}
    if any(known):
        print(f"{sum(known)} of {len(known)} queries are identical to a support example")
    if queries.targets:
        entry[score] = score_of(queries.targets, predictions, range(len(known)))
        print(f"query {score} {entry[score]:.4g} on {len(known)}")
        new = [i for i, seen in enumerate(known) if not seen]
        if 0 < len(new) < len(known):
            entry[f"{score}_of_new"] = score_of(queries.targets, predictions, new)
            print(f"query {score} {entry[f'{score}_of_new']:.4g} on the {len(new)} that are not in the support set")
    if found is not None:
        print(f"  {found.beside}")
        entry |= {"ci95": [found.low, found.high], "baselines": found.baselines}
        if abstain is not None:
            kept = Coverage.of_predictions(predictions, queries.targets, abstain)
            print(f"  {kept}")
            entry["abstention"] = kept.as_dict()
    return entry


def score_of(targets: Sequence[Any], predictions: Predictions, which: Sequence[int]) -> float:
    """Return the accuracy, or the mean squared error, on the queries ``which``."""
    if predictions.labels:
        return sum(targets[i] == predictions.labels[i] for i in which) / len(which)
    import torch

    answers = predictions.values[torch.tensor(which)]
    return float((answers - torch.tensor([targets[i] for i in which], dtype=answers.dtype)).square().mean())
