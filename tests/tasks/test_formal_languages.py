"""Random automata: their strings by a walk, their next-symbol chances by counting, purity in (seed, split, index)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metarun.config.build import construct
from metarun.errors import UserError
from metarun.tasks.nlp.formal_languages import FormalLanguages
from tests.composed import composed


def family(seed: int = 0, **changes: Any) -> FormalLanguages:
    section = composed("task=nlp/formal_languages")["task"]
    return construct({**section, "lengths": [3, 8], "shot": 5, "query": 2, **changes}, seed=seed)


def test_a_task_depends_on_seed_split_and_index_alone() -> None:
    batch, alone = (family().batch("train", indices) for indices in ([7, 2, 9], [2]))
    assert batch.support.x.shape == (3, 5, 8)
    assert batch.query.truth is not None
    assert batch.query.truth.shape == (3, 2, 8, 18)
    assert torch.equal(batch.support.x[1], alone.support.x[0])
    assert torch.equal(batch.query.y[1], alone.query.y[0])
    for other in (family().batch("val", [2]), family(1).batch("train", [2])):
        assert not torch.equal(other.query.x, alone.query.x)


def test_automata_are_drawn_as_described() -> None:
    automata = family().automata("train", range(300))
    visited = set()
    for edges, symbol, target in zip(automata.edges, automata.symbol, automata.target, strict=True):
        letters = set()
        for state in range(4):  # every automaton has these
            count = edges[state]
            visited.add(int(count))
            assert len(set(symbol[state, :count])) == len(set(target[state, :count])) == count
            assert state not in target[state, :count]
            letters |= set(symbol[state, :count])
        assert max(letters) < 18
        assert target[0].max() < 12
    assert visited == {1, 2, 3}
    small = family(states=[4, 4], alphabet=[4, 4]).automata("train", range(50))
    assert small.target.max() == 3
    assert all(len(set(symbol.flatten())) <= 4 for symbol in small.symbol)


def test_strings_and_truth_by_a_walk() -> None:
    task = family()
    batch, automata = task.batch("test", range(4)), task.automata("test", range(4))
    lengths = set()
    for t in range(4):
        for part in (batch.support, batch.query):
            for x, y, truth in zip(part.x[t], part.y[t], part.truth[t], strict=True):  # type: ignore[index]
                state, length = 0, int((y >= 0).sum())
                lengths.add(length)
                assert x.tolist() == ([18, *y[:length].tolist()] + 8 * [19])[:8]
                for i in range(length):
                    leaving = automata.symbol[t, state, : automata.edges[t, state]].tolist()
                    want = [1 / len(leaving) if v in leaving else 0.0 for v in range(18)]
                    assert truth[i].tolist() == pytest.approx(want)
                    state = automata.target[t, state, leaving.index(int(y[i]))]
    assert min(lengths) >= 3
    assert len(lengths) > 3
    many = task.batch("train", range(100))
    counted = torch.cat([(part.y >= 0).sum(-1).flatten() for part in (many.support, many.query)]).bincount()
    assert counted[:3].sum() == 0
    assert counted[3:].tolist() == pytest.approx([700 / 6] * 6, abs=40)  # all lengths from 3 to 8 are as likely


def test_next_symbol_chances_against_simulation() -> None:
    """Given a prefix, the symbols that follow it in very many strings are as frequent as the family says."""
    task = family(shot=1, query=1, edges=[2, 2], lengths=[3, 3])
    automata = task.automata("test", [0])
    symbols, _ = automata.strings(np.random.default_rng(0).random((1, 40000, 3)))
    x = task.batch("test", [0]).query
    prefix = x.y[0, 0, :2].numpy()
    followed = symbols[0][(symbols[0, :, :2] == prefix).all(1), 2]
    counted = np.bincount(followed, minlength=18) / len(followed)
    assert len(followed) > 5000
    assert np.abs(counted - x.truth[0, 0, 2].numpy()).max() < 0.02  # type: ignore[index]


def test_the_reference_is_the_entropy_a_place() -> None:
    task = family()
    query = task.batch("test", range(3)).query
    each = []
    for y, truth in zip(query.y, query.truth, strict=True):  # type: ignore[arg-type]
        places = truth[y >= 0].double()
        each.append(float(np.mean([np.log((row > 0).sum()) for row in places.numpy()])))
    assert task.references("test", range(3))["loss of the true automaton"] == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": [1, 4]}, r"task.edges=\[1, 4\]: .* there may be only 4 \(task.alphabet\) and 3 \(task.states"),
        ({"alphabet": [4, 19]}, r"a language has at most task.symbols=18"),
        ({"lengths": [5, 2]}, r"task.lengths=\[5, 2\]: two numbers are needed"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        family(**changes)
