"""A replayed call as one node of the graph.

Owns: `Replayed`. Must not know: how calls are recorded and replayed.
"""

from __future__ import annotations

from typing import Any

from dptrain.compiler.draft import Draft
from dptrain.core.op import Op, _sequence, edge_of
from dptrain.core.tensor import Tensor


class Replayed(Op):
    """What a compiled function computed; its backward pass is replayed too.

    Attributes:
        program: runs the backward pass.
        counts: the parameters behind the call, and how often they had been changed in place.
    """

    program: Any
    counts: list[tuple[Tensor, int]]

    name = "compiled_function"
    backward_name = "CompiledFunctionBackward"

    @staticmethod
    def attach(draft: Draft, result: Tensor, tensors: list[Tensor], program: Any) -> Replayed:
        """Make the node of a result.

        Args:
            draft: the recording.
            result: of the call.
            tensors: its tensor arguments.
            program: runs the backward pass: takes the gradient of the result.
        """
        back = draft.backwards[0]
        node = Replayed()
        ends = [tensors[e] if isinstance(e, int) else e for e in back.leaves]
        node.edges = [edge_of(e) for e in ends]
        node.outs = ((result._array.shape, result._array.dtype),)
        node.hooks, node.saved, node.versions, node.sequence = None, (), (), _sequence()
        node.program = program
        params = [e for e in back.leaves if isinstance(e, Tensor)]
        node.counts = [(p, p._version_counter()[0]) for p in params]
        result._node, result._index, result._requires_grad = node, 0, True
        return node

    def forward(self, *args: Any) -> Any:
        """Has run."""
        raise NotImplementedError("a replayed call is not run again")

    def backward(self, grad: Any) -> Any:
        """The gradients of the leaves behind the call.

        Raises:
            RuntimeError: a second derivative, or a parameter that was changed in place since the call.
        """
        if isinstance(grad, Tensor):
            raise RuntimeError(
                "compile does not support double backward: run the function without compile, or compute the "
                "gradient inside of it"
            )
        for p, count in self.counts:
            if p._version_counter()[0] != count:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"{list(p.shape)}, which is a parameter of a compiled function, is at version "
                    f"{p._version_counter()[0]}; expected version {count} instead"
                )
        grads = self.program.backward(grad)
        return tuple(
            g.copy() if g is not None and _is_kept(edge) else g
            for g, edge in zip(grads, self.edges, strict=True)
        )


def _is_kept(edge: Any) -> bool:
    """Whether a hook may keep the gradient, whose memory belongs to the recording."""
    return edge is not None and (edge[1] is not None or bool(edge[0]._hooks))
