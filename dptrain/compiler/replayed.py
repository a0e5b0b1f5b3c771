"""A replayed call as one node of the graph.

Owns: `Replayed`. Must not know: how calls are recorded and replayed.
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import ref

from dptrain.compiler.draft import Draft
from dptrain.core.op import EVERY, Op, _sequence
from dptrain.core.tensor import Tensor


class Again(Protocol):
    """A call that can be made once more, as it was."""

    def gradients(
        self, results: list[int], grads: list[Any], ends: list[Tensor]
    ) -> tuple[Any, ...]:
        """The gradients of `ends` from those of leaves of what the call returned.

        With a graph, if these are Tensors; else all are arrays.
        """


class Replayed(Op):
    """What a compiled function computed; its backward pass is replayed too.

    Attributes:
        program: runs the backward pass.
        results: which leaves of what the call returned are results of this node.
        starts: those among them that the recorded pass starts from.
        ends: the tensors behind them.
        counts: the tensors from before the call that it needs, what counts their changes in place, and how
            many there had been.
        again: the call, for what the recorded pass does not compute; None where it must do.
    """

    program: Any
    results: list[int]
    starts: list[int]
    ends: list[Tensor]
    counts: list[tuple[Tensor, list[int], int]]
    again: Again | None = None

    name = "compiled_function"
    backward_name = "CompiledFunctionBackward"
    direct = EVERY

    @staticmethod
    def attach(draft: Draft, values: list[Any], tensors: list[Tensor], program: Any) -> Replayed:
        """Make the node of the results.

        Args:
            draft: the recording.
            values: the leaves of what the call returned.
            tensors: its tensor arguments.
            program: runs the backward pass.
        """
        back, node = draft.backwards[0], Replayed()
        node.ends = [tensors[e] if isinstance(e, int) else e for e in back.leaves]
        # `edge_of` of each, without the calls: one for every parameter at every step.
        node.edges = [(e, None) if e._node is None else (e._node, e._index) for e in node.ends]
        node.program, node.results, node.starts = program, draft.pending, back.results
        made = [values[i] for i in draft.pending]
        node.outs = tuple([(r._array.shape, r._array.dtype) for r in made])
        node.hooks, node.saved, node.versions, node.sequence = None, (), (), _sequence()
        saved = [tensors[s] if isinstance(s, int) else s for s in back.saved]
        node.counts = [(t, counter := t._version_counter(), counter[0]) for t in saved]
        for index, result in enumerate(made):
            result._node, result._index, result._requires_grad = node, index, True
        draft.node = ref(node)
        return node

    def forward(self, *args: Any) -> Any:
        """Has run."""
        raise NotImplementedError("a replayed call is not run again")

    def release(self) -> None:
        """Free what the call was given."""
        super().release()
        self.again, self.ends, self.program = None, [], None

    def backward(self, grad: Any) -> Any:
        """The gradients of the leaves behind the call.

        Raises:
            RuntimeError: a second derivative that there is not, or a tensor that it needs was changed in
                place since the call.
        """
        incoming = grad if isinstance(grad, list) else [grad]
        given = [(r, g) for r, g in zip(self.results, incoming, strict=True) if g is not None]
        results, grads = [r for r, _ in given], [g for _, g in given]
        with_graph = isinstance(grads[0], Tensor)
        if with_graph and self.again is None:
            raise RuntimeError(
                "compile does not support double backward: run the function without compile, or compute the "
                "gradient inside of it"
            )
        for tensor, counter, count in self.counts:
            if counter[0] != count:
                raise RuntimeError(changed_since(tensor, count, "read by a compiled function"))
        if self.again is not None and (with_graph or results != self.starts):
            return self.again.gradients(results, grads, self.ends)
        found = list(self.program.backward(grads, self.target))
        for i, (edge, g) in enumerate(zip(self.edges, found, strict=True)):
            # A hook may keep the gradient, whose memory belongs to the recording.
            if edge is not None and g is not None and (edge[1] is not None or edge[0]._hooks):
                found[i] = g.copy(order="K")
        return tuple(found)


def changed_since(tensor: Tensor, count: int, what: str) -> str:
    """The message about a tensor that a backward pass needs as it was."""
    return (
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"{list(tensor.shape)}, which is {what}, is at version {tensor._version_counter()[0]}; expected version "
        f"{count} instead"
    )
