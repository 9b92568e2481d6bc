"""Estimators of tables: a meta-trained network reads the training rows and predicts new ones."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from metarun.algorithms.amortised.prior_fitted import PriorFitted
from metarun.sklearn import learners
from metarun.tasks.episode import Labelled
from metarun.tasks.tabular.labels import spread_over_classes


class _InContext(BaseEstimator):
    """The base class of classifier and regressor, which holds the support rows and the learner of the run."""

    _kind: str

    def __init__(self, run: Any = None, *, most_rows: int = 1000, draws: int = 4) -> None:
        self.run = run
        self.most_rows = most_rows
        self.draws = draws

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _validated(self, X: Any, y: Any, numeric: bool) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Return checked training rows [N, C] and targets [N], which must be ``numeric`` in regression."""
        X, y = validate_data(
            self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2, y_numeric=numeric
        )
        return X, y

    def _drawn(self, classes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return the rows that are read at once: all, or several draws of ``most_rows`` of them by class.

        Args:
            classes: The class of each row; all equal in regression.
        """
        count = len(classes)
        if count <= self.most_rows:
            return [np.arange(count)]
        drawn = f"{self.draws} draws of most_rows={self.most_rows:,}"
        warnings.warn(f"{count:,} training rows: predictions are averaged over {drawn}", stacklevel=3)
        orders = [spread_over_classes(classes, np.random.default_rng(draw)) for draw in range(self.draws)]
        return [np.sort(order[: self.most_rows]) for order in orders]

    def _learner(self) -> PriorFitted:
        """Return the learner in float64, so that predictions do not depend on how many rows are asked at once."""
        if self.run is None:
            raise ValueError("run is None: give the directory of a run of metarun whose learner reads tables")
        algorithm = learners.given(self.run)
        if not isinstance(algorithm, PriorFitted) or algorithm.spec.kind != self._kind:
            raise ValueError(
                f"run: {type(self).__name__} needs a run of algorithm=prior_fitted on {self._kind} of tables"
            )
        return algorithm.double().eval()

    def _answers(self, X: Any, y: Tensor, way: int) -> list[NDArray[np.float64]]:
        """Return the predictions [M, outputs] of new rows by each draw of the training rows."""
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        algorithm, rows = self._learner(), torch.from_numpy(self.X_)
        supports = [Labelled(rows[each][None], y[each][None], way) for each in self.drawn_]
        return [learners.predicted(algorithm, support, X) for support in supports]


class TabularInContext(ClassifierMixin, _InContext):
    """A classifier that reads the training rows and predicts new ones in one forward pass of a meta-trained network.

    Args:
        run: Directory of a run of ``algorithm=prior_fitted`` on classification, or its trained algorithm.
        permutations: Cyclic permutations of the labels that predictions are averaged over.
        most_rows: Largest number of training rows that are read at once.
        draws: Number of draws of ``most_rows`` rows by class, with fixed seeds, that predictions are averaged over if
            there are more rows.

    Attributes:
        classes_: The classes, sorted.
        n_features_in_: Number of columns.
    """

    _kind = "classification"

    def __init__(self, run: Any = None, *, permutations: int = 4, most_rows: int = 1000, draws: int = 4) -> None:
        super().__init__(run, most_rows=most_rows, draws=draws)
        self.permutations = permutations

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
        X, y = self._validated(X, y, numeric=False)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        outputs = self._learner().spec.output_size
        if len(self.classes_) < 2:
            raise ValueError("y has 1 class; a classifier needs at least 2 classes")
        if len(self.classes_) > outputs:
            raise ValueError(f"y has {len(self.classes_)} classes; the learner of this run takes up to {outputs}")
        self.X_, self.labels_ = X.copy(), labels.astype(np.int64)
        self.drawn_ = self._drawn(self.labels_)
        return self

    def _learner(self) -> PriorFitted:
        algorithm = super()._learner()
        algorithm.permutations = self.permutations
        return algorithm

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities of the classes, [M, classes], for rows ``X`` [M, C]."""
        check_is_fitted(self)
        way = len(self.classes_)
        answers = self._answers(X, torch.from_numpy(self.labels_), way)
        return np.mean([torch.from_numpy(logits[:, :way]).softmax(-1).numpy() for logits in answers], axis=0)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row of ``X`` [M, C]."""
        places = self.predict_proba(X).argmax(1)
        return self.classes_[places]


class TabularInContextRegressor(RegressorMixin, _InContext):
    """A regressor that reads the training rows and predicts new ones in one forward pass of a meta-trained network.

    Args:
        run: Directory of a run of ``algorithm=prior_fitted`` on regression, or its trained algorithm.
        most_rows: Largest number of training rows that are read at once.
        draws: Number of draws of ``most_rows`` rows, with fixed seeds, that predictions are averaged over if
            there are more rows.

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
        X, y = self._validated(X, y, numeric=True)
        self._learner()
        self.X_, self.targets_ = X.copy(), y.astype(np.float64)
        self.drawn_ = self._drawn(np.zeros(len(X), np.int64))
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the mean of the predicted distribution for each row of ``X`` [M, C]."""
        check_is_fitted(self)
        return np.mean(self._answers(X, torch.from_numpy(self.targets_)[:, None], 0), axis=0)[:, 0]
