"""Activations and the softmax family."""

from __future__ import annotations

import warnings
from typing import Any

from dptrain.core.callers import level_outside
from dptrain.core.ops.activation import LogSoftmax, Relu, Softmax
from dptrain.core.ops.unary import Sigmoid, Tanh
from dptrain.core.tensor import Tensor


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0), element by element; in place if asked."""
    return input.relu_() if inplace else Relu.apply(input)


def relu_(input: Tensor) -> Tensor:
    """`relu` in place."""
    return input.relu_()


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-input)), element by element."""
    return Sigmoid.apply(input)


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent, element by element."""
    return Tanh.apply(input)


def given_dim(name: str, input: Tensor, dim: int | None) -> int:
    """`dim`, or the one that old programs meant when they left it out."""
    if dim is not None:
        return dim
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
        stacklevel=level_outside(),
    )
    return 0 if input.ndim in (0, 1, 3) else 1


def softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """exp(input) / sum(exp(input)) along `dim`; without it, along 0 or 1 with a warning."""
    return Softmax.apply(input, given_dim("softmax", input, dim), dtype)


def log_softmax(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """log(softmax(input)) along `dim`; without it, along 0 or 1 with a warning."""
    return LogSoftmax.apply(input, given_dim("log_softmax", input, dim), dtype)
