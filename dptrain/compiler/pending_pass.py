"""The backward pass of a recorded call, which the engine comes to later.

Owns: `PendingPass`. Must not know: how calls are recorded.

The gradients of parameters are wanted in the buffers that optimizers and ranks work on, not in memory of
the recording: where kernels alone make a gradient, they are told its slot there in place of that memory.
Slots seldom move; where they have, the launches are written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import ref

import numpy as np

from dptrain.compiler.arrays import Place
from dptrain.compiler.draft import Backward, Draft
from dptrain.compiler.replayed import Replayed
from dptrain.compiler.trace import OWN, Node
from dptrain.compiler.writing import Writer
from dptrain.core.arrays import address
from dptrain.core.tensor import Tensor

#: How often launches are written anew because the slots have moved: held gradients move them at every step.
_MOST_MOVES = 8


class PendingPass:
    """The backward pass of a recording, run when the engine comes to it.

    Args:
        draft: the recording.
        nodes: the calls of the pass, for each of its ways.
    """

    def __init__(self, draft: Draft, nodes: list[list[Node]] | None = None) -> None:
        if nodes is None:
            calls = [draft.trace.nodes[b.start : b.stop] for b in draft.backwards]
            nodes = [[n for n in part if n.form != "check"] for part in calls]
        self._ways = {
            back.strides: _Way(draft, back, part)
            for back, part in zip(draft.backwards, nodes, strict=True)
        }
        self._draft = draft  # owns the memory

    def backward(self, grads: list[Any], slots: list[Any] | None) -> list[Any]:
        """Walk back from the gradients of the results that the recording starts from.

        Args:
            grads: those gradients.
            slots: where the gradients of the leaves are wanted, None where that does not matter; none of
                it does if None.

        Returns:
            The gradients of the leaves, in their slots or in memory of the recording.
        """
        way = self._ways.get(tuple(grad.strides for grad in grads))
        if way is None:  # copied into the order of the results
            way = next(iter(self._ways.values()))
        return way.run(grads, slots)

    def attach(self, draft: Draft, values: list[Any], tensors: list[Tensor]) -> Replayed:
        """Give the results among the leaves of what a call returned their node."""
        return Replayed.attach(draft, values, tensors, self)


class _Way:
    """The calls of a backward pass for gradients that lie in memory in one way."""

    def __init__(self, draft: Draft, back: Backward, nodes: list[Node]) -> None:
        self._draft, self._back, self._nodes = draft, back, nodes
        self._into_own: Callable[[list[Any]], None] = Writer().backward(draft, back, nodes)
        self._movable = _movable(draft, back, nodes)
        self._into_slots: Callable[[list[Any]], None] | None = None
        #: The arrays of the slots that those launches know; not held, as a gradient that is held moves.
        self._slots: list[ref[np.ndarray]] = []
        self._moves = 0

    def run(self, grads: list[Any], slots: list[Any] | None) -> list[Any]:
        """Walk back; see `PendingPass.backward`."""
        if slots is not None and self._movable:
            wanted = [slots[i] for i in self._movable]
            if self._know(wanted):
                assert self._into_slots is not None
                self._into_slots(grads)
                found: list[Any] = list(self._back.grads)
                for i, slot in zip(self._movable, wanted, strict=True):
                    found[i] = slot
                return found
        self._into_own(grads)
        return self._back.grads

    def _know(self, wanted: list[Any]) -> bool:
        """Whether there are launches that write into these slots, made now if need be; a slot may be missing."""
        for known, slot in zip(self._slots, wanted, strict=False):  # none at first
            if slot is None or known() is not slot:
                break
        else:
            if self._slots:
                return True
        if self._moves >= _MOST_MOVES or any(slot is None for slot in wanted):
            return False
        self._moves += 1
        places = {}
        for i, slot in zip(self._movable, wanted, strict=True):
            own, number = self._back.grads[i], self._back.blocks[i]
            if own is None or slot.strides != own.strides:
                return False
            places[number] = address(slot) - address(own)
        moved = [_redirected(node, places) for node in self._nodes]
        self._into_slots = Writer().backward(self._draft, self._back, moved)
        self._slots = [ref(slot) for slot in wanted]
        return True


def _movable(draft: Draft, back: Backward, nodes: list[Node]) -> list[int]:
    """Which gradients launches of the pass alone write and read, each in memory of its own."""
    inside = {id(node) for node in nodes}
    numbers = {n for n in back.blocks if n is not None and back.blocks.count(n) == 1}
    numbers = {n for n in numbers if draft.trace.kinds[n] is OWN}
    for node in draft.trace.nodes:
        touched = numbers.intersection((*node.reads, *node.writes))
        if touched and (id(node) not in inside or node.form != "launch"):
            numbers -= touched
            continue
        numbers -= {n for n in touched if not _is_all_told(node, n)}
    return [
        i
        for i, (number, own) in enumerate(zip(back.blocks, back.grads, strict=True))
        if number in numbers and own is not None and own.size and own.flags.c_contiguous
    ]


def _is_all_told(node: Node, number: int) -> bool:
    """Whether a launch gets to know a block by addresses that say so."""
    return any(type(a) is Place and a.block == number for a in node.text[2])


def _redirected(node: Node, places: dict[Any, int]) -> Node:
    """A launch with other memory in the place of some blocks: by how much their addresses differ."""
    if node.form != "launch" or not any(n in places for n in node.writes):
        return node
    packed, shares = node.args
    by = [places.get(a.block, 0) if type(a) is Place else 0 for a in node.text[2]]
    return replace(node, args=(packed + np.array(by, np.int64), shares))
