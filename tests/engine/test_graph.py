"""A recording made shorter computes the same bits, whatever is repeated, written into, drawn or permuted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metarun.engine.graph import simplified, written_in_place


def _both(f, *inputs: Tensor) -> tuple[list[Tensor], list[Tensor], int, int]:  # type: ignore[no-untyped-def]
    """Results before and after, and the number of operations."""
    graph = make_fx(f)(*inputs)
    before, length = graph(*inputs), len(graph.graph.nodes)
    shorter = simplified(graph)
    return before, shorter(*inputs), length, len(shorter.graph.nodes)


def test_what_is_repeated_is_computed_once() -> None:
    def f(x: Tensor) -> list[Tensor]:
        return [x.exp() + 1, (x.exp() + 1) * 2, x.sum(0, keepdim=True), x.sum(0)]

    before, after, length, shorter = _both(f, torch.randn(3, 4))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert length - shorter == 2


def test_what_is_written_into_is_kept_apart() -> None:
    def f(x: Tensor) -> list[Tensor]:
        y = x * 2
        early, first = y.sum(), y[0].exp()
        y[0].add_(1)
        z, u = torch.zeros(4), torch.zeros(4)
        z.view(2, 2).add_(1)
        return [early, y.sum(), first, y[0].exp(), z.sum(), u.sum(), x * 2]

    before, after, _, _ = _both(f, torch.randn(3, 4))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(after[0], after[1])
    assert not torch.equal(after[2], after[3])
    assert after[4] != after[5]
    assert not torch.equal(after[6].sum(), after[1])


def test_random_numbers_are_drawn_as_often() -> None:
    graph = simplified(make_fx(lambda x: [torch.randn_like(x), torch.randn_like(x)])(torch.zeros(3)))
    torch.manual_seed(0)
    first, second = graph(torch.zeros(3))
    torch.manual_seed(0)
    assert torch.equal(first, torch.randn(3))
    assert not torch.equal(first, second)


def test_chains_of_views_become_one() -> None:
    def f(x: Tensor) -> list[Tensor]:
        y = x.permute(1, 2, 0).transpose(0, 1).permute(2, 1, 0)  # as x
        z = x.permute(2, 0, 1).permute(1, 0, 2).exp()
        return [y + 1, z, x.view(6, 4).view(24).view(2, 12).exp(), x.detach().expand(2, 3, 4) * 2]

    before, after, _, shorter = _both(f, torch.randn(2, 3, 4))
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(before, after, strict=True))
    assert shorter == 8  # the input, two views, four operations, the output


def test_results_go_where_nothing_is_read_any_more() -> None:
    aten = torch.ops.aten

    def f(x: Tensor, w: Tensor) -> list[Tensor]:
        one = (w @ x).relu()  # into the product, and the gradient into the sum that it is
        slope = aten.threshold_backward(one + x, one, 0)
        kept = x @ (2 * w)
        seen = kept.view(-1)  # read after the next line: kept stays
        two = kept * 3
        back = (w - (x @ w).exp()).neg()
        return [x * 2, slope, two, seen + 1, back, back.t() * back, w + 1]

    x, w = torch.randn(4, 4), torch.randn(4, 4)
    given = x.clone(), w.clone()
    graph = simplified(make_fx(f)(x, w))
    before = [r.clone() for r in graph(x, w)]
    after = written_in_place(graph)(x, w)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(x, given[0])
    assert torch.equal(w, given[1])
    written = [
        n.target for n in graph.graph.nodes if getattr(n.target, "_schema", None) and n.target._schema.is_mutable
    ]
    assert written == [aten.relu_.default, aten.threshold_backward.grad_input, aten.neg_.default, aten.add_.Tensor]


def test_a_view_that_does_not_say_so_keeps_its_memory() -> None:
    def f(x: Tensor) -> list[Tensor]:
        y = x.exp()
        one, two = torch.ops.aten._unsafe_view(y, [6]), torch.ops.aten._unsafe_view(y, [3, 2])
        return [one * 2, two * 3]

    x = torch.randn(2, 3)
    graph = make_fx(f)(x)
    before = [r.clone() for r in graph(x)]
    assert all(torch.equal(a, b) for a, b in zip(before, written_in_place(graph)(x), strict=True))
