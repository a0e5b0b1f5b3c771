"""Layers that change only the shape."""

from __future__ import annotations

from collections.abc import Sequence

from dptrain.core.ops.shape import wrap_dim
from dptrain.core.tensor import Tensor
from dptrain.nn.module import Module


class Flatten(Module):
    """Join the dimensions `start_dim` to `end_dim`: (N, C, H, W) -> (N, C * H * W) by default.

    Args:
        start_dim: first dimension to join.
        end_dim: last dimension to join.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        """(d0, ..., dn) -> the shape with the named dimensions as one."""
        return input.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Take one dimension apart: (..., d, ...) -> (..., *unflattened_size, ...).

    Args:
        dim: the dimension.
        unflattened_size: its new sizes, one of which may be -1.

    Raises:
        TypeError: the dimension is no int, or the sizes are no ints.
    """

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(dim, int):
            raise TypeError(
                "Unflatten: dimensions must be ints; named dimensions do not exist here"
            )
        if not isinstance(unflattened_size, (tuple, list)):
            raise TypeError(
                f"unflattened_size must be a tuple of ints, but found type {type(unflattened_size).__name__}"
            )
        for i, size in enumerate(unflattened_size):
            if not isinstance(size, int):
                raise TypeError(
                    f"unflattened_size must be tuple of ints, but found element of type {type(size).__name__} at pos {i}"
                )
        self.dim = dim
        self.unflattened_size = unflattened_size

    def forward(self, input: Tensor) -> Tensor:
        """(..., d, ...) -> (..., *unflattened_size, ...)."""
        dim = wrap_dim(self.dim, input.ndim, "unflatten")
        return input.reshape(*input.shape[:dim], *self.unflattened_size, *input.shape[dim + 1 :])

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
