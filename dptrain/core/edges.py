"""Places in the graph that a user names without the tensor: `GradientEdge`.

Owns: `GradientEdge`, `get_gradient_edge`, `tensor_at`. Must not know: the reverse pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dptrain.core.op import AccumulateGrad
from dptrain.core.tensor import Tensor, wrap


class GradientEdge(NamedTuple):
    """A result of a node, which stands for its tensor in `autograd.grad` and `autograd.backward`.

    Attributes:
        node: as a tensor's `grad_fn`; for a leaf its `AccumulateGrad`.
        output_nr: which result of the node.
        ownership_token: keeps nothing alive that `node` does not; None.
    """

    node: Any
    output_nr: int
    ownership_token: Any = None


def get_gradient_edge(tensor: Tensor) -> GradientEdge:
    """Where the gradient of a tensor is computed.

    Raises:
        RuntimeError: it does not require gradients.
    """
    if not tensor.requires_grad:
        raise RuntimeError(
            "It is not possible to get the gradient edge for a Tensor that does not require gradients"
        )
    if tensor.grad_fn is None:
        return GradientEdge(AccumulateGrad(tensor), 0)
    return GradientEdge(tensor.grad_fn, tensor.output_nr)


def tensor_at(place: Any) -> Any:
    """A Tensor that has this edge, with its shape and without its values; what is no edge as it is."""
    if not isinstance(place, GradientEdge):
        return place
    if isinstance(place.node, AccumulateGrad):
        return place.node.variable
    shape, kind = place.node.outs[place.output_nr]
    tensor = wrap(np.broadcast_to(np.zeros((), kind), shape))
    tensor._node, tensor._index, tensor._requires_grad = place.node, place.output_nr, True
    return tensor
