"""Estimators of scikit-learn: its own checks, a pipeline with cross-validation, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from metarun.algorithms.amortised.prior_fitted import PriorFitted
from metarun.config.build import construct
from metarun.config.catalogue import entry
from metarun.tasks.episode import Labelled, Spec

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from metarun.sklearn import FewShotClassifier, FewShotRegressor, TabularInContext, TabularInContextRegressor


class Kernel(torch.nn.Module):
    """Kernel regression on standardised columns in place of the transformer, which would have to be trained."""

    role = "in_context"

    def __init__(self, is_classifier: bool) -> None:
        super().__init__()
        self.is_classifier = is_classifier
        self.sharpness = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        mean, std = x.nanmean(1, keepdim=True), x.nan_to_num().std(1, keepdim=True) + 1e-9
        rows, asked = (((part - mean) / std).nan_to_num() for part in (x, queries))
        apart = (asked[:, :, None] - rows[:, None]).square().mean(-1)
        recalled = (-self.sharpness * apart).softmax(-1) @ y
        return (recalled + 1e-3).log() if self.is_classifier else torch.cat([recalled, 0 * recalled], -1)


def learner(kind: Any = "classification") -> PriorFitted:
    section = entry("algorithm", "prior_fitted")
    assert section is not None
    spec = Spec(kind, "table", (10,), 10 if kind == "classification" else 1)
    model = Kernel(kind == "classification")
    return construct({**section.section, "decay_over": None}, model=model, spec=spec)


@pytest.fixture(autouse=True)
def _runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs named by the kind of their learner. (A check hashes parameters, and modules have no stable hash.)"""
    monkeypatch.setattr("metarun.sklearn.learners.trained", learner)


@parametrize_with_checks(
    [
        FewShotClassifier(),
        FewShotRegressor(),
        TabularInContext("classification"),
        TabularInContextRegressor("regression"),
    ]
)
def test_scikit_learns_own_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def test_it_works_in_a_pipeline_and_in_cross_validation() -> None:
    noise = np.random.default_rng(0)
    x = noise.normal(size=(60, 3))
    y = np.where(x[:, 1] > 0, "up", "down")
    x[noise.random(x.shape) < 0.05] = np.nan
    model = make_pipeline(SimpleImputer(), TabularInContext(learner()))
    assert cross_val_score(model, x, y, cv=3).mean() > 0.8


def test_few_shot_predicts_as_prototypes_do() -> None:
    noise = np.random.default_rng(0)
    y = np.repeat(["a", "b", "c"], 5)
    x = noise.normal(size=(15, 8)) + np.repeat(np.eye(3, 8), 5, 0)
    new = noise.normal(size=(7, 8))
    fitted = FewShotClassifier().fit(x, y)
    centres = np.stack([x[y == name].mean(0) for name in "abc"])
    logits = -np.square(new[:, None] - centres).sum(-1) / fitted.temperature_
    expected = torch.from_numpy(logits).softmax(-1).numpy()
    assert fitted.predict_proba(new) == pytest.approx(expected, abs=1e-9)
    assert fitted.predict(new).tolist() == [fitted.classes_[i] for i in logits.argmax(1)]
    assert fitted.temperature_ > 1  # prototypes of five examples are not as certain as their distances say


