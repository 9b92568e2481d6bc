"""Plot of a hyperparameter search: objective by trial, importance of keys, and objective by value of a key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.search.study import Study

MIN_TRIALS = 4
"""Minimum number of finished trials for which importances are computed."""


def importances(study: Study) -> dict[str, float]:
    """Return the importance of each key by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), largest first.

    Returns an empty dictionary for fewer than :data:`MIN_TRIALS` finished trials or several objectives.
    """
    import optuna

    done = study.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(done) < MIN_TRIALS or len(study.objectives) > 1:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study.optuna, evaluator=evaluator))


def draw(study: Study, importance: Mapping[str, float], path: Path) -> None:
    """Draw a search and write it to ``path``. Two objectives are plotted against each other."""
    counts = ", ".join(f"{count} {state}" for state, count in study.counts().items())
    with style.applied():
        drawn = figure(study, importance)
        goals = ", ".join(f"{goal} validation {name}" for name, goal in study.objectives.items())
        spent = f"{counts} trials of {study.iterations} iterations"
        style.entitle(drawn, f"search/{study.folder.path.name}: {goals}", spent)
        style.save(drawn, path)


def figure(study: Study, importance: Mapping[str, float]) -> Figure:
    """Draw panels of the objective by trial, the importances, and the objective by each of the three main keys."""
    import optuna
    from matplotlib.figure import Figure

    trials = study.optuna.get_trials(deepcopy=False)
    done = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    names = list(study.objectives)
    shown = list(importance)[:3] if len(names) == 1 else []
    count = 1 + bool(importance) + len(shown)
    columns = min(3, count)
    rows = -(-count // columns)
    made = Figure(figsize=(4.2 * columns if count > 1 else 6, 3.6 * rows + 0.4), layout="constrained")
    first, *others = made.subplots(rows, columns, squeeze=False).flat
    for unused in others[count - 1 :]:
        unused.remove()
    first.grid(visible=True)
    if len(names) > 1:
        best = {t.number for t in study.best()}
        for chosen, mark, colour, name in ((False, "o", style.TRUTH, "other trials"),
                                           (True, "D", style.LATE, "Pareto-optimal trials")):  # fmt: skip
            points = [t.values for t in done if (t.number in best) == chosen]
            first.plot([p[0] for p in points], [p[1] for p in points], mark, color=colour, label=name)
        first.set(xlabel=style.metric_name(names[0]), ylabel=style.metric_name(names[1]))
    else:
        objective = f"validation {style.metric_name(names[0])}"
        first.plot([t.number for t in done], [t.value for t in done], "o", color=style.EARLY, label="finished trial")
        pruned = [t for t in trials if t.state == optuna.trial.TrialState.PRUNED and t.intermediate_values]
        last = [t.intermediate_values[max(t.intermediate_values)] for t in pruned]
        if pruned:
            first.plot([t.number for t in pruned], last, "x", color=style.TRUTH, label="pruned trial, its last value")
        better = max if study.objectives[names[0]] == "maximize" else min
        best_yet = [better(float(t.value) for t in done[: i + 1]) for i in range(len(done))]  # type: ignore[arg-type]
        first.step([t.number for t in done], best_yet, where="post", color=style.LATE, label="best so far")
        first.set(xlabel="trial", ylabel=objective)
        style.counted(first.xaxis)
    if importance:
        keys = list(importance)[::-1]
        others[0].barh([style.label(_short(key)) for key in keys], [importance[k] for k in keys], color=style.EARLY)
        others[0].set(xlabel="importance (share)", title="importance of keys")
    for ax, key in zip(others[1:], shown, strict=False):
        values: Any = study.search.space[key]
        with_key = [t for t in done if key in t.params]
        ax.plot([t.params[key] for t in with_key], [t.value for t in with_key], "o", color=style.EARLY)
        ax.set(xlabel=style.label(_short(key)), ylabel=objective)
        ax.grid(visible=True)
        if isinstance(values, list):
            ax.set_xticks(range(len(values)), [style.label(value, 1.0) for value in values])
        elif values.get("log"):
            style.logarithmic(ax)
        elif all(isinstance(t.params[key], int) for t in with_key):
            style.counted(ax.xaxis)
    style.legend(made, first)
    return made


def _short(key: str) -> str:
    return key.removeprefix("algorithm.")
