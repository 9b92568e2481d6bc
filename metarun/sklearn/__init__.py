"""Learners as estimators of scikit-learn, which fit into pipelines and cross-validation.

``few_shot`` has those of feature vectors, such as the embeddings of a frozen encoder: ``FewShotClassifier`` and
``FewShotRegressor``. ``in_context`` has those of tables: ``TabularInContext`` and ``TabularInContextRegressor``.
``learners`` reads runs. For example::

    from metarun.sklearn import TabularInContext

    model = TabularInContext(run="outputs/tables/2026-11-29_08-47-27-547128_s0")
    model.fit(x, y).predict_proba(new)
"""

import importlib.util

from metarun.errors import UserError

if importlib.util.find_spec("sklearn") is None:
    raise UserError("metarun.sklearn needs scikit-learn: pip install 'metarun[tabular]'")

from metarun.sklearn.few_shot import FewShotClassifier, FewShotRegressor
from metarun.sklearn.in_context import TabularInContext, TabularInContextRegressor

__all__ = ["FewShotClassifier", "FewShotRegressor", "TabularInContext", "TabularInContextRegressor"]
