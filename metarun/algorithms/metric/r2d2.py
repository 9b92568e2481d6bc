"""R2-D2 and LR-D2: ridge and logistic regression on the support set, solved in closed form and differentiated."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metarun.algorithms.metric.head import Head, membership
from metarun.algorithms.supervised import Adapted
from metarun.tasks.episode import Labelled
from metarun.types import Positive, Rate


class Regression(Head):
    """A linear map of the features with a squared penalty on its weights, found from the support set.

    ``penalty`` and ``scale``, which multiplies the predictions before the softmax, are learned from there under
    ``learn`` (as logarithms). ``bias`` appends a feature that is always 1, whose weight is penalised like the others.
    """

    def __init__(self, *, penalty: Rate, scale: Rate, learn: bool, bias: bool) -> None:
        super().__init__()
        self.log_penalty, self.log_scale = (
            nn.Parameter(torch.tensor(float(v)).log(), requires_grad=learn) for v in (penalty, scale)
        )
        self.bias = bias

    def with_bias(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones_like(x[..., :1])], -1) if self.bias else x

    def extra_repr(self) -> str:
        return f"bias={self.bias}"


class Ridge(Regression):
    """R2-D2 (Bertinetto, Henriques, Torr & Vedaldi 2019, arXiv:1805.08136, equations 4-6).

    W = X^T (X X^T + penalty I)^-1 Y, by Woodbury's identity where there are fewer examples than features, else
    (X^T X + penalty I)^-1 X^T Y; the same. Y are ones and zeros, and logits ``scale`` X' W; in regression Y are the
    targets, and ``scale`` is without effect. (An offset to all logits, the paper's beta, is without effect on a
    softmax and is left out.)
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification", "regression")

    def fit(self, support: Labelled) -> Adapted:
        x = self.with_bias(support.x)
        classes = self.spec.kind == "classification"
        y = membership(support.y, support.way, x.dtype).transpose(1, 2) if classes else support.y
        weights = ridge(x, y, self.log_penalty.exp())
        scale = self.log_scale.exp() if classes else 1.0
        return lambda query: scale * (self.with_bias(query) @ weights)


class Logistic(Regression):
    """LR-D2: logistic regression of each class against the others (the same paper, equations 7-8).

    ``steps`` of Newton's method (iteratively reweighted least squares) from zero weights, through which gradients
    flow; each is a ridge regression, solved by Woodbury's identity:

        w <- X^T (X X^T + penalty S^-1)^-1 z,   z = X w + S^-1 (y - mu),   S = mu (1 - mu),   mu = sigmoid(X w)
    """

    def __init__(self, *, steps: Positive, penalty: Rate, scale: Rate, learn: bool, bias: bool) -> None:
        super().__init__(penalty=penalty, scale=scale, learn=learn, bias=bias)
        self.steps = steps

    def fit(self, support: Labelled) -> Adapted:
        x = self.with_bias(support.x)
        sign = 2 * membership(support.y, support.way, x.dtype) - 1
        dual = newton(x @ x.transpose(1, 2), sign, self.log_penalty.exp(), self.steps)
        weights = x.transpose(1, 2) @ dual.transpose(1, 2)
        return lambda query: self.log_scale.exp() * (self.with_bias(query) @ weights)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, steps={self.steps}"


def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """The weights [T, F, D] that minimise |x w - y|^2 + ``penalty`` |w|^2; ``x`` [T, N, F], ``y`` [T, N, D]."""
    across = x.transpose(1, 2)
    if x.shape[1] < x.shape[2]:
        return across @ solved(x @ across, penalty, y)
    return solved(across @ x, penalty, across @ y)


def newton(kernel: Tensor, sign: Tensor, penalty: Tensor, steps: int) -> Tensor:
    """The dual weights a [T, W, N], with w = X^T a, of W logistic regressions on ``kernel`` = X X^T [T, N, N].

    ``sign`` [T, W, N] is 1 for the class and -1 for others. With R = S^1/2 a step is a = R (R K R + penalty)^-1 R z,
    where R = 1 / (2 cosh(m / 2)) at the margin m = X w, and R z = R m + sign exp(-sign m / 2): no division by a
    variance that vanishes.
    """
    dual = torch.zeros_like(sign)
    for _ in range(steps):
        margin = dual @ kernel
        root = 0.5 / torch.cosh(margin / 2)
        target = root * margin + sign * torch.exp(-sign * margin / 2)
        weighted = root[..., None] * kernel[:, None] * root[..., None, :]
        dual = root * solved(weighted, penalty, target[..., None])[..., 0]
    return dual


def solved(symmetric: Tensor, penalty: Tensor, b: Tensor) -> Tensor:
    """(``symmetric`` + ``penalty`` I)^-1 ``b``, by Cholesky without reading back from the device whether it exists."""
    eye = torch.eye(symmetric.shape[-1], dtype=b.dtype, device=b.device)
    factor, _ = torch.linalg.cholesky_ex(symmetric + penalty * eye)
    return torch.cholesky_solve(b, factor)
