"""Dropping elements at random."""

from __future__ import annotations

from dptrain.core.ops.activation import Dropout
from dptrain.core.tensor import Tensor


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability `p` and scale the rest by 1 / (1 - p).

    The masks come from the dropout stream of the default generator (one per rank), apart from all
    other draws.

    Args:
        input: values of any shape.
        p: probability of an element to be zeroed.
        training: if False, the input is returned as it is.
        inplace: change `input` itself.

    Raises:
        ValueError: `p` is outside [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0 or input.numel() == 0:
        return input
    if inplace:
        input._check_inplace("dropout_")
        input._assign_result(Dropout.apply(input, p), "dropout_")
        return input
    return Dropout.apply(input, p)
