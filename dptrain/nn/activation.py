"""Activation layers."""

from __future__ import annotations

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.module import Module


class ReLU(Module):
    """max(x, 0), element by element.

    Args:
        inplace: change the input itself.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.relu(input, self.inplace)

    def extra_repr(self) -> str:
        """`inplace=True` where it is so."""
        return "inplace=True" if self.inplace else ""


class Sigmoid(Module):
    """1 / (1 + exp(-x)), element by element."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.sigmoid(input)


class Tanh(Module):
    """Hyperbolic tangent, element by element."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.tanh(input)


class _AlongDim(Module):
    """A function along one dimension, which has to be given by the time of the call."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        """The dimension."""
        return f"dim={self.dim}"


class Softmax(_AlongDim):
    """exp(x) / sum(exp(x)) along `dim`.

    Args:
        dim: the dimension along which the results sum to 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(_AlongDim):
    """log(softmax(x)) along `dim`.

    Args:
        dim: the dimension along which the exponentials of the results sum to 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.log_softmax(input, self.dim, _stacklevel=5)
