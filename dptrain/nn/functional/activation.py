"""Activations and the softmax family."""

from __future__ import annotations

from typing import Any

from dptrain.core.ops.activation import LogSoftmax, Relu, Softmax
from dptrain.core.ops.elementwise import Sigmoid, Tanh
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


def softmax(input: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    """exp(input) / sum(exp(input)) along `dim`, which must be given.

    Raises:
        TypeError: no `dim`.
    """
    return Softmax.apply(input, dim, dtype)


def log_softmax(input: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    """log(softmax(input)) along `dim`, which must be given.

    Raises:
        TypeError: no `dim`.
    """
    return LogSoftmax.apply(input, dim, dtype)
