"""The graphs behind tensors: which nodes and leaves they have, whether they are still to be walked.

Owns: those questions. Must not know: recordings.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from dptrain.core.op import edge_of
from dptrain.core.tensor import Tensor
from dptrain.core.tree import leaves


def is_pending(value: Any, known: dict[int, Tensor]) -> bool:
    """Whether a result has a graph that no backward pass has freed yet."""
    if not isinstance(value, Tensor) or value._node is None or id(value) in known:
        return False
    return all(node.saved is not None for node in nodes_behind([value]))


def nodes_behind(tensors: Iterable[Tensor]) -> list[Any]:
    """The nodes of the graphs behind some tensors."""
    stack, seen = [t._node for t in tensors if t._node is not None], {}
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            stack += [e[0] for e in node.edges if e is not None and e[1] is not None]
    return list(seen.values())


def bytes_behind(values: Any) -> int:
    """How much memory the results of the nodes behind some tensors take, if all are kept."""
    nodes = nodes_behind(v for v in leaves(values)[0] if isinstance(v, Tensor))
    return sum(prod(shape) * kind.itemsize for n in nodes for shape, kind in n.outs)


def ends_of(tensor: Tensor) -> list[Tensor]:
    """The leaves behind a tensor."""
    edges = [e for node in nodes_behind([tensor]) for e in node.edges]
    return list({id(e[0]): e[0] for e in edges if e is not None and e[1] is None}.values())


def lead_back(values: list[Any], stand_in: Tensor, real: Tensor) -> None:
    """Let the graph behind some results end where that of an argument begins."""
    stack, seen = [v._node for v in values if isinstance(v, Tensor)], set()
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        node.edges = [
            edge_of(real) if e is not None and e[0] is stand_in else e for e in node.edges
        ]
        stack += [e[0] for e in node.edges if e is not None and e[1] is not None]
