"""SNAIL and memory-augmented networks in float64 against loops written from the papers' equations."""

from __future__ import annotations

from math import exp, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.algorithms.amortised.mann import MANN
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models.linear import Linear
from metarun.models.snail_blocks import Attention, Dense, TemporalConvolutions
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from tests.composed import composed
from tests.slow import slow_but

CLASSES = Spec("classification", "vector", (4,), 3)
SMALL: dict[str, dict[str, Any]] = {
    "snail": {"keys": [4, 6], "values": [3, 5], "filters": 4, "span": 7},
    "mann": {"controller": 6, "slots": 5, "width": 3, "reads": 2},
}


def learner(name: str, spec: Spec = CLASSES, **changes: Any) -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    section = composed(f"algorithm={name}")["algorithm"] | SMALL[name] | changes
    return construct(section, model=Linear(bias=False), spec=spec)


def classes(tasks: int = 2) -> TaskBatch:
    torch.manual_seed(1)
    y = torch.arange(3).repeat_interleave(2).expand(tasks, -1)
    return TaskBatch(Labelled(torch.randn(tasks, 6, 4), y, 3), Labelled(torch.randn(tasks, 6, 4), y, 3))


def test_snails_attention_by_a_loop() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    block, x = Attention(4, 3, 2), torch.randn(2, 5, 4)
    block.requires_grad_(False)
    got = block(x)
    assert torch.equal(got[..., :4], x)
    q, k, v = ([layer.weight @ p + layer.bias for p in x[0]] for layer in (block.queries, block.keys, block.values))
    for n in range(5):
        weights = [exp(float(q[n] @ k[m]) / sqrt(3)) for m in range(n + 1)]
        want = sum(w * v[m] for m, w in enumerate(weights)) / sum(weights)
        assert torch.allclose(got[0, n, 4:], want, rtol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
def test_dense_block_is_a_gated_causal_convolution(dilation: int) -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    block, x = Dense(4, dilation, 3), torch.randn(2, 6, 4)
    kernel = torch.stack([block.before.weight, block.here.weight], -1)
    padded = torch.nn.functional.pad(x.mT, (dilation, 0))
    convolved = torch.nn.functional.conv1d(padded, kernel, block.here.bias, dilation=dilation).mT
    want = torch.tanh(convolved[..., :3]) * torch.sigmoid(convolved[..., 3:])
    assert torch.allclose(block(x), torch.cat([x, want], -1), rtol=1e-12)


@pytest.mark.parametrize(("span", "count"), [(2, 1), (6, 3), (8, 3), (9, 4)])
def test_convolutions_reach_over_their_span_and_no_further_ahead(span: int, count: int) -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    block, x = TemporalConvolutions(4, span, 3), torch.randn(1, 12, 4)
    assert len(block.blocks) == count
    first = block(x)
    for place in range(12):
        moved = x.clone()
        moved[:, place] += 1
        changed = [n for n in range(12) if not torch.equal(first[:, n], block(moved)[:, n])]
        assert changed == list(range(place, min(12, place + 2**count)))


def test_snail_predicts_each_query_from_the_support_set_alone() -> None:
    snail, data = learner("snail"), classes()
    first = snail.read(data.support.x, data.support.y, data.query.x)
    assert first.shape == (2, 6, 3)
    other = data.query.x.clone()
    other[:, 2] += 1
    changed = snail.read(data.support.x, data.support.y, other)
    assert [bool((changed[:, m] != first[:, m]).any()) for m in range(6)] == [m == 2 for m in range(6)]
    alone = snail.read(data.support.x, data.support.y, data.query.x[:, 4:5])
    assert torch.allclose(alone[:, 0], first[:, 4])
    # All of the support set counts, the first example too, and its labels.
    y = data.support.y.clone()
    y[:, 0] = 2
    assert not torch.allclose(snail.read(data.support.x, y, data.query.x), first)
    # The last place of the sequence by itself: pairs, then the query with an empty label.
    pairs = torch.cat([data.support.x[0], torch.eye(3)[data.support.y[0]]], -1)
    whole = torch.cat([pairs, torch.cat([data.query.x[0, :1], torch.zeros(1, 3)], -1)])[None]
    assert torch.allclose(snail.head(snail.blocks(whole)[0, -1]), first[0, 0])


def mann_by_hand(mann: MANN, inputs: list[Tensor]) -> list[Tensor]:
    """Equations 2-8 for one sequence, slot by slot."""
    slots, width, reads = 5, 3, 2
    memory = [torch.zeros(width) for _ in range(slots)]
    used = [1e-6 * i for i in range(slots)]
    read = [[0.0] * slots for _ in range(reads)]
    state, outputs = (torch.zeros(1, 6), torch.zeros(1, 6)), []
    for x in inputs:
        found = [sum(read[r][i] * memory[i] for i in range(slots)) for r in range(reads)]
        state = mann.controller(torch.cat([x, *found])[None], state)
        raw = mann.address(state[0])[0].view(reads, width + 1)
        keys, gates = raw[:, :width].tanh(), [float(raw[r, width].sigmoid()) for r in range(reads)]
        ranked = sorted(range(slots), key=lambda i: used[i])
        least = [1.0 if i in ranked[:reads] else 0.0 for i in range(slots)]
        write = [[gates[r] * read[r][i] + (1 - gates[r]) * least[i] for i in range(slots)] for r in range(reads)]
        memory[ranked[0]] = torch.zeros(width)
        memory = [memory[i] + sum(write[r][i] * keys[r] for r in range(reads)) for i in range(slots)]
        read = []
        for r in range(reads):
            cosines = []
            for i in range(slots):
                norms = float(memory[i] @ memory[i] + 1e-8) * float(keys[r] @ keys[r] + 1e-8)
                cosines.append(exp(float(keys[r] @ memory[i]) / sqrt(norms)))
            read.append([c / sum(cosines) for c in cosines])
        used = [0.5 * used[i] + sum(read[r][i] + write[r][i] for r in range(reads)) for i in range(slots)]
        found = [sum(read[r][i] * memory[i] for i in range(slots)) for r in range(reads)]
        outputs.append(mann.head(torch.cat([state[0][0], *found])))
    return outputs


def test_mann_by_hand() -> None:
    """Two tasks of six examples and then each query, labels one example late."""
    mann, data = learner("mann", decay_usage=0.5), classes()
    with torch.no_grad():
        mann.address.bias.copy_(torch.randn(8))  # keys and gates well apart
        on_the_way, state, last = mann.study(data.support.x, data.support.y)
        asked = mann.answer(data.query.x, state, last)
        for t in range(2):
            labels = [torch.zeros(3), *torch.eye(3)[data.support.y[t]]]
            support = [torch.cat([x, label]) for x, label in zip(data.support.x[t], labels, strict=False)]
            for m in range(6):
                outputs = mann_by_hand(mann, [*support, torch.cat([data.query.x[t, m], labels[6]])])
                assert torch.allclose(torch.stack(outputs[:6]), on_the_way[t], rtol=1e-9)
                assert torch.allclose(outputs[6], asked[t, m], rtol=1e-9)


@pytest.mark.parametrize("name", ["snail", "mann"])
def test_outer_loss_and_evaluation(name: str) -> None:
    method, data = learner(name), classes()
    torch.manual_seed(3)
    loss, metrics = method.outer_loss(data)
    assert set(metrics) == {"accuracy", "loss"}
    torch.manual_seed(3)
    evaluated = method.evaluate(data)
    assert torch.equal(evaluated["accuracy"].mean(), metrics["accuracy"])
    if name == "snail":  # the query examples alone; for the other, those of the support set too
        assert loss.item() == pytest.approx(evaluated["loss"].mean().item(), rel=1e-12)
    torch.manual_seed(4)  # another order, other predictions: it is random
    assert not torch.equal(method.evaluate(data)["loss"], evaluated["loss"])
    assert method.accepts(EpisodeShape(3, 9, 9))
    assert not method.accepts(EpisodeShape(4, 1, 1))


@pytest.mark.parametrize(("name", "steps"), slow_but([("snail", 120)], [("snail", 120), ("mann", 500)]))
def test_learns_to_bind_labels(name: str, steps: int) -> None:
    """In seconds: classes are clusters around centres that are new in every task."""
    torch.set_default_dtype(torch.float32)
    method = learner(name, **({} if name == "snail" else {"controller": 32, "slots": 12, "width": 8}), outer_lr=0.01)
    method = method.float()

    def batch(i: int) -> TaskBatch:
        generator = torch.Generator().manual_seed(i)
        centres = torch.randn(32, 3, 1, 4, generator=generator)
        x = (centres + 0.1 * torch.randn(32, 3, 3, 4, generator=generator)).float()
        y = torch.arange(3).repeat_interleave(2).expand(32, -1)
        asked = Labelled(x[:, :, 2], torch.arange(3).expand(32, -1), 3)
        return TaskBatch(Labelled(x[:, :, :2].flatten(1, 2), y, 3), asked)

    for i in range(steps):
        torch.manual_seed(i)
        method.meta_step(batch(i), i)
    assert method.evaluate(batch(10_000))["accuracy"].mean() > 0.7  # chance: a third


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm.keys=\[4\] and algorithm.values=\[3, 5\]"):
        learner("snail", keys=[4])
    with pytest.raises(UserError, match=r"algorithm.reads=9 is more than algorithm.slots=5"):
        learner("mann", reads=9)
