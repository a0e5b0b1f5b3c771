"""Activation layers made of straight pieces."""

from __future__ import annotations

import warnings
from typing import Any

from dptrain.core.callers import level_outside
from dptrain.core.creation import empty
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter


def inplace_text(inplace: bool, before: str = "") -> str:
    """How PyTorch prints the `inplace` option: only where it is set."""
    mark = "inplace=True" if inplace else ""
    return ", ".join(part for part in (before, mark) if part)


class Threshold(Module):
    """`input` where it is above `threshold`, else `value`.

    Args:
        threshold: the bound.
        value: what replaces values up to it.
        inplace: change the input itself.
    """

    def __init__(self, threshold: float, value: float, inplace: bool = False) -> None:
        super().__init__()
        self.threshold = threshold
        self.value = value
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.threshold(input, self.threshold, self.value, self.inplace)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return inplace_text(self.inplace, f"threshold={self.threshold}, value={self.value}")


def _older(which: str, value: float, older: float | None) -> float:
    if older is None:
        return value
    warnings.warn(
        f"keyword argument `{which}_value` is deprecated and rename to `{which}_val`",
        FutureWarning,
        stacklevel=level_outside(),
    )
    return older


class Hardtanh(Module):
    """`input` limited to [min_val, max_val].

    Args:
        min_val: lower bound.
        max_val: upper bound.
        inplace: change the input itself.
        min_value, max_value: older names of the bounds.

    Raises:
        AssertionError: max_val <= min_val, as in PyTorch.
    """

    def __init__(
        self,
        min_val: float = -1.0,
        max_val: float = 1.0,
        inplace: bool = False,
        min_value: float | None = None,
        max_value: float | None = None,
    ) -> None:
        super().__init__()
        min_val = _older("min", min_val, min_value)
        max_val = _older("max", max_val, max_value)
        if max_val <= min_val:
            raise AssertionError(f"max_val ({max_val}) must be greater than min_val ({min_val})")
        self.min_val = min_val
        self.max_val = max_val
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.hardtanh(input, self.min_val, self.max_val, self.inplace)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return inplace_text(self.inplace, f"min_val={self.min_val}, max_val={self.max_val}")


class ReLU6(Hardtanh):
    """min(max(x, 0), 6).

    Args:
        inplace: change the input itself.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(0.0, 6.0, inplace)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return inplace_text(self.inplace)


class LeakyReLU(Module):
    """x where positive, else negative_slope * x.

    Args:
        negative_slope: slope below 0.
        inplace: change the input itself.
    """

    def __init__(self, negative_slope: float = 1e-2, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.leaky_relu(input, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return inplace_text(self.inplace, f"negative_slope={self.negative_slope}")


class RReLU(Module):
    """Leaky ReLU whose slopes are drawn from U(lower, upper) in training, else their mean.

    Source: Xu et al., "Empirical evaluation of rectified activations in convolutional network", 2015.

    Args:
        lower: smallest slope.
        upper: largest slope.
        inplace: change the input itself.
    """

    def __init__(
        self, lower: float = 1.0 / 8, upper: float = 1.0 / 3, inplace: bool = False
    ) -> None:
        super().__init__()
        self.lower = lower
        self.upper = upper
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return inplace_text(self.inplace, f"lower={self.lower}, upper={self.upper}")


class PReLU(Module):
    """x where positive, else weight * x, with learnt weights.

    Source: He et al., "Delving deep into rectifiers", 2015.

    Args:
        num_parameters: 1, or the number of channels (dimension 1 of the input).
        init: initial value of the weights.
        device: where they live.
        dtype: their type; the default dtype if None.
    """

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.num_parameters = num_parameters
        self.init = init
        self.weight = Parameter(empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all weights to the initial value."""
        init.constant_(self.weight, self.init)

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.prelu(input, self.weight)

    def extra_repr(self) -> str:
        """The number of weights."""
        return f"num_parameters={self.num_parameters}"


class _Shrink(Module):
    def __init__(self, lambd: float = 0.5) -> None:
        super().__init__()
        self.lambd = lambd

    def extra_repr(self) -> str:
        """The width of the part that becomes 0."""
        return str(self.lambd)


class Hardshrink(_Shrink):
    """x outside [-lambd, lambd], 0 inside.

    Args:
        lambd: the bound.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.hardshrink(input, self.lambd)


class Softshrink(_Shrink):
    """x moved towards 0 by lambd, 0 inside [-lambd, lambd].

    Args:
        lambd: the bound, >= 0.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.softshrink(input, self.lambd)


class _Hard(Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace


class Hardsigmoid(_Hard):
    """relu6(x + 3) / 6.

    Args:
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.hardsigmoid(input, self.inplace)


class Hardswish(_Hard):
    """x * relu6(x + 3) / 6.

    Args:
        inplace: change the input itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        return F.hardswish(input, self.inplace)
