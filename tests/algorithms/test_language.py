"""Learners of languages in float64: counts by hand, all paths enumerated, what a prediction may depend on."""

from __future__ import annotations

from itertools import product
from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.amortised.baum_welch import BaumWelch, normalised
from metarun.algorithms.amortised.in_context_language import InContextLanguage
from metarun.algorithms.amortised.language import string_metrics
from metarun.config.build import construct
from metarun.models.symbols import Symbols
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed

pytestmark = pytest.mark.usefixtures("float64")
SPEC = Spec("sequence", "symbols", (5,), 3)


def build(name: str, **changes: Any) -> Any:
    section = composed(f"algorithm={name}")["algorithm"] | changes
    return construct(section, model=Symbols(SPEC, width=6), spec=SPEC)


def transformer(**changes: Any) -> InContextLanguage:
    return build("in_context_language", **{"width": 8, "layers": 2, "heads": 2, "ngrams": [0, 1, 2], **changes})


def labelled(*tasks: list[str]) -> Labelled:
    """Strings of the symbols 0, 1, 2 as a family gives them."""
    y = torch.tensor([[[*map(int, s), *(5 - len(s)) * [-1]] for s in task] for task in tasks])
    x = torch.cat([torch.full_like(y[..., :1], 3), y[..., :-1]], -1)
    x = torch.where(x < 0, 4, x)
    return Labelled(x, y)


SUPPORT = labelled(["01201", "0120", "2101"], ["1111", "12", "21012"])
QUERY = labelled(["0121", "11"], ["01201", "2"])


def test_metrics_by_hand() -> None:
    query = Labelled(torch.zeros(1, 1, 3, dtype=torch.int64), torch.tensor([[[1, 0, -1]]]),
                     truth=torch.tensor([[[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]]))  # fmt: skip
    q = torch.tensor([[[[0.6, 0.2, 0.2], [0.1, 0.7, 0.2], [1.0, 0.0, 0.0]]]])
    metrics = string_metrics(q.log(), query)
    assert metrics["tvd"].item() == pytest.approx((0.3 + 0.9) / 2)
    assert metrics["accuracy"].item() == 0.5
    assert metrics["loss"].item() == pytest.approx((-0.5 * log(0.6) - 0.5 * log(0.2) - log(0.1)) / 2)


def witten_bell(strings: list[str], own: str, history: str) -> list[float]:
    """By counting in strings with beginnings ^: every occurrence of the history, one after another."""
    p = [1 / 3] * 3
    for size in range(len(history) + 1):
        h = history[len(history) - size :]
        followed = []
        for s in [*strings, own]:
            padded = "^" * size + s
            followed += [padded[i + size] for i in range(len(s)) if padded[i : i + size] == h]
        different = len(set(followed))
        if followed:
            p = [(followed.count(str(v)) + different * p[v]) / (len(followed) + different) for v in range(3)]
    return p


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams_by_counting(order: int) -> None:
    strings = [["01201", "0120", "2101"], ["1111", "12", "21012"]]
    asked = [["0121", "11"], ["01201", "2"]]
    learner = build("ngram", order=order)
    for count, predict in enumerate(learner.adaptations(SUPPORT)):
        got = predict(QUERY.x).exp()
        for t, m in product(range(2), range(2)):
            for i in range(len(asked[t][m])):
                own = asked[t][m][:i]
                want = witten_bell(strings[t][:count], own, ("^^" + own)[len(own) + 2 - (order - 1) :])
                assert torch.allclose(got[t, m, i], torch.tensor(want), rtol=1e-12), (count, t, m, i)
    assert count == 3


def by_paths(W: Tensor, string: list[int]) -> float:
    """The probability of a string: the sum over all sequences of states from state 0."""
    states, total = range(len(W)), 0.0
    for path in product(states, repeat=len(string)):
        p, state = 1.0, 0
        for v, r in zip(string, path, strict=True):
            p *= float(W[state, v, r])
            state = r
        total += p
    return total


def hmm(**changes: Any) -> BaumWelch:
    return build("baum_welch", **{"states": 3, "restarts": 2, "iterations": 20, **changes})


def test_the_likelihood_and_the_step_against_all_paths() -> None:
    learner = hmm(smoothing=0.1)
    W = normalised(torch.rand(2, 2, 3, 3, 3))
    better, value = learner.improved(W, SUPPORT.y)
    for t, r in product(range(2), range(2)):
        strings = [[v for v in s if v >= 0] for s in SUPPORT.y[t].tolist()]
        want = sum(log(by_paths(W[t, r], s)) for s in strings) + 0.1 * float(W[t, r].log().sum())
        assert float(value[t, r]) == pytest.approx(want, rel=1e-10)
        # Expected transitions: each path's, by its share of the string's probability.
        expected = torch.full((3, 3, 3), 0.1)
        for s in strings:
            whole = by_paths(W[t, r], s)
            for path in product(range(3), repeat=len(s)):
                moves = list(zip([0, *path[:-1]], s, path, strict=True))
                p = 1.0
                for move in moves:
                    p *= float(W[t, r][move])
                for move in moves:
                    expected[move] += p / whole
        assert torch.allclose(better[t, r], expected / expected.sum((1, 2), keepdim=True), rtol=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.05])
