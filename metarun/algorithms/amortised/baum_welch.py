"""A hidden Markov model fitted to the support strings by expectation maximisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metarun.algorithms.amortised.language import Fit, LanguageBaseline
from metarun.tasks.episode import Spec
from metarun.types import NonNegative, Positive


class BaumWelch(LanguageBaseline):
    """Baum-Welch from ``restarts`` random starts (Baum et al. 1970; symbols on transitions: Jelinek 1976).

    The model starts in state 0 and emits a symbol at each transition: W[s, v, r] is the probability that state s emits
    symbol v and is followed by state r. Each of ``iterations`` EM steps sets W to the expected counts of transitions
    given the strings, plus ``smoothing``, normalised over v and r. The objective, sum log p(string) + ``smoothing``
    sum log W, never decreases. The restart with the highest objective makes the predictions: it filters the state from
    the symbols of a string so far. (Akyürek et al. 2024, arXiv:2401.12973, use a state for each pair of 20, and refit
    at every position.)
    """

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        states: Positive,
        restarts: Positive,
        iterations: Positive,
        smoothing: NonNegative,
    ) -> None:
        super().__init__(model, spec)
        self.states, self.restarts, self.iterations, self.smoothing = states, restarts, iterations, smoothing

    def fit(self, x: Tensor, y: Tensor) -> Fit:
        # [T, R, S, V, S]; uniform on the simplex.
        shape = (len(y), self.restarts, self.states, self.spec.output_size, self.states)
        W = normalised(-torch.rand(shape, device=y.device).clamp(min=1e-6).log())
        if y.shape[1]:
            for _ in range(self.iterations):
                W = self.improved(W, y)[0]
        best = self.improved(W, y)[1].argmax(1)
        chosen = W[torch.arange(len(y), device=y.device), best]

        def predict(query: Tensor) -> Tensor:
            return self.predictions(chosen, query)

        return predict

    def improved(self, W: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return W [T, R, S, V, S] after an EM step on strings ``y`` [T, N, L], and the objective of ``W``, [T, R]."""
        tasks, starts, states, symbols, _ = W.shape
        by_symbol = W.permute(0, 3, 1, 2, 4)  # [T, V, R, S, S]
        task = torch.arange(tasks, device=y.device)[:, None]
        here = (y >= 0).to(W.dtype)
        # Forward pass: the probability of each state given the symbols so far, and of each symbol given those before.
        alpha = torch.zeros(tasks, y.shape[1], starts, states, dtype=W.dtype, device=W.device)
        alpha[..., 0] = 1
        alphas, scales, moves = [], [], []
        for i in range(y.shape[2]):
            move = by_symbol[task, y[..., i].clamp(min=0)]  # [T, N, R, S, S]
            ahead = (alpha[..., None, :] @ move)[..., 0, :]
            scale = ahead.sum(-1, keepdim=True).clamp(min=torch.finfo(W.dtype).tiny)
            alphas.append(alpha)
            scales.append(scale)
            moves.append(move)
            alpha = torch.where(here[..., i, None, None] > 0, ahead / scale, alpha)
        value = self.smoothing * W.clamp(min=torch.finfo(W.dtype).tiny).log().sum((2, 3, 4))
        if not y.shape[1]:
            return W, value
        evidence = torch.stack([scale[..., 0] for scale in scales], 2).log() * here[..., None]  # [T, N, L, R]
        # Backward pass, with the expected count of each transition.
        beta = torch.ones_like(alpha)
        counts = torch.zeros(tasks, symbols, starts, states, states, dtype=W.dtype, device=W.device)
        flat = counts.view(tasks * symbols, starts, states, states)
        for i in reversed(range(y.shape[2])):
            after = beta / scales[i] * here[..., i, None, None]
            expected = alphas[i][..., :, None] * moves[i] * after[..., None, :]
            flat.index_add_(0, (task * symbols + y[..., i].clamp(min=0)).flatten(), expected.flatten(0, 1))
            back = (moves[i] @ after[..., None])[..., 0]
            beta = torch.where(here[..., i, None, None] > 0, back, beta)
        expected = counts.permute(0, 2, 3, 1, 4) + self.smoothing
        total = expected.sum((3, 4), keepdim=True)
        # Without smoothing, a state that no string reaches keeps its row.
        W = torch.where(total > 0, expected / total.clamp(min=torch.finfo(W.dtype).tiny), W)
        return W, value + evidence.sum((1, 2))

    def predictions(self, W: Tensor, x: Tensor) -> Tensor:
        """Return log-probabilities [T, M, L, V] of the next symbol at each position of ``x`` [T, M, L] under ``W``."""
        tiny = torch.finfo(W.dtype).tiny
        by_symbol, emitted = W.transpose(1, 2), W.sum(-1)  # [T, V, S, S], [T, S, V]
        task = torch.arange(len(x), device=x.device)[:, None]
        alpha = torch.zeros(*x.shape[:2], W.shape[1], dtype=W.dtype, device=W.device)
        alpha[..., 0] = 1
        found = [alpha @ emitted]
        for i in range(1, x.shape[2]):
            read = x[..., i]
            ahead = (alpha[..., None, :] @ by_symbol[task, read.clamp(max=W.shape[2] - 1)])[..., 0, :]
            total = ahead.sum(-1, keepdim=True)
            # A symbol of probability 0 under the model leaves the state distribution as it is.
            alpha = torch.where((total > 0) & (read < W.shape[2])[..., None], ahead / total.clamp(min=tiny), alpha)
            found.append(alpha @ emitted)
        return torch.stack(found, 2).clamp(min=tiny).log()

    def protocol(self) -> dict[str, Any]:
        return {"states": self.states, "restarts": self.restarts, "smoothing": self.smoothing}


def normalised(W: Tensor) -> Tensor:
    """Normalise ``W`` [..., S, V, S] over symbols and next states."""
    return W / W.sum((-2, -1), keepdim=True)
