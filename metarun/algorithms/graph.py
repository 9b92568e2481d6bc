"""A recorded graph of tensor operations, with what it computes twice computed once."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten


def simplified(graph: GraphModule) -> GraphModule:
    """The same results, to the bit, by fewer operations: those without use and repeated ones are dropped."""
    _shorten_views(graph)
    graph.graph.eliminate_dead_code()
    _merge_equal(graph)
    graph.recompile()
    return graph


def _shorten_views(graph: GraphModule) -> None:
    """Views that change nothing are left out, and of a chain of permutations or of shapes one is kept."""
    aten = torch.ops.aten
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(source, Node):
            continue
        if node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(source)
        elif node.target in (aten.permute.default, aten.transpose.int):
            order = _order(node)
            if source.target in (aten.permute.default, aten.transpose.int):
                before = _order(source)
                order, source = [before[d] for d in order], source.args[0]
            node.target, node.args = aten.permute.default, (source, order)
            if order == sorted(order):
                node.replace_all_uses_with(source)
        elif node.target in (aten.view.default, aten.expand.default):
            if source.target is node.target is aten.view.default:
                node.args = (source.args[0], *node.args[1:])
                source = source.args[0]
            if _shape(node) == _shape(source):
                node.replace_all_uses_with(source)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _order(node: Any) -> list[int]:
    """Of the dimensions, by a permutation or the exchange of two."""
    rank = len(_shape(node))
    if node.target is torch.ops.aten.permute.default:
        return [d % rank for d in node.args[1]]
    order, (a, b) = list(range(rank)), (d % rank for d in node.args[1:3])
    order[a], order[b] = order[b], order[a]
    return order


def _merge_equal(graph: GraphModule) -> None:
    """Of operations on equal arguments, keep the first.

    An operation that writes into its argument makes a new version of all that shares that memory, and what is ever
    written into stays apart.
    """
    nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
    memory = {n: _memory_of(n) for n in nodes}
    root: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        of = memory.get(node)
        root[node] = node if of is None else root[of]
    written = {root[n.args[0]] for n in nodes if _writes(n)}
    version: dict[Node, int] = defaultdict(int)
    first: dict[Any, Node] = {}
    for node in nodes:
        if _writes(node):
            version[root[node]] += 1
            continue
        if node in written or _random(node):
            continue
        values, tree = tree_flatten((node.args, node.kwargs))
        key = (
            node.target,
            tree,
            *((v, version[root[v]]) if isinstance(v, Node) else (type(v), v) for v in values),
        )
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.graph.erase_node(node)
        else:
            first[key] = node


def _writes(node: Node) -> bool:
    """Whether it changes its first argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _memory_of(node: Node) -> Node | None:
    """The argument whose memory its result is, or may be."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # an item of several results
        return node.args[0] if isinstance(node.args[0], Node) else None
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and isinstance(value, Node):
            return value
    return None


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
