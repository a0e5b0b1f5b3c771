"""The graph of one transform: points to differentiate by, and what of the results is seen outside.

Owns: `points`, `derivatives`, `seen_outside`. Must not know: which derivative is asked for.

A transform differentiates by *points*: aliases of its inputs that require gradients, connected to the
caller's graph where an input has one. Its results may depend on the points and on what the caller
differentiates by (an enclosing transform's points, tensors that the function refers to). Only in the
second case are they recorded; the points themselves are nobody's business outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dptrain.core.creation import zeros_like
from dptrain.core.engine import grad
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.tensor import Tensor
from dptrain.core.tree import leaves, rebuild


def points(values: Any, name: str) -> tuple[list[Tensor], Any]:
    """Tensors to differentiate by in the places of `values`, and the structure around them.

    Raises:
        ValueError: something other than tensors.
        RuntimeError: tensors of another than a floating point type.
    """
    found, structure = leaves(values)
    made = []
    for value in found:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{name}: Expected all inputs to be tensors, got an input of type {type(value).__name__}"
            )
        if not value.dtype.is_floating_point:
            raise RuntimeError(
                f"{name}: only Tensors of floating point dtype can require gradients; an input has dtype {value.dtype}"
            )
        connected = value.requires_grad and is_grad_enabled()
        made.append(value.view_as(value) if connected else value.detach().requires_grad_())
    return made, structure


def outputs_of(result: Any, name: str) -> tuple[list[Tensor], Any]:
    """The tensors that a function gave, and the structure around them.

    Raises:
        RuntimeError: something other than tensors.
    """
    found, structure = leaves(result)
    for value in found:
        if not isinstance(value, Tensor):
            raise RuntimeError(
                f"{name}: Expected to be given a function that returns only tensors, but it returned an output of type "
                f"{type(value).__name__}"
            )
    return found, structure


def is_recorded(outputs: Iterable[Tensor], inside: Sequence[Tensor]) -> bool:
    """Whether tensors depend on anything that requires gradients but the points of the transform."""
    own = {id(p) for p in inside if p.is_leaf}
    waiting = [t for t in outputs if t.requires_grad]
    nodes: list[Any] = []
    for t in waiting:
        if t.grad_fn is not None:
            nodes.append(t.grad_fn)
        elif id(t) not in own:
            return True
    seen: set[int] = set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for edge in node.edges:
            if edge is None:
                continue
            if edge[1] is not None:
                nodes.append(edge[0])
            elif id(edge[0]) not in own:
                return True
    return False


def seen_outside(value: Any, inside: Sequence[Tensor], recording: bool) -> Any:
    """A result as the caller may have it: with a history only where that leads beyond the points."""
    found, structure = leaves(value)
    kept = [
        v.detach()
        if isinstance(v, Tensor)
        and v.requires_grad
        and not (recording and is_recorded([v], inside))
        else v
        for v in found
    ]
    return rebuild(kept, structure)


def derivatives(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    create_graph: bool,
) -> list[Tensor]:
    """Vector-Jacobian products; zeros for inputs on which nothing depends."""
    used = [(o, v) for o, v in zip(outputs, vectors, strict=True) if o.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if used:
        found = grad(
            [o for o, _ in used],
            list(inputs),
            [v for _, v in used],
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )
    return [zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]
