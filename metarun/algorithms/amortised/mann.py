"""Memory-augmented neural network: an LSTM controller with an external memory that is addressed by content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.amortised.sequence import embedded, encode_targets, mean_loss, shuffled
from metarun.algorithms.base import Metrics
from metarun.algorithms.supervised import Adapted, SupervisedAlgorithm, dry_run, prediction_metrics
from metarun.errors import require
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.types import Count, Decay, Fraction, Positive, Rate


class State(NamedTuple):
    """State carried from example to example, for B sequences."""

    hidden: Tensor
    cell: Tensor
    """Cell state of the controller; it and ``hidden`` are [B, controller]."""
    memory: Tensor
    """[B, slots, width]"""
    read: Tensor
    """Read weights, [B, reads, slots]."""
    used: Tensor
    """Usage weights, [B, slots]."""


class MANN(SupervisedAlgorithm):
    """Meta-learning with memory-augmented networks (Santoro et al. 2016, arXiv:1605.06065, section 3, equations 2-8).

    An LSTM with ``controller`` units reads the embedded examples in a random order, each with the label of the previous
    one, and addresses a memory of ``slots`` slots of ``width`` entries with ``reads`` heads. Each head writes its key
    to the slots it last read or to the least-used slots, as a learned gate decides. The least-used slot is erased
    first. Reads are weighted by the cosine similarity of key and slot. Usage weights decay by the factor
    ``decay_usage`` at each example. The label is predicted from the hidden state and the vectors read. The outer loss
    is the mean over support and query examples. Each query example is read right after the whole support set.
    ``model`` embeds x. The paper reads pixels directly (``model=linear``).
    """

    any_way = False

    def __init__(
        self,
        model: nn.Module,
        spec: Spec,
        *,
        controller: Positive,
        slots: Positive,
        width: Positive,
        reads: Positive,
        decay_usage: Fraction,
        train_shot: Positive | None,
        train_query: Positive | None,
        outer_lr: Rate,
        halve_every: Positive | None,
        decay_over: Count | None,
        decay: Decay,
    ) -> None:
        super().__init__()
        require(reads <= slots, f"algorithm.reads={reads} is more than algorithm.slots={slots}")
        self.model, self.spec, self.decay_usage = model, spec, decay_usage
        self.slots, self.width, self.reads = slots, width, reads
        self.train_shot, self.train_query = train_shot, train_query
        inputs = dry_run(model, spec).shape[-1] + spec.output_size
        self.controller = nn.LSTMCell(inputs + reads * width, controller)
        self.address = nn.Linear(controller, reads * (width + 1))  # keys, and the gates of writing
        self.head = nn.Linear(controller + reads * width, spec.output_size)
        self.learn_with(outer_lr, halve_every, decay_over, decay)

    def outer_loss(self, batch: TaskBatch) -> tuple[Tensor, Metrics]:
        support = shuffled(batch.support)
        x, count = embedded(self.model, torch.cat([support.x, batch.query.x], 1)), support.y.shape[1]
        on_the_way, state, last = self.study(x[:, :count], support.y)
        asked = self.answer(x[:, count:], state, last)
        y = torch.cat([support.y, batch.query.y], 1)
        loss = mean_loss(self.spec, torch.cat([on_the_way, asked], 1), y)
        metrics = {name: value.mean() for name, value in prediction_metrics(self.spec, asked, batch.query.y).items()}
        return loss, {name: value.detach() for name, value in {**metrics, "loss": loss}.items()}

    def adaptations(self, support: Labelled, steps: int | None = None) -> Iterator[Adapted]:
        support = shuffled(support)
        _, state, last = self.study(embedded(self.model, support.x), support.y)
        yield lambda query: self.answer(embedded(self.model, query), state, last)

    def study(self, x: Tensor, y: Tensor) -> tuple[Tensor, State, Tensor]:
        """Read the examples x [T, N, F], y [T, N]; return their predictions, the final state and the last label."""
        labels, state, predictions = encode_targets(self.spec, y, x.dtype), self.start(x), []
        before = torch.cat([torch.zeros_like(labels[:, :1]), labels], 1)
        for i in range(x.shape[1]):
            prediction, state = self.step(torch.cat([x[:, i], before[:, i]], -1), state)
            predictions.append(prediction)
        return torch.stack(predictions, 1), state, before[:, -1]

    def answer(self, query: Tensor, state: State, last: Tensor) -> Tensor:
        """Predict at embedded ``query`` [T, M, F], each read right after the support set; return [T, M, outputs]."""
        asked = query.shape[1]
        state = State(*(part.repeat_interleave(asked, 0) for part in state))
        prediction, _ = self.step(torch.cat([query.flatten(0, 1), last.repeat_interleave(asked, 0)], -1), state)
        return prediction.view(*query.shape[:2], -1)

    def start(self, x: Tensor) -> State:
        """Return the state with an empty memory for each task of ``x`` [T, ...]."""
        tasks, size = len(x), self.controller.hidden_size
        hidden, memory = x.new_zeros(tasks, size), x.new_zeros(tasks, self.slots, self.width)
        read = x.new_zeros(tasks, self.reads, self.slots)
        # Unused slots are taken in order rather than at random.
        used = 1e-6 * torch.arange(self.slots, dtype=x.dtype, device=x.device).expand(tasks, -1)
        return State(hidden, hidden, memory, read, used)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one example [B, F + outputs]; return its prediction [B, outputs] and the new state."""
        found = state.read @ state.memory
        hidden, cell = self.controller(torch.cat([x, found.flatten(1)], -1), (state.hidden, state.cell))
        keys, gates = self.address(hidden).view(-1, self.reads, self.width + 1).split([self.width, 1], -1)
        keys, gates = torch.tanh(keys), torch.sigmoid(gates)
        least = state.used.topk(self.reads, largest=False).indices  # in order: the first is the least used
        free = torch.zeros_like(state.used).scatter(1, least, 1.0)
        write = gates * state.read + (1 - gates) * free[:, None]
        kept = torch.ones_like(state.used).scatter(1, least[:, :1], 0.0)
        memory = state.memory * kept[..., None] + write.mT @ keys
        # The norm of an empty slot is 0, and the root's derivative there infinite.
        norms = (memory.square().sum(-1) + 1e-8).sqrt()[:, None] * (keys.square().sum(-1, keepdim=True) + 1e-8).sqrt()
        read = F.softmax(keys @ memory.mT / norms, -1)
        used = self.decay_usage * state.used + (read + write).sum(1)
        prediction = self.head(torch.cat([hidden, (read @ memory).flatten(1)], -1))
        return prediction, State(hidden, cell, memory, read, used)

    def protocol(self) -> dict[str, Any]:
        return {"norm": "running"}
