"""A recorded graph of tensor operations: what it computes twice is computed once, and memory is used again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
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


def written_in_place(graph: GraphModule) -> GraphModule:
    """The same results, to the bit, read and written in less memory: results go where an argument lay.

    That is where nothing reads the argument any more, nor anything else that lies there.
    """
    nodes = list(graph.graph.nodes)
    place = {node: position for position, node in enumerate(nodes)}
    last: dict[Node, int] = defaultdict(int)
    for node, memory in _roots(nodes).items():
        last[memory] = max(last[memory], *(place[user] for user in (node, *node.users)))
    root: dict[Node, Node] = {}
    for node in nodes:
        if (into := _reusable(node, root, last, place)) is not None:
            if into is not node.args[0]:
                node.args = (into, node.args[0])
            if node.target is torch.ops.aten.threshold_backward.default:
                node.kwargs = {"grad_input": into}
            node.target = _IN_PLACE[node.target]
            last[root[into]] = max(last[root[into]], last[node])
        of = _memory_of(node)
        root[node] = node if of is None else root[of]
    graph.recompile()
    return graph


_IN_PLACE = {
    torch.ops.aten.relu.default: torch.ops.aten.relu_.default,
    torch.ops.aten.threshold_backward.default: torch.ops.aten.threshold_backward.grad_input,
    torch.ops.aten.mul.Tensor: torch.ops.aten.mul_.Tensor,
    torch.ops.aten.add.Tensor: torch.ops.aten.add_.Tensor,
    torch.ops.aten.sub.Tensor: torch.ops.aten.sub_.Tensor,
    torch.ops.aten.neg.default: torch.ops.aten.neg_.default,
}
_SYMMETRIC = (torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor)


def _reusable(
    node: Node, root: Mapping[Node, Node], last: Mapping[Node, int], place: Mapping[Node, int]
) -> Node | None:
    """The argument of ``node`` that may hold its result: of the same form, and not needed again."""
    if node.target not in _IN_PLACE:
        return None
    candidates = node.args[:2] if node.target in _SYMMETRIC and not node.kwargs else node.args[:1]
    for argument in candidates:
        if not isinstance(argument, Node) or _form(argument) is None or _form(argument) != _form(node):
            continue
        memory = root[argument]
        others = [a for a in node.all_input_nodes if root[a] is memory]
        if memory.op == "call_function" and last[memory] == place[node] and others == [argument]:
            return argument
    return None


def _form(node: Node) -> tuple[Any, ...] | None:
    meta: Any = node.meta.get("tensor_meta")
    return (meta.shape, meta.stride, meta.dtype) if hasattr(meta, "stride") else None


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
    """Order of the dimensions after a permutation or the exchange of two."""
    rank = len(_shape(node))
    if node.target is torch.ops.aten.permute.default:
        return [d % rank for d in node.args[1]]
    order, (a, b) = list(range(rank)), (d % rank for d in node.args[1:3])
    order[a], order[b] = order[b], order[a]
    return order


def _merge_equal(graph: GraphModule) -> None:
    """Keep only the first of operations on equal arguments.

    An operation that writes into its argument makes a new version of all that shares that memory, and what is ever
    written into stays apart.
    """
    nodes = [n for n in graph.graph.nodes if n.op == "call_function"]
    root = _roots(graph.graph.nodes)
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
    """True if it writes into its first argument."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _roots(nodes: Iterable[Node]) -> dict[Node, Node]:
    """The node that made the memory which each one's result lies in."""
    root: dict[Node, Node] = {}
    for node in nodes:
        of = _memory_of(node)
        root[node] = node if of is None else root[of]
    return root


def _memory_of(node: Node) -> Node | None:
    """The argument whose memory its result is, or may be."""
    if node.op != "call_function":
        return None
    if node.target is torch.ops.aten._unsafe_view.default:  # a view by another name
        return node.args[0]  # type: ignore[return-value]
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # an item of several results
        return node.args[0] if isinstance(node.args[0], Node) else None
    given = {**dict(zip((a.name for a in schema.arguments), node.args, strict=False)), **node.kwargs}
    for argument in schema.arguments:
        if argument.alias_info is not None and isinstance(value := given.get(argument.name), Node):
            return value
    return None


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
