"""In-context language learning: strings of random probabilistic finite automata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metarun import style
from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.rng import choose, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import Positive, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Automata:
    """One probabilistic finite automaton for each task, all starting in state 0.

    Attributes:
        edges: Number of outgoing edges of each state, [T, S]; all are equally likely.
        symbol: Symbols of the edges, [T, S, E]; the first ``edges`` entries are valid.
        target: Target states of the edges, [T, S, E].
    """

    edges: Whole
    symbol: Whole
    target: Whole

    def strings(self, u: NDArray[np.float64]) -> tuple[Whole, Whole]:
        """Sample walks.

        Args:
            u: Uniforms [T, N, L], one for each step.

        Returns:
            The symbols and the states before them, [T, N, L] each.
        """
        task = np.arange(len(u))[:, None]
        state = np.zeros(u.shape[:2], dtype=np.int64)
        symbols, states = np.empty(u.shape, dtype=np.int64), np.empty(u.shape, dtype=np.int64)
        for i in range(u.shape[2]):
            edge = np.floor(u[..., i] * self.edges[task, state]).astype(np.int64)
            symbols[..., i], states[..., i] = self.symbol[task, state, edge], state
            state = self.target[task, state, edge]
        return symbols, states

    def following(self, count: int) -> NDArray[np.float64]:
        """Return the probability of each of ``count`` symbols in each state, [T, S, count]."""
        there = np.arange(self.symbol.shape[2]) < self.edges[..., None]
        chance = np.zeros((*self.edges.shape, count + 1))
        np.put_along_axis(chance, np.where(there, self.symbol, count), 1 / self.edges[..., None], axis=2)
        return chance[..., :count]


class FormalLanguages(Task):
    """In-context language learning (RegBench: Akyürek et al. 2024, arXiv:2401.12973).

    A task is a probabilistic finite automaton. Numbers of states, of symbols in its alphabet and of edges of each state
    are uniform in their ranges. The edges of a state have different symbols, lead to different other states, and are
    equally likely. Strings start in state 0 and have a uniform length. Learners do not have to predict the end.

    The authors use 1 to 3 edges and 10 to 19 strings of 1 to 49 symbols. They also merge indistinguishable states,
    which changes no string, and meta-train on 5000 automata, whereas every task here is new. The splits are independent
    draws.

    x [T, N, L] int64 holds a start symbol (``symbols``), then the symbols read, and ``symbols + 1`` after the end of a
    string. y [T, N, L] holds the next symbol, -1 after the end. At each place a learner gives log-probabilities of the
    next symbol, given the preceding ones and the ``shot`` support strings.

    Args:
        seed: Seed of the tasks.
        symbols: Number of symbols of all languages.
        states: Smallest and largest number of states.
        alphabet: Smallest and largest number of symbols of a language.
        edges: Smallest and largest number of edges of a state.
        lengths: Smallest and largest length of a string.
        shot: Support strings of a task.
        query: Query strings of a task.
    """

    kind: ClassVar[str] = "sequence"
    modality: ClassVar[str] = "symbols"
    metric: ClassVar[str] = "tvd"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        seed: int,
        *,
        symbols: Positive,
        states: Sequence[Positive],
        alphabet: Sequence[Positive],
        edges: Sequence[Positive],
        lengths: Sequence[Positive],
        shot: Positive,
        query: Positive,
    ) -> None:
        for name, pair in {"states": states, "alphabet": alphabet, "edges": edges, "lengths": lengths}.items():
            require(
                len(pair) == 2 and pair[0] <= pair[1],
                f"task.{name}={[*pair]}: two numbers are needed, the smallest and the largest",
            )
        require(
            alphabet[1] <= symbols,
            f"task.alphabet={[*alphabet]}: a language has at most task.symbols={symbols} symbols",
        )
        require(
            edges[1] <= min(alphabet[0], states[0] - 1),
            f"task.edges={[*edges]}: the edges of a state need different symbols and target states, of which there may "
            f"be only {alphabet[0]} (task.alphabet) and {states[0] - 1} (task.states, minus the state itself)",
        )
        self.seed, self.symbols, self.states, self.alphabet = seed, symbols, states, alphabet
        self.edges, self.lengths = edges, lengths
        self.shape: EpisodeShape = EpisodeShape(0, shot, query)
        self.spec = Spec("sequence", self.modality, (lengths[1],), symbols)

    def automata(self, split: Split, indices: Sequence[int]) -> Automata:
        """Draw the automata of the tasks."""
        tasks, most, states = len(indices), self.edges[1], self.states[1]

        def between(u: NDArray[np.float64], pair: Sequence[int]) -> Whole:
            return pair[0] + np.floor(u * (pair[1] - pair[0] + 1)).astype(np.int64)

        sizes = uniforms(self.seed, split, indices, 2 + states)
        count, letters = between(sizes[:, 0], self.states), between(sizes[:, 1], self.alphabet)
        order = choose(uniforms(self.seed, split, indices, self.symbols, stream=1), self.symbols)

        def different(stream: int, among: Whole) -> Whole:
            """``most`` different numbers below ``among`` [T] for each state, [T, S, most]."""
            u = uniforms(self.seed, split, indices, states * most, stream=stream).reshape(-1, most)
            return choose(u, np.repeat(among, states)).reshape(tasks, states, most)

        symbol = order[np.arange(tasks)[:, None, None], different(2, letters)]
        target = different(3, count - 1)
        own = np.arange(states)[None, :, None]
        return Automata(between(sizes[:, 2:], self.edges), symbol, target + (target >= own))

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        count, longest = shape.shot + shape.query, self.lengths[1]
        automata = self.automata(split, indices)
        u = uniforms(self.seed, split, indices, count * longest, stream=4).reshape(-1, count, longest)
        symbols, states = automata.strings(u)
        spread = longest - self.lengths[0] + 1
        length = self.lengths[0] + np.floor(spread * uniforms(self.seed, split, indices, count, stream=5))[..., None]
        place = np.arange(longest)
        read = np.concatenate([np.full_like(symbols[..., :1], self.symbols), symbols[..., :-1]], axis=2)
        x = to_device(np.where(place <= length, read, self.symbols + 1), self.device)
        y = to_device(np.where(place < length, symbols, -1), self.device)
        chance = automata.following(self.symbols)[np.arange(len(u))[:, None, None], states]
        truth = to_device(chance, self.device, torch.get_default_dtype())
        parts = zip(*(t.split([shape.shot, shape.query], dim=1) for t in (x, y, truth)), strict=True)
        return TaskBatch(*(Labelled(x, y, truth=truth) for x, y, truth in parts))

    def references(self, split: Split, indices: Sequence[int]) -> dict[str, float]:
        """Return the cross-entropy of the true automaton, its entropy, which no learner can beat."""
        total = 0.0
        for first in range(0, len(indices), 100):
            query = self.batch(split, indices[first : first + 100]).query
            entropy, here = torch.special.entr(query.truth).sum(-1), query.y >= 0
            total += float(((entropy * here).sum((1, 2)) / here.sum((1, 2))).sum())
        return {"loss of the true automaton": total / len(indices)}

    def protocol(self) -> dict[str, Any]:
        return {
            "data": "probabilistic finite automata",
            "symbols": self.symbols,
            "states": [*self.states],
            "alphabet": [*self.alphabet],
            "edges": [*self.edges],
            "lengths": [*self.lengths],
            "shot": self.shape.shot,
            "query": self.shape.query,
        }

    def picture(self, learner: Learner) -> Figure:
        """Plot one string of each of three test tasks: the true and the predicted probabilities at every place."""
        from matplotlib.figure import Figure

        batch = self.batch("test", range(3))
        with torch.no_grad():
            expected = learner.adapt(batch.support)(batch.query.x).softmax(-1)
        figure = Figure(figsize=(12, 5.4), layout="constrained")
        panels = figure.subplots(2, 3, sharex=True, sharey=True)
        for task in range(3):
            here = int((batch.query.y[task, 0] >= 0).sum())
            for row, chance in enumerate((batch.query.truth, expected)):
                ax = panels[row, task]
                ax.imshow(chance[task, 0, :here].T.cpu(), cmap="Greys", vmin=0, vmax=1, aspect="auto")  # type: ignore[index]
                ax.plot(
                    range(here), batch.query.y[task, 0, :here].cpu(), ".", color=style.LATE, ms=5, label="actual symbol"
                )
                ax.set_ylabel(f"{('true', 'learned')[row]}: number of the symbol" if not task else "")
                style.counted(ax.xaxis, ax.yaxis)
            panels[0, task].set_title(f"test language {task + 1}")
            panels[1, task].set_xlabel("place in the string")
        style.legend(figure, panels[0, 0])
        figure.suptitle("Probabilities of the next symbol in languages of the meta-test split (white: 0, black: 1)")
        return figure
