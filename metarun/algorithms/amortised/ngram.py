"""An n-gram language model of the support strings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.amortised.language import Fit, LanguageBaseline, histories
from metarun.errors import require
from metarun.tasks.episode import Spec
from metarun.types import Positive


class Ngram(LanguageBaseline):
    """Interpolated n-grams with Witten-Bell smoothing (Chen & Goodman 1998, TR-10-98, section 2.5).

    Let c(h v) count how often symbol v follows the history h of n - 1 symbols, and d(h) the distinct symbols that
    follow it. Then

        p_n(v | h) = (c(h v) + d(h) p_n-1(v | h')) / (c(h) + d(h)),

    where h' is h without its oldest symbol and p_0 is uniform. An unseen history therefore backs off to the shorter
    one. Strings are padded with begin markers. Counts come from the support strings and, as for an in-context learner,
    from the earlier symbols of the query string itself.
    """

    def __init__(self, model: nn.Module, spec: Spec, *, order: Positive) -> None:
        super().__init__(model, spec)
        require(
            (spec.output_size + 2) ** (order - 1) < 2**62,
            f"algorithm.order={order}: histories of {order - 1} of {spec.output_size} symbols are too many to number",
        )
        self.order = order

    def fit(self, x: Tensor, y: Tensor) -> Fit:
        symbols, dtype = self.spec.output_size, torch.get_default_dtype()
        named = torch.arange(symbols, device=x.device)
        followed = (y.flatten(1)[..., None] == named).to(dtype)  # [T, N L, symbols]; nothing follows an end

        def predict(query: Tensor) -> Tensor:
            length = query.shape[-1]
            own = (query[..., 1:, None] == named).to(dtype)  # what followed each place but the last
            before = torch.ones(length, length - 1, dtype=torch.bool, device=x.device).tril(-1)
            p = torch.full((*query.shape, symbols), 1 / symbols, dtype=dtype, device=x.device)
            for known in range(self.order):
                there, here = histories(x, known, symbols), histories(query, known, symbols)
                same = (here.flatten(1)[:, :, None] == there.flatten(1)[:, None, :]).to(dtype)
                earlier = ((here[..., :, None] == here[..., None, :-1]) & before).to(dtype)
                counts = (same @ followed).view(p.shape) + earlier @ own
                different = (counts > 0).sum(-1, keepdim=True)
                total = counts.sum(-1, keepdim=True) + different
                p = torch.where(total > 0, (counts + different * p) / total.clamp(min=1), p)
            return p.log()

        return predict

    def protocol(self) -> dict[str, Any]:
        return {"order": self.order}
