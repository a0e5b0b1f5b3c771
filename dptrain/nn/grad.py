"""Gradients of convolutions as functions of their own: PyTorch's `torch.nn.grad`."""

from __future__ import annotations

from typing import Any

from dptrain.core.creation import zeros
from dptrain.core.engine import grad
from dptrain.core.grad_mode import enable_grad, is_grad_enabled
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


def _by_input(rank: int, size: Any, weight: Tensor, grad_output: Tensor, *options: Any) -> Tensor:
    if len(size) != rank + 2:
        raise ValueError(f"conv{rank}d_input: input_size must have {rank + 2} elements, got {size}")
    # The derivative is linear in the rest, so that the values of the input do not matter.
    input = zeros(tuple(size), dtype=weight.dtype, device=weight.device).requires_grad_()
    return _gradient(rank, input, weight, input, grad_output, options)


def _by_weight(rank: int, input: Tensor, size: Any, grad_output: Tensor, *options: Any) -> Tensor:
    if len(size) != rank + 2:
        raise ValueError(
            f"conv{rank}d_weight: weight_size must have {rank + 2} elements, got {size}"
        )
    weight = zeros(tuple(size), dtype=input.dtype, device=input.device).requires_grad_()
    return _gradient(rank, input, weight, weight, grad_output, options)


def _gradient(
    rank: int, input: Tensor, weight: Tensor, by: Tensor, grad_output: Tensor, options: Any
) -> Tensor:
    others = (input if by is weight else weight, grad_output)
    further = is_grad_enabled() and any(t.requires_grad for t in others)
    with enable_grad():
        out = _CONVOLUTIONS[rank - 1](input, weight, None, *options)
        (found,) = grad(out, by, grad_output, create_graph=further)
    assert found is not None
    return found


def conv1d_input(
    input_size: Any,
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of a 1-d convolution by its input, whose shape is `input_size`."""
    return _by_input(1, input_size, weight, grad_output, stride, padding, dilation, groups)


def conv1d_weight(
    input: Tensor,
    weight_size: Any,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of a 1-d convolution by its weight, whose shape is `weight_size`."""
    return _by_weight(1, input, weight_size, grad_output, stride, padding, dilation, groups)


def conv2d_input(
    input_size: Any,
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of a 2-d convolution by its input, whose shape is `input_size`."""
    return _by_input(2, input_size, weight, grad_output, stride, padding, dilation, groups)


def conv2d_weight(
    input: Tensor,
    weight_size: Any,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of a 2-d convolution by its weight, whose shape is `weight_size`."""
    return _by_weight(2, input, weight_size, grad_output, stride, padding, dilation, groups)


def conv3d_input(
    input_size: Any,
    weight: Tensor,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of a 3-d convolution by its input, whose shape is `input_size`."""
    return _by_input(3, input_size, weight, grad_output, stride, padding, dilation, groups)


def conv3d_weight(
    input: Tensor,
    weight_size: Any,
    grad_output: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The gradient of a 3-d convolution by its weight, whose shape is `weight_size`."""
    return _by_weight(3, input, weight_size, grad_output, stride, padding, dilation, groups)
