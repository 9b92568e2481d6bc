"""Learners as estimators of scikit-learn: ``FewShotClassifier``, ``TabularInContext``, ``TabularInContextRegressor``.

The first reads feature vectors, such as the embeddings of a frozen encoder, and the others read tables. They fit into
pipelines and cross-validation::

    from metarun.sklearn import TabularInContext

    model = TabularInContext(run="outputs/tables/2026-11-29_08-47-27-547128_s0")
    model.fit(x, y).predict_proba(new)
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.adapted.learner import AdaptedLearner, fitting_way
from metarun.adapted.temperature import fit_temperature
from metarun.algorithms.amortised.prior_fitted import PriorFitted
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import construct
from metarun.config.catalogue import entry
from metarun.errors import UserError
from metarun.tasks.episode import Labelled, Spec
from metarun.tasks.inputs import Inputs, is_frozen

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise UserError("metarun.sklearn needs scikit-learn: pip install 'metarun[tabular]'") from None

AT_ONCE = 1024
"""Number of rows that are predicted in one forward pass."""
MOST_CALIBRATED = 500
"""Largest number of training rows to which a temperature is fitted by leave-one-out."""


class _InContext(BaseEstimator):
    """The base class of classifier and regressor, which holds the support rows and the learner of the run."""

    _kind: str

    def __init__(self, run: Any = None, *, permutations: int = 4, most_rows: int = 1000) -> None:
        self.run = run
        self.permutations = permutations
        self.most_rows = most_rows

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _validated(self, X: Any, y: Any) -> tuple[NDArray[np.float64], NDArray[Any]]:
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2)
        return X, y

    def _kept(self, count: int, first: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows that are used: all, or ``most_rows`` of them, drawn with a fixed seed after the rows
        ``first``.
        """
        others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(count), first))
        return np.sort(np.concatenate([first, others])[: self.most_rows])

    def _learner(self) -> PriorFitted:
        """Return the learner in float64, so that predictions do not depend on how many rows are asked at once."""
        if self.run is None:
            raise ValueError("run is None: give the directory of a run of metarun whose learner reads tables")
        algorithm = _loaded(str(self.run)) if isinstance(self.run, str | Path) else copy.deepcopy(self.run)
        if not isinstance(algorithm, PriorFitted) or algorithm.spec.kind != self._kind:
            raise ValueError(
                f"run: {type(self).__name__} needs a run of algorithm=prior_fitted on {self._kind} of tables"
            )
        algorithm.permutations = self.permutations
        return algorithm.double().eval()

    def _answers(self, X: Any, y: Tensor, way: int) -> NDArray[np.float64]:
        """Return the predictions [M, outputs] of new rows."""
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        algorithm, support = self._learner(), Labelled(torch.from_numpy(self.X_)[None], y[None], way)
        return _predicted(algorithm, support, X)


