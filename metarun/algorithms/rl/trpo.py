"""The pieces of a trust-region step: curvature as products with vectors, and conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def differentiate(loss: Tensor, at: Tensor) -> tuple[Tensor, Product]:
    """Gradient of a scalar ``loss``, and its Hessian as ``v -> H v``; ``v`` has the shape of ``at``."""
    (gradient,) = torch.autograd.grad(loss, at, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, at, v, retain_graph=True)[0]

    return gradient.detach(), product


def conjugate_gradient(product: Product, b: Tensor, iterations: int) -> Tensor:
    """x with ``product(x)`` close to ``b`` [P], for a positive definite ``product``.

    Always ``iterations`` of them: to stop early would be to read the residual back.
    """
    tiny = torch.finfo(b.dtype).tiny
    x, residual, direction = torch.zeros_like(b), b, b
    norm = b @ b
    for _ in range(iterations):
        curved = product(direction)
        step = norm / (direction @ curved).clamp_min(tiny)
        x = x + step * direction
        residual = residual - step * curved
        before, norm = norm, residual @ residual
        direction = residual + norm / before.clamp_min(tiny) * direction
    return x
