"""Smooth activation layers, and those that work along a dimension."""

from __future__ import annotations

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.activation_linear import inplace_text
from dptrain.nn.module import Module


class ELU(Module):
    """x where positive, else alpha * (exp(x) - 1).

    Args:
        alpha: the limit towards minus infinity, negated.
        inplace: change the input itself.
    """

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha = alpha
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.elu(input, self.alpha, self.inplace)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return inplace_text(self.inplace, f"alpha={self.alpha}")


class CELU(ELU):
    """x where positive, else alpha * (exp(x / alpha) - 1).

    Args:
        alpha: the limit towards minus infinity, negated.
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.celu(input, self.alpha, self.inplace)


class _MaybeInplace(Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        """`inplace=True` where it is so."""
        return inplace_text(self.inplace)


class SELU(_MaybeInplace):
    """ELU with the scale and alpha that keep mean 0 and variance 1.

    Args:
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.selu(input, self.inplace)


class SiLU(_MaybeInplace):
    """x * sigmoid(x), also called swish.

    Args:
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.silu(input, self.inplace)


class Mish(_MaybeInplace):
    """x * tanh(softplus(x)).

    Args:
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.mish(input, self.inplace)


class GELU(Module):
    """x times the normal distribution function of x.

    Args:
        approximate: "none", or "tanh" for the approximation by tanh.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"approximate={self.approximate!r}"


class Softplus(Module):
    """log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold.

    Args:
        beta: sharpness.
        threshold: where the function becomes the identity.
    """

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        self.beta = beta
        self.threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.softplus(input, self.beta, self.threshold)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"beta={self.beta}, threshold={self.threshold}"


class Softsign(Module):
    """x / (1 + |x|)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.softsign(input)


class Tanhshrink(Module):
    """x - tanh(x)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.tanhshrink(input)


class LogSigmoid(Module):
    """log(sigmoid(x))."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.logsigmoid(input)


class GLU(Module):
    """a * sigmoid(b) for the two halves a and b of a dimension.

    Args:
        dim: the dimension that is halved.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """(*, 2n, *) -> (*, n, *)."""
        return F.glu(input, self.dim)

    def extra_repr(self) -> str:
        """The dimension."""
        return f"dim={self.dim}"


class Softmin(Module):
    """softmax(-x) along `dim`.

    Args:
        dim: the dimension along which the results sum to 1.
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.softmin(input, self.dim, _stacklevel=5)

    def extra_repr(self) -> str:
        """The dimension."""
        return f"dim={self.dim}"


class Softmax2d(Module):
    """softmax over the channels of each place: (N, C, H, W) or (C, H, W).

    Raises:
        ValueError: another number of dimensions.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W); the result has the same shape."""
        if input.ndim not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.ndim}D instead")
        return F.softmax(input, -3)
