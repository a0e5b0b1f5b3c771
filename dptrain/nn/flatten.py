"""Layers that change only the shape."""

from __future__ import annotations

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
