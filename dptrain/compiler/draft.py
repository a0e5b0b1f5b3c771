"""What one recorded call did: its calls, what it returned, what became of tensors from before it.

Owns: `Draft` and its parts. Must not know: how a call is recorded, how a draft is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dptrain.compiler.arrays import Place
from dptrain.compiler.trace import Trace
from dptrain.core.memory_order import keep_unseen
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor, wrap


class Consumed(Op):
    """In the place of a node whose saved values are gone: a second backward is the error that it always is."""

    def __init__(self, name: str, shape: tuple[int, ...], kind: Any) -> None:
        self.backward_name = name
        self.edges, self.outs, self.hooks, self.sequence = [], ((shape, kind),), None, 0
        self.saved, self.versions = None, ()


@dataclass
class Result:
    """One leaf of what a call returned: an array of the recording, a tensor from before, or a plain value.

    Attributes:
        host: the array, if the tensor was made in the call.
        node: the name of its node, where it had one.
        unseen: whether the order of its elements in memory is kept unseen.
        position: that of the argument, if it is one.
        value: anything else.
    """

    host: np.ndarray | None = None
    node: str | None = None
    unseen: bool = False
    position: int | None = None
    value: Any = None

    def text(self) -> Any:
        """To compare it with that of another recording."""
        if self.host is not None:
            return "made", self.host.shape, str(self.host.dtype), self.node
        if self.position is not None:
            return "argument", self.position
        return "value", id(self.value) if isinstance(self.value, Tensor) else repr(self.value)


@dataclass
class Backward:
    """The backward pass of what a call returned, for gradients that lie in memory in one way.

    Sums depend on the order of their terms, and that on the order of elements in memory.

    Attributes:
        start: number of its first call in the recording.
        stop: number of the call after its last.
        strides: of the gradients that come in.
        results: which leaves of what was returned it starts from.
        incoming: where the gradients of those come in.
        leaves: the tensors in reach (or the positions of the arguments) that get gradients.
        saved: those that it needs as they are.
        grads: where their gradients are afterwards, None for none.
        blocks: numbers of the blocks behind those.
    """

    start: int
    stop: int
    strides: tuple[tuple[int, ...], ...]
    results: list[int]
    incoming: list[np.ndarray]
    leaves: list[Any]
    saved: list[Any]
    grads: list[np.ndarray | None]
    blocks: list[int | None]


@dataclass
class Draft:
    """What one call did.

    Attributes:
        trace: its calls.
        inputs: memory of the tensor arguments, in order; None for those that were in reach anyway.
        fixed: (position, tensor): such arguments; (position, earlier position): the same one again.
        results: leaves of what it returned, and its structure.
        gradients: (tensor, what its `.grad` is afterwards: a tensor from before, None, or an array).
        bumps: (version counter, how many in-place changes).
        tensors: the tensors in reach, and the arrays that they have to have: (tensor, array, requires_grad).
        starts: (tensor, `.grad` before), where that matters.
        pending: the leaves of what it returned whose graph is still to be walked.
        backwards: the backward pass that is still to come, if there is one, in several ways.
        written: the arrays that own memory from before which the call changes.
        generator: the default generator, if numbers were drawn.
        unchanged: whether plain values and objects in reach are as they were before the call.
        node: leads to the node of the last call whose backward pass is over this memory.
    """

    trace: Trace
    inputs: list[np.ndarray | None] = field(default_factory=list)
    fixed: list[tuple[int, Any]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    structure: Any = None
    gradients: list[tuple[Tensor, Any]] = field(default_factory=list)
    bumps: list[tuple[list[int], int]] = field(default_factory=list)
    tensors: list[tuple[Tensor, np.ndarray, bool]] = field(default_factory=list)
    starts: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    backwards: list[Backward] = field(default_factory=list)
    written: list[np.ndarray] = field(default_factory=list)
    generator: Any = None
    unchanged: Callable[[], bool] = lambda: True
    node: Callable[[], Any] = lambda: None

    def __del__(self) -> None:
        # The trace knows itself in circles, and its memory would wait for Python's collector.
        self.trace.forget()

    def is_busy(self) -> bool:
        """Whether a backward pass needs what the last call has left in memory."""
        node = self.node()
        return node is not None and node.saved is not None

    @property
    def forward_calls(self) -> int:
        """How many calls there are before those of the backward pass."""
        return self.backwards[0].start if self.backwards else len(self.trace.nodes)

    def outline(self) -> Outline:
        """Everything that has to be the same in a second recording; constants by their bytes."""
        names = self._names()
        nodes = [
            (n.form, _renamed(n.text, names), [names[i] for i in (*n.reads, None, *n.writes)])
            for n in self.trace.nodes
        ]
        constants = [
            (names[number], c.values.dtype.str, c.values.shape, c.values.tobytes())
            for number, c in self.trace.constants.items()
            if number in names
        ]
        rest = (
            [r.text() for r in self.results],
            repr(self.structure),
            [(id(t), g.shape if isinstance(g, np.ndarray) else id(g)) for t, g in self.gradients],
            [d for _, d in self.bumps],
            [(b.start, b.stop, b.strides, b.results) for b in self.backwards],
        )
        named = [r.value for r in self.results if isinstance(r.value, Tensor)]
        named += [t for pair in self.gradients for t in pair if isinstance(t, Tensor)]
        return Outline(nodes, constants, rest, named)

    def _names(self) -> dict[int | None, Any]:
        """The blocks in the order of their use; what existed before goes by its address."""
        names: dict[int | None, Any] = {0: 0, None: None}
        for node in self.trace.nodes:
            for number in (*node.reads, *node.writes):
                if number not in names:
                    names[number] = self.trace.places.get(number, len(names))
        for number, place in self.trace.places.items():
            names.setdefault(number, place)
        return names


@dataclass
class Outline:
    """What is compared of two recordings; it holds none of their memory.

    Attributes:
        nodes: the calls.
        constants: the values that no call makes.
        rest: what is returned, what becomes of gradients, where the backward passes begin and end.
        named: the tensors that `rest` knows by their ids, which are theirs as long as they live.
    """

    nodes: list[Any]
    constants: list[Any]
    rest: Any
    named: list[Tensor]


def difference(first: Outline, second: Outline) -> str | None:
    """In what two recordings of the same call differ, if they do."""
    a, b = first.nodes, second.nodes
    if a == b:
        if first.constants != second.constants:
            what = "the numbers that tensors are made from"
        elif first.rest != second.rest:
            what = "what it returns"
        else:
            return None
    else:
        unequal = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
        place = next(unequal, min(len(a), len(b)))
        names = [nodes[place][1] for nodes in (a, b) if place < len(nodes)]
        what = f"operation {place} ({' and then '.join(str(n)[:200] for n in names)})"
    return f"two calls in a row differ without a change of arguments or of what is in reach: {what}"


def _renamed(text: Any, names: dict[int | None, Any]) -> Any:
    """The text of a call, whose arguments may be addresses in blocks."""
    if type(text) is Place:
        return "at", names.get(text.block, text.block), text.offset
    return tuple(_renamed(t, names) for t in text) if type(text) is tuple else text


def result_of(result: Result, arguments: list[Any]) -> Any:
    """A leaf of what a call returns, in memory of its own."""
    if result.position is not None:
        return arguments[result.position]
    if result.host is None:
        return result.value
    made = wrap(result.host.copy(order="K"))
    if result.unseen:
        keep_unseen(made)
    if result.node is not None:
        made._requires_grad = True
        made._node = Consumed(result.node, made._array.shape, made._array.dtype)
    return made
