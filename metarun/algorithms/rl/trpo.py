"""Curvature as products with vectors, for a trust-region step."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.algorithms.solve import Product


def differentiate(loss: Tensor, at: Tensor) -> tuple[Tensor, Product]:
    """Gradient of a scalar ``loss``, and its Hessian as ``v -> H v``; ``v`` has the shape of ``at``."""
    (gradient,) = torch.autograd.grad(loss, at, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, at, v, retain_graph=True)[0]

    return gradient.detach(), product
