"""Estimators of feature vectors: a learner adapts to the training rows, its support set."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from metarun.adapted.learner import AdaptedLearner, fitting_way
from metarun.adapted.temperature import fit_temperature
from metarun.algorithms.supervised import SupervisedAlgorithm
from metarun.config.build import construct
from metarun.config.catalogue import entry
from metarun.config.schema import attributes
from metarun.errors import UserError
from metarun.sklearn import learners
from metarun.tasks.episode import Labelled, Spec
from metarun.tasks.inputs import Inputs, is_frozen

MOST_CALIBRATED = 500
"""Largest number of training rows to which a temperature is fitted by leave-one-out."""


class _FewShot(BaseEstimator):
    """The base class of classifier and regressor, which holds the learner."""

    _kind: Literal["classification", "regression"]

    def __init__(self, run: Any = None, *, algorithm: str) -> None:
        self.run = run
        self.algorithm = algorithm

    def _learner(self, width: int, outputs: int) -> SupervisedAlgorithm:
        """Return the learner in float64, so that predictions do not depend on how many rows are asked at once.

        Args:
            width: Number of features of the training rows.
            outputs: Number of classes, or of targets.
        """
        algorithm = self._untrained(width, outputs) if self.run is None else learners.given(self.run)
        spec, name = algorithm.spec, type(self).__name__
        if spec.kind != self._kind:
            raise ValueError(f"run: {name} needs a learner for {self._kind}, and this one is for {spec.kind}")
        model: Any = algorithm.model
        reads: int | None = model.width if is_frozen(model) else None
        if reads is None and spec.modality == "vector":
            (reads,) = spec.input_shape
        if reads is None:
            raise ValueError(
                f"run: {name} reads feature vectors, and this learner {spec.modality} inputs; metarun.adapt "
                "takes those, and a run with model.tune=frozen the embeddings of its encoder"
            )
        if width != reads:
            raise ValueError(f"X has {width} features, and the learner of this run reads {reads}")
        return algorithm.double().eval()

    def _untrained(self, width: int, outputs: int) -> SupervisedAlgorithm:
        spec = Spec(self._kind, "vector", (width,), outputs)
        model, chosen = entry("model", "linear"), entry("algorithm", self.algorithm)
        if model is None or chosen is None:
            raise ValueError(f"algorithm={self.algorithm!r}: there is no such algorithm")
        if self._kind not in attributes(chosen.section).get("kinds", (self._kind,)):
            raise ValueError(f"algorithm={self.algorithm!r}: is not for {self._kind}")
        try:
            algorithm = construct(chosen.section, model=construct(model.section, spec=spec), spec=spec)
        except UserError as error:
            raise ValueError(f"algorithm={self.algorithm!r}: {error}") from None
        if not isinstance(algorithm, SupervisedAlgorithm) or any(p.requires_grad for p in algorithm.parameters()):
            raise ValueError(f"algorithm={self.algorithm!r}: has to be meta-trained; give a run")
        return algorithm


class FewShotClassifier(ClassifierMixin, _FewShot):
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

    _kind: Literal["classification", "regression"] = "classification"

    def __init__(self, run: Any = None, *, algorithm: str = "protonet") -> None:
        super().__init__(run, algorithm=algorithm)

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
        algorithm = self._fitting()
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
        algorithm = self._fitting()
        logits = learners.predicted(algorithm, self._support(algorithm), X)[:, : len(self.classes_)]
        return torch.from_numpy(logits / self.temperature_).softmax(-1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each row of ``X`` [M, F]."""
        places = self.predict_proba(X).argmax(1)
        return self.classes_[places]

    def _support(self, algorithm: SupervisedAlgorithm) -> Labelled:
        way = fitting_way(algorithm, len(self.classes_))
        return Labelled(torch.from_numpy(self.X_)[None], torch.from_numpy(self.labels_)[None], way)

    def _fitting(self) -> SupervisedAlgorithm:
        algorithm = self._learner(self.X_.shape[1], len(self.classes_))
        try:
            fitting_way(algorithm, len(self.classes_))
        except UserError as error:
            raise ValueError(str(error)) from None
        return algorithm


class FewShotRegressor(RegressorMixin, _FewShot):
    """A regressor of feature vectors that adapts a learner to its training rows, its support set.

    Args:
        run: Directory of a run of a family of regression whose inputs and targets are vectors, or its trained
            algorithm. Features and targets have the scale of the family. ``None``: ``algorithm`` without
            meta-training, for features and targets without their means.
        algorithm: An algorithm of the catalogue that learns nothing in meta-training, for ``run=None``.

    Attributes:
        n_features_in_: Number of features.
    """

    _kind: Literal["classification", "regression"] = "regression"

    def __init__(self, run: Any = None, *, algorithm: str = "ridge") -> None:
        super().__init__(run, algorithm=algorithm)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> FewShotRegressor:
        """Adapt to a support set.

        Args:
            X: Feature vectors [N, F].
            y: Targets [N] or [N, D].

        Returns:
            The estimator itself.

        Raises:
            ValueError: The learner predicts other targets, or reads other inputs.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, multi_output=True, y_numeric=True)
        y = y.astype(np.float64)
        self._targets_shape = y.shape[1:]
        self.X_, self.y_ = X.copy(), y.reshape(len(y), -1).copy()
        self._learner(X.shape[1], self.y_.shape[1])
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the predicted targets, [M] or [M, D] as those of the training rows, for vectors ``X`` [M, F]."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        algorithm = self._learner(self.X_.shape[1], self.y_.shape[1])
        inner, outer = (self.X_.mean(0), self.y_.mean(0)) if self.run is None else (0.0, 0.0)
        support = Labelled(torch.from_numpy(self.X_ - inner)[None], torch.from_numpy(self.y_ - outer)[None])
        return (learners.predicted(algorithm, support, X - inner) + outer).reshape(len(X), *self._targets_shape)

    def _learner(self, width: int, outputs: int) -> SupervisedAlgorithm:
        algorithm = super()._learner(width, outputs)
        if algorithm.spec.output_size != outputs:
            raise ValueError(
                f"y has {outputs} targets, and the learner of this run predicts {algorithm.spec.output_size}"
            )
        return algorithm
