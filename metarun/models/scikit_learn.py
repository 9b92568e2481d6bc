"""Classifiers and regressors of scikit-learn as models of tables: the baselines of prior-fitted networks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from metarun.extras import imported
from metarun.tasks.episode import Spec

SMALLEST = 1e-6
"""Probability of a class that the classifier gives none."""
Estimator = Literal["nearest_neighbours", "linear", "decision_tree", "random_forest", "gradient_boosting"]


class ScikitLearn(nn.Module):
    """An estimator of scikit-learn with its defaults, fitted to the support rows of each task anew.

    Gaps take the median of the column, and columns are standardised, both by the support rows.

    Args:
        spec: The task family.
        estimator: ``linear`` is logistic regression for classes and ridge regression for values.
    """

    modalities: ClassVar[tuple[str, ...]] = ("table",)
    role: ClassVar[str] = "in_context"

    def __init__(self, spec: Spec, *, estimator: Estimator) -> None:
        super().__init__()
        self.estimator, self.outputs = estimator, spec.output_size
        self.is_classifier = spec.kind == "classification"
        self._new()  # refuses what is not installed

    def _new(self) -> Any:
        imported("sklearn", "model=scikit_learn", "tabular")
        from sklearn import ensemble, linear_model, neighbors, tree
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        classifiers = {
            "nearest_neighbours": neighbors.KNeighborsClassifier,
            "linear": linear_model.LogisticRegression,
            "decision_tree": tree.DecisionTreeClassifier,
            "random_forest": ensemble.RandomForestClassifier,
            "gradient_boosting": ensemble.GradientBoostingClassifier,
        }
        regressors = {
            "nearest_neighbours": neighbors.KNeighborsRegressor,
            "linear": linear_model.Ridge,
            "decision_tree": tree.DecisionTreeRegressor,
            "random_forest": ensemble.RandomForestRegressor,
            "gradient_boosting": ensemble.GradientBoostingRegressor,
        }
        kind = (classifiers if self.is_classifier else regressors)[self.estimator]
        seeded = self.estimator in ("decision_tree", "random_forest", "gradient_boosting")
        own = kind(random_state=0) if seeded else kind()
        if self.estimator == "linear" and self.is_classifier:
            own.set_params(max_iter=1000)
        return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), own)

    def forward(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predict query rows [T, M, C] from support rows [T, N, C] with labels [T, N, K].

        Returns:
            Log probabilities [T, M, K]; in regression the values and zeros, [T, M, 2 K].
        """
        found = [self._predict(*task) for task in zip(x, y, queries, strict=True)]
        return torch.stack([torch.as_tensor(each, dtype=x.dtype) for each in found]).to(x.device)

    def _predict(self, x: Tensor, y: Tensor, queries: Tensor) -> Any:
        rows, asked = x.cpu().double().numpy(), queries.cpu().double().numpy()
        if not self.is_classifier:
            values = y.cpu().double().numpy()
            columns = [self._new().fit(rows, column).predict(asked) for column in values.T]
            return np.concatenate([np.stack(columns, 1), np.zeros((len(asked), self.outputs))], 1)
        labels = y.argmax(-1).cpu().numpy()
        found = np.zeros((len(asked), self.outputs))
        if len(np.unique(labels)) == 1:
            found[:, labels[0]] = 1
        else:
            model = self._new()
            if self.estimator == "nearest_neighbours":
                model[-1].set_params(n_neighbors=min(5, len(labels)))
            model.fit(rows, labels)
            found[:, model.classes_] = model.predict_proba(asked)
        return np.log(np.maximum(found, SMALLEST))
