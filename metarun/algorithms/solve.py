"""Linear systems known only by their products with vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def conjugate_gradient(product: Product, b: Tensor, iterations: int) -> Tensor:
    """x with ``product(x)`` close to ``b`` [P], for a symmetric and as a rule positive definite ``product``.

    Always ``iterations`` of them: to stop early would be to read the residual back.
    """
    tiny = torch.finfo(b.dtype).tiny
    x, residual, direction = torch.zeros_like(b), b, b
    norm = b @ b
    for _ in range(iterations):
        curved = product(direction)
        curvature = direction @ curved
        step = norm / torch.where(curvature.abs() < tiny, tiny, curvature)
        x = x + step * direction
        residual = residual - step * curved
        before, norm = norm, residual @ residual
        direction = residual + norm / before.clamp_min(tiny) * direction
    return x


def neumann_series(product: Product, b: Tensor, iterations: int, step: float) -> Tensor:
    """x with ``product(x)`` close to ``b`` [P]: step * sum over j = 0..iterations of (1 - step * product)^j b.

    The truncated Neumann series of Lorraine, Vicol & Duvenaud 2020, arXiv:1911.02590, Algorithm 3. It converges
    where ``product``'s eigenvalues lie between 0 and 2 / ``step``, and diverges where one lies outside.
    """
    total, term = b, b
    for _ in range(iterations):
        term = term - step * product(term)
        total = total + term
    return step * total