def _predicted(algorithm: SupervisedAlgorithm, support: Labelled, X: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the predictions [M, outputs] for rows [M, F] of the learner adapted to one support set."""
    with torch.no_grad():
        adapted = algorithm.adapt(support)
        return torch.cat([adapted(part[None])[0] for part in torch.from_numpy(X).split(AT_ONCE)]).numpy()


@lru_cache(maxsize=4)
def _loaded(run: str) -> PriorFitted:
    from metarun.api import load

    algorithm = load(run).learner.algorithm.to("cpu")
    if not isinstance(algorithm, PriorFitted):
        raise ValueError(f"run={run!r}: metarun.sklearn needs a run of algorithm=prior_fitted")
    return algorithm


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """A classifier of feature vectors that adapts a learner to its training rows, its support set.

    The probabilities are calibrated by a temperature: the one that the run's validation fitted, else one that is fitted
    by leave-one-out on up to 500 training rows.

    Args:
        run: Directory of a run, or its trained algorithm, that classifies rows of numbers, or the embeddings of a
            frozen encoder. ``None``: ``algorithm`` without meta-training.
        algorithm: An algorithm of the catalogue that learns nothing in meta-training, for ``run=None``.

    Attributes:
        classes_: The classes, sorted.
        n_features_in_: Number of features.
        temperature_: Number by which logits are divided.
    """

    def __init__(self, run: Any = None, *, algorithm: str = "protonet") -> None:
        self.run = run
        self.algorithm = algorithm

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Adapt to a support set.

        Args:
            X: Feature vectors [N, F].
            y: Classes [N].

        Returns:
            The estimator itself.

        Raises:
            ValueError: There is a single class, the learner has outputs for fewer classes or reads other inputs.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has 1 class; a classifier needs at least 2 classes")
        self.X_, self.labels_ = X.copy(), labels.astype(np.int64)
        algorithm = self._learner()
        self.temperature_ = algorithm.temperature or 1.0
        if algorithm.temperature is None and len(X) <= MOST_CALIBRATED:
            names = [str(name) for name in self.classes_]
            adapted = AdaptedLearner(algorithm, Inputs(algorithm.spec), self._support(algorithm), names)
            fit_temperature(adapted)
            self.temperature_ = adapted.temperature
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities of the classes, [M, classes], for feature vectors ``X`` [M, F]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        algorithm = self._learner()
        logits = _predicted(algorithm, self._support(algorithm), X)[:, : len(self.classes_)]
        return torch.from_numpy(logits / self.temperature_).softmax(-1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row of ``X`` [M, F]."""
        places = self.predict_proba(X).argmax(1)
        return self.classes_[places]

    def _support(self, algorithm: SupervisedAlgorithm) -> Labelled:
        way = fitting_way(algorithm, len(self.classes_))
        return Labelled(torch.from_numpy(self.X_)[None], torch.from_numpy(self.labels_)[None], way)

    def _learner(self) -> SupervisedAlgorithm:
        """Return the learner in float64, so that predictions do not depend on how many rows are asked at once."""
        algorithm = self._untrained() if self.run is None else _given(self.run)
        spec, width = algorithm.spec, self.X_.shape[1]
        if spec.kind != "classification":
            raise ValueError(f"run: FewShotClassifier needs a learner of classes, and this one is for {spec.kind}")
        model: Any = algorithm.model
        reads: int | None = model.width if is_frozen(model) else None
        if reads is None and spec.modality == "vector":
            (reads,) = spec.input_shape
        if reads is None:
            raise ValueError(
                f"run: FewShotClassifier reads feature vectors, and this learner {spec.modality} inputs; metarun.adapt "
                "takes those, and a run with model.tune=frozen the embeddings of its encoder"
            )
        if width != reads:
            raise ValueError(f"X has {width} features, and the learner of this run reads {reads}")
        try:
            fitting_way(algorithm, len(self.classes_))
        except UserError as error:
            raise ValueError(str(error)) from None
        return algorithm.double().eval()

    def _untrained(self) -> SupervisedAlgorithm:
        spec = Spec("classification", "vector", (self.X_.shape[1],), len(self.classes_))
        model, chosen = entry("model", "linear"), entry("algorithm", self.algorithm)
        if model is None or chosen is None:
            raise ValueError(f"algorithm={self.algorithm!r}: there is no such algorithm; protonet is one")
        try:
            algorithm = construct(chosen.section, model=construct(model.section, spec=spec), spec=spec)
        except UserError as error:
            raise ValueError(f"algorithm={self.algorithm!r}: {error}") from None
        if not isinstance(algorithm, SupervisedAlgorithm) or any(p.requires_grad for p in algorithm.parameters()):
            raise ValueError(f"algorithm={self.algorithm!r}: has to be meta-trained; give a run")
        return algorithm


def _given(run: Any) -> SupervisedAlgorithm:
    """Return the algorithm of a run directory, or a copy of the algorithm itself."""
    algorithm = _trained(str(run)) if isinstance(run, str | Path) else copy.deepcopy(run)
    if not isinstance(algorithm, SupervisedAlgorithm):
        raise ValueError(f"run: must be a run directory or a trained algorithm, not {type(run).__name__}")
    return algorithm


@lru_cache(maxsize=4)
def _trained(run: str) -> SupervisedAlgorithm:
    from metarun.api import load

    return load(run).learner.algorithm.to("cpu")


class TabularInContext(ClassifierMixin, _InContext):
    """A classifier that reads the training rows and predicts new ones in one forward pass of a meta-trained network.

    Args:
        run: Directory of a run of ``algorithm=prior_fitted`` on classification, or its trained algorithm.
        permutations: Cyclic permutations of the labels that predictions are averaged over.
        most_rows: Largest number of training rows; of more, as many are drawn with a fixed seed.

    Attributes:
        classes_: The classes, sorted.
        n_features_in_: Number of columns.
    """

    _kind = "classification"

    def fit(self, X: Any, y: Any) -> TabularInContext:
        """Keep the training rows.

        Args:
            X: Rows [N, C]; NaN marks a gap.
            y: Classes [N].

        Returns:
            The estimator itself.

        Raises:
            ValueError: There is a single class, or more than the network has outputs.
        """
        X, y = self._validated(X, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        outputs = self._learner().spec.output_size
        if len(self.classes_) < 2:
            raise ValueError("y has 1 class; a classifier needs at least 2 classes")
        if len(self.classes_) > outputs:
            raise ValueError(f"y has {len(self.classes_)} classes; the learner of this run takes up to {outputs}")
        kept = self._kept(len(X), np.unique(labels, return_index=True)[1])  # a row of every class
        self.X_, self.labels_ = X[kept], labels[kept].astype(np.int64)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities of the classes, [M, classes], for rows ``X`` [M, C]."""
        check_is_fitted(self)
        logits = self._answers(X, torch.from_numpy(self.labels_), len(self.classes_))[:, : len(self.classes_)]
        return torch.from_numpy(logits).softmax(-1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row of ``X`` [M, C]."""
        places = self.predict_proba(X).argmax(1)
        return self.classes_[places]


class TabularInContextRegressor(RegressorMixin, _InContext):
    """A regressor that reads the training rows and predicts new ones in one forward pass of a meta-trained network.

    Args:
        run: Directory of a run of ``algorithm=prior_fitted`` on regression, or its trained algorithm.
        permutations: Has no effect.
        most_rows: Largest number of training rows; of more, as many are drawn with a fixed seed.

    Attributes:
        n_features_in_: Number of columns.
    """

    _kind = "regression"

    def fit(self, X: Any, y: Any) -> TabularInContextRegressor:
        """Keep the training rows.

        Args:
            X: Rows [N, C]; NaN marks a gap.
            y: Targets [N].

        Returns:
            The estimator itself.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2, y_numeric=True
        )
        self._learner()
        kept = self._kept(len(X), np.arange(0))
        self.X_, self.targets_ = X[kept], y[kept].astype(np.float64)
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the mean of the predicted distribution for each row of ``X`` [M, C]."""
        check_is_fitted(self)
        return self._answers(X, torch.from_numpy(self.targets_)[:, None], 0)[:, 0]
