"""Dropout layers."""

from __future__ import annotations

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.module import Module


class Dropout(Module):
    """In training, zero each element with probability `p` and scale the rest by 1 / (1 - p).

    Source: Hinton et al., "Improving neural networks by preventing co-adaptation of feature
    detectors", 2012.

    Args:
        p: probability of an element to be zeroed.
        inplace: change the input itself.

    Raises:
        ValueError: `p` is outside [0, 1].
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"p={self.p}, inplace={self.inplace}"
