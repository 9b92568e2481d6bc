"""Plot of a hyperparameter search: objective by trial, importance of keys, and objective by value of a key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarun.escape import for_plot

if TYPE_CHECKING:
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
    import optuna
    from matplotlib.figure import Figure

    trials = study.optuna.get_trials(deepcopy=False)
    done = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    names = list(study.objectives)
    shown = list(importance)[:3] if len(names) == 1 else []
    figure = Figure(figsize=(5 + 4 * (len(shown) + bool(importance)), 4), layout="constrained")
    first, *others = figure.subplots(1, 1 + bool(importance) + len(shown), squeeze=False)[0]
    if len(names) > 1:
        best = {t.number for t in study.best()}
        for chosen, colour, label in ((False, "0.6", "other trials"), (True, "tab:red", "Pareto-optimal")):
            points = [t.values for t in done if (t.number in best) == chosen]
            first.plot([p[0] for p in points], [p[1] for p in points], "o", color=colour, label=label)
        first.set(xlabel=names[0], ylabel=names[1])
    else:
        first.plot([t.number for t in done], [t.value for t in done], "o", color="tab:blue", label="finished")
        pruned = [t for t in trials if t.state == optuna.trial.TrialState.PRUNED and t.intermediate_values]
        last = [t.intermediate_values[max(t.intermediate_values)] for t in pruned]
        first.plot([t.number for t in pruned], last, "x", color="0.6", label="pruned")
        better = max if study.objectives[names[0]] == "maximize" else min
        best_yet = [better(float(t.value) for t in done[: i + 1]) for i in range(len(done))]  # type: ignore[arg-type]
        first.step([t.number for t in done], best_yet, where="post", color="tab:red", label="best so far")
        first.set(xlabel="trial", ylabel=f"validation {names[0]}")
    first.legend(fontsize=8)
    if importance:
        keys = list(importance)[::-1]
        others[0].barh([_short(key) for key in keys], [importance[key] for key in keys], color="tab:blue")
        others[0].set(xlabel="importance", title="importance of keys")
    for ax, key in zip(others[1:], shown, strict=False):
        values: Any = study.search.space[key]
        listed = isinstance(values, list)
        x = [t.params[key] for t in done if key in t.params]
        ax.plot(x, [t.value for t in done if key in t.params], "o", color="tab:blue")
        ax.set(xlabel=_short(key))
        if listed:
            ax.set_xticks(range(len(values)), [for_plot(value) for value in values])
        elif values.get("log"):
            ax.set_xscale("log")
    figure.savefig(path, dpi=110)


def _short(key: str) -> str:
    return key.removeprefix("algorithm.")
