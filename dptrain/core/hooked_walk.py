"""The walk over the graph where nodes have hooks of their own.

Owns: `HookedPass`. Must not know: how hooks are registered (core/node_hooks.py).
"""

from __future__ import annotations

from typing import Any

from dptrain.core.arrays import as_array
from dptrain.core.node_hooks import node_hooks
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor, wrap_computed
from dptrain.core.walk import Pass, fit

_NONE: tuple[dict[int, Any], dict[int, Any]] = ({}, {})


class HookedPass(Pass):
    """A pass in which each node runs by itself, with its hooks around it."""

    def may_join(self, node: Op) -> bool:
        """No: hooks see what each node computes."""
        return False

    def _add_part(self, node: Op, grad: Any) -> bool:
        return node not in node_hooks and super()._add_part(node, grad)

    def _node_gradients(self, node: Op, incoming: list[Any]) -> tuple[Any, ...]:
        before, after = node_hooks.get(node, _NONE)
        for hook in tuple(before.values()):
            given = _tensors(incoming)
            incoming = self._replaced(hook, hook(given), given)
        grads = super()._node_gradients(node, incoming)
        if not after:
            return grads
        fitted = self._fitted(node, grads)
        outputs = _tensors(incoming)
        for hook in tuple(after.values()):
            given = _tensors(fitted)
            fitted = self._replaced(hook, hook(given, outputs), given)
        return tuple(fitted)

    def _fitted(self, node: Op, grads: tuple[Any, ...]) -> list[Any]:
        """The gradients of a node's tensor arguments in their shapes."""
        wanted = [i for i, edge in enumerate(node.edges) if edge is not None]
        count = max(node.promotes, node.num_tensors, wanted[-1] + 1 if wanted else 0)
        found: list[Any] = [None] * min(count, len(node.edges))
        for i in wanted:
            edge: Any = node.edges[i]
            grad = grads[i] if i < len(grads) else None
            if grad is not None:
                source, place = edge
                array = source._array if place is None else None
                facts = source.outs[place] if array is None else (array.shape, array.dtype)
                found[i] = fit(grad if isinstance(grad, Tensor) else as_array(grad), *facts)
        return found

    def _replaced(self, hook: Any, replaced: Any, given: tuple[Any, ...]) -> list[Any]:
        """What a hook returned, or what it was given, in the form that this pass works on."""
        if replaced is None:
            replaced = given
        if isinstance(replaced, Tensor):
            replaced = (replaced,)
        if not isinstance(replaced, tuple) or len(replaced) != len(given):
            name = getattr(hook, "__name__", type(hook).__name__)
            raise RuntimeError(
                f"hook '{name}' has returned an incorrect number of values (got {len(replaced)}, but expected {len(given)})"
                if isinstance(replaced, (tuple, list))
                else f"hook '{name}' must return None or a tuple of tensors, got {type(replaced).__name__}"
            )
        return [
            g._array if isinstance(g, Tensor) and not self.create_graph else g for g in replaced
        ]


def _tensors(grads: Any) -> tuple[Any, ...]:
    return tuple(
        g if g is None or isinstance(g, Tensor) else wrap_computed(as_array(g)) for g in grads
    )
