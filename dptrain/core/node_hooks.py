"""Hooks of graph nodes: `grad_fn.register_hook`, `grad_fn.register_prehook`.

Owns: the hooks. Must not know: when they run (core/hooked_walk.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from dptrain.core.hooks import RemovableHandle, add_hook

#: Node -> (hooks before it, hooks after it). Empty nearly always; what is here is kept out of the nodes.
node_hooks: WeakKeyDictionary[Any, tuple[dict[int, Any], dict[int, Any]]] = WeakKeyDictionary()


class HookedNode:
    """The part of a node that takes hooks."""

    __slots__ = ()

    def register_prehook(self, fn: Callable[[tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call `fn(grad_outputs)` before the node runs in a backward pass.

        Args:
            fn: gets the gradients of the results, None where there is none; returns None, or what to take
                in their place.
        """
        return add_hook(node_hooks.setdefault(self, ({}, {}))[0], fn)

    def register_hook(
        self, fn: Callable[[tuple[Any, ...], tuple[Any, ...]], Any]
    ) -> RemovableHandle:
        """Call `fn(grad_inputs, grad_outputs)` after the node has run in a backward pass.

        Args:
            fn: gets the gradients of the arguments and of the results, None where there is none; returns
                None, or what to take in place of `grad_inputs`.
        """
        return add_hook(node_hooks.setdefault(self, ({}, {}))[1], fn)