def test_the_likelihood_never_falls(smoothing: float) -> None:
    learner = hmm(smoothing=smoothing)
    W, last = normalised(torch.rand(2, 2, 3, 3, 3)), torch.full((2, 2), -torch.inf)
    first = learner.improved(W, SUPPORT.y)[1]
    for _ in range(30):
        W, value = learner.improved(W, SUPPORT.y)
        assert (value >= last - 1e-9).all()
        last = value
    assert (last > first + 1).all()


def test_predictions_of_the_fitted_model_against_all_paths() -> None:
    W = normalised(torch.rand(2, 3, 3, 3))
    got = hmm().predictions(W, QUERY.x).exp()
    for t, m in product(range(2), range(2)):
        string = [v for v in QUERY.y[t, m].tolist() if v >= 0]
        for i in range(len(string)):
            whole = by_paths(W[t], string[:i])
            want = [by_paths(W[t], [*string[:i], v]) / whole for v in range(3)]
            assert got[t, m, i].tolist() == pytest.approx(want, rel=1e-10)


def test_the_best_start_predicts() -> None:
    learner = hmm(restarts=6, iterations=3)
    starts = normalised(-torch.rand(2, 6, 3, 3, 3, generator=torch.Generator().manual_seed(3)).clamp(min=1e-6).log())
    torch.manual_seed(3)
    got = learner.fit(SUPPORT.x, SUPPORT.y)(QUERY.x)
    for _ in range(3):
        starts = learner.improved(starts, SUPPORT.y)[0]
    best = learner.improved(starts, SUPPORT.y)[1].argmax(1)
    assert torch.equal(got, learner.predictions(starts[torch.arange(2), best], QUERY.x))


def test_the_transformer_reads_no_later_symbol_and_no_other_question() -> None:
    learner = transformer()
    read = learner.adapt(SUPPORT)(QUERY.x)
    for i in range(4):
        changed = QUERY.x.clone()
        changed[:, 0, i + 1 :] = (changed[:, 0, i + 1 :] + 1) % 3
        again = learner.adapt(SUPPORT)(changed)
        assert torch.allclose(again[:, 0, : i + 1], read[:, 0, : i + 1], rtol=1e-12)
        assert torch.allclose(again[:, 1], read[:, 1], rtol=1e-12)
        assert not torch.allclose(again[:, 0, i + 1], read[:, 0, i + 1])
    # The last symbol of the longest strings is read too; strings not yet seen are not.
    other = labelled(["01202", "0120", "2101"], ["1111", "12", "21010"])
    assert not torch.allclose(learner.adapt(other)(QUERY.x), read)
    for (_, one), (_, two) in zip(enumerate(learner.adaptations(SUPPORT)), [*enumerate(learner.adaptations(other))][:1],
                                  strict=False):  # fmt: skip
        assert torch.equal(one(QUERY.x), two(QUERY.x))


def test_training_reads_what_testing_reads() -> None:
    """The loss of a chain of strings is that of each string after those before it, place by place."""
    learner = transformer()
    loss, _ = learner.outer_loss(TaskBatch(SUPPORT, QUERY))
    whole = Labelled(*(torch.cat(p, 1) for p in ((SUPPORT.x, QUERY.x), (SUPPORT.y, QUERY.y))))
    tasks = []
    for t in range(2):
        places = []
        for n in range(5):
            seen = Labelled(whole.x[t : t + 1, :n], whole.y[t : t + 1, :n])
            predicted = learner.adapt(seen)(whole.x[t : t + 1, n : n + 1])[0, 0].detach()
            y = whole.y[t, n]
            places += [float(F.nll_loss(predicted[i], y[i])) for i in range(5) if y[i] >= 0]
        tasks.append(sum(places) / len(places))
    assert loss.item() == pytest.approx(sum(tasks) / 2, rel=1e-10)


def test_ngram_heads_by_hand() -> None:
    learner = transformer(ngrams=[2])
    strings = torch.cat([SUPPORT.x, torch.where(SUPPORT.y[..., -1:] < 0, 4, SUPPORT.y[..., -1:])], -1)[:1]
    tokens = torch.randn(1, 18, 8)
    earlier = torch.ones(18, 18, dtype=torch.bool).tril(-1) & (strings.flatten() != 4)
    got = learner.looked_up(tokens, strings, earlier[None])
    texts = ["^" + "".join("012^."[v] for v in s) for s in strings[0].tolist()]
    for i in range(18):
        a, b = divmod(i, 6)
        history = texts[a][b : b + 2]
        found = [
            tokens[0, j]
            for j in range(i)
            for c, d in [divmod(j, 6)]
            if d and texts[c][d - 1 : d + 1] == history and texts[c][d + 1] != "."
        ]
        want = learner.matched[0](torch.stack(found).mean(0)) if found else torch.zeros(8)
        assert torch.allclose(got[0, i], want, rtol=1e-10)