def embedded(**changes: Any) -> Any:
    """Prototypes on the embeddings of a frozen encoder, in place of a run's."""

    class Frozen(torch.nn.Module):
        is_frozen, width = True, 8

        def example(self) -> torch.Tensor:
            return torch.zeros(2, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    section = entry("algorithm", "protonet")
    assert section is not None
    return construct({**section.section, **changes}, model=Frozen(), spec=Spec("classification", "image", (3, 9, 9), 5))


def test_few_shot_takes_the_learner_and_temperature_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = embedded()
    trained.temperature = 3.0
    monkeypatch.setattr("metarun.sklearn.learners.trained", lambda run: {"images": trained, "numbers": learner()}[run])
    x, y = np.random.default_rng(0).normal(size=(12, 8)), np.arange(12) % 3
    fitted = FewShotClassifier("images").fit(x, y)
    assert fitted.temperature_ == 3
    assert (fitted.predict_proba(x) == FewShotClassifier(trained).fit(x, y).predict_proba(x)).all()
    with pytest.raises(ValueError, match="X has 7 features, and the learner of this run reads 8"):
        FewShotClassifier("images").fit(x[:, :7], y)
    with pytest.raises(ValueError, match="reads feature vectors, and this learner table inputs"):
        FewShotClassifier("numbers").fit(x, y)
    with pytest.raises(ValueError, match="algorithm='maml': has to be meta-trained; give a run"):
        FewShotClassifier(algorithm="maml").fit(x, y)
    with pytest.raises(ValueError, match="there is no such algorithm"):
        FewShotClassifier(algorithm="protonett").fit(x, y)


def maml(outputs: int) -> Any:
    spec = Spec("regression", "vector", (2,), outputs)
    torch.manual_seed(0)
    sections = [entry("model", "mlp"), entry("algorithm", "maml")]
    model, algorithm = (each.section for each in sections if each is not None)
    return construct(algorithm, model=construct(model, spec=spec), spec=spec)


@pytest.mark.parametrize("outputs", [1, 3])
def test_few_shot_regression_predicts_as_the_adapted_learner(outputs: int) -> None:
    noise = np.random.default_rng(0)
    x, y, new = noise.normal(size=(9, 2)), noise.normal(size=(9, outputs)), noise.normal(size=(5, 2))
    algorithm = maml(outputs).double()
    fitted = FewShotRegressor(algorithm).fit(x, y[:, 0] if outputs == 1 else y)
    with torch.no_grad():
        support = Labelled(torch.from_numpy(x)[None], torch.from_numpy(y)[None])
        expected = algorithm.adapt(support)(torch.from_numpy(new)[None])[0].numpy()
    assert fitted.predict(new) == pytest.approx(expected[:, 0] if outputs == 1 else expected, abs=1e-12)
    with pytest.raises(ValueError, match=f"y has 2 targets, and the learner of this run predicts {outputs}"):
        fitted.fit(x, x)
    with pytest.raises(ValueError, match="needs a learner for classification, and this one is for regression"):
        FewShotClassifier(algorithm).fit(x, np.arange(9) % 2)


def test_few_shot_regression_without_a_run_is_ridge_regression() -> None:
    noise = np.random.default_rng(0)
    x, new = noise.normal(size=(20, 4)) + 3, noise.normal(size=(6, 4)) + 3
    y = x @ noise.normal(size=(4, 2)) + 50
    section = entry("algorithm", "ridge")
    assert section is not None
    expected = Ridge(section.section["penalty"]).fit(x, y).predict(new)
    assert FewShotRegressor().fit(x, y).predict(new) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="algorithm='protonet': is not for regression"):
        FewShotRegressor(algorithm="protonet").fit(x, y)


def test_of_many_rows_several_draws_by_class_are_averaged() -> None:
    x = np.arange(50.0)[:, None]
    y = np.repeat(["a", "b", "c"], [39, 10, 1])
    with pytest.warns(UserWarning, match=r"50 training rows: predictions are averaged over 3 draws of most_rows=10"):
        fitted = TabularInContext(learner(), most_rows=10, draws=3).fit(x, y)
    assert [np.bincount(fitted.labels_[rows]).tolist() for rows in fitted.drawn_] == [[7, 2, 1]] * 3
    assert len({tuple(rows) for rows in fitted.drawn_}) == 3
    alone = [TabularInContext(learner()).fit(x[rows], y[rows]).predict_proba(x) for rows in fitted.drawn_]
    assert fitted.predict_proba(x) == pytest.approx(np.mean(alone, axis=0))
    with pytest.warns(UserWarning, match="3 draws of most_rows=20"):
        values = TabularInContextRegressor(learner("regression"), most_rows=20, draws=3).fit(x, x[:, 0])
    alone = [TabularInContextRegressor(learner("regression")).fit(x[rows], x[rows, 0]).predict(x)
             for rows in values.drawn_]  # fmt: skip
    assert values.predict(x) == pytest.approx(np.mean(alone, axis=0))


def test_what_does_not_fit_is_refused() -> None:
    x = np.arange(24.0)[:, None]
    with pytest.raises(ValueError, match="run is None"):
        TabularInContext().fit(x, x[:, 0] > 3)
    with pytest.raises(ValueError, match="y has 12 classes; the learner of this run takes up to 10"):
        TabularInContext(learner()).fit(x, np.arange(24) // 2)
    with pytest.raises(ValueError, match=r"needs a run of algorithm=prior_fitted on regression"):
        TabularInContextRegressor(learner()).fit(x, x[:, 0])
