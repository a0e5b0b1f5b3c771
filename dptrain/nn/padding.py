"""Padding layers: constants, reflections, repetitions and periods around the spatial dimensions."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.module import Module


class _Pad(Module):
    """Borders of the last `rank` dimensions.

    Args:
        padding: one size, or (before, after) of the last dimension, then of the one before it, ...
    """

    rank: ClassVar[int]
    mode: ClassVar[str]

    def __init__(self, padding: Any) -> None:
        super().__init__()
        sides = 2 * self.rank
        sizes = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * sides
        if len(sizes) != sides:
            raise ValueError(
                f"{type(self).__name__}: padding must be an int or {sides} ints, got {padding!r}"
            )
        self.padding = sizes

    def forward(self, input: Tensor) -> Tensor:
        """(..., *sizes) -> (..., *sizes with borders)."""
        return F.pad(input, self.padding, self.mode)

    def extra_repr(self) -> str:
        """The sizes, as PyTorch prints them."""
        return f"{self.padding}"


class _ConstantPad(_Pad):
    """A constant around the last dimensions.

    Args:
        padding: one size, or (before, after) of the last dimension, then of the one before it, ...
        value: the constant.
    """

    mode = "constant"

    def __init__(self, padding: Any, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        """(..., *sizes) -> (..., *sizes with borders)."""
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"padding={self.padding}, value={self.value}"


class _ZeroPad(_ConstantPad):
    """Zeros around the last dimensions.

    Args:
        padding: one size, or (before, after) of the last dimension, then of the one before it, ...
    """

    def __init__(self, padding: Any) -> None:
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        """The sizes, as PyTorch prints them."""
        return f"{self.padding}"


class _ReflectionPad(_Pad):
    """The mirrored input, without its edge, around the last dimensions.

    Args:
        padding: one size, or (before, after) of the last dimension, then of the one before it, ...
    """

    mode = "reflect"


class _ReplicationPad(_Pad):
    """The edge of the input around the last dimensions.

    Args:
        padding: one size, or (before, after) of the last dimension, then of the one before it, ...
    """

    mode = "replicate"


class _CircularPad(_Pad):
    """The input again, as if it were periodic, around the last dimensions.

    Args:
        padding: one size, or (before, after) of the last dimension, then of the one before it, ...
    """

    mode = "circular"

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *sizes) or (C, *sizes) -> the same with borders.

        Raises:
            ValueError: the wrong number of dimensions.
        """
        if input.ndim not in (self.rank + 1, self.rank + 2):
            raise ValueError(
                f"expected {self.rank + 1}D or {self.rank + 2}D input (got {input.ndim}D input)"
            )
        return super().forward(input)


class ConstantPad1d(_ConstantPad):
    __doc__ = _ConstantPad.__doc__
    rank = 1


class ConstantPad2d(_ConstantPad):
    __doc__ = _ConstantPad.__doc__
    rank = 2


class ConstantPad3d(_ConstantPad):
    __doc__ = _ConstantPad.__doc__
    rank = 3


class ZeroPad1d(_ZeroPad):
    __doc__ = _ZeroPad.__doc__
    rank = 1


class ZeroPad2d(_ZeroPad):
    __doc__ = _ZeroPad.__doc__
    rank = 2


class ZeroPad3d(_ZeroPad):
    __doc__ = _ZeroPad.__doc__
    rank = 3


class ReflectionPad1d(_ReflectionPad):
    __doc__ = _ReflectionPad.__doc__
    rank = 1


class ReflectionPad2d(_ReflectionPad):
    __doc__ = _ReflectionPad.__doc__
    rank = 2


class ReflectionPad3d(_ReflectionPad):
    __doc__ = _ReflectionPad.__doc__
    rank = 3


class ReplicationPad1d(_ReplicationPad):
    __doc__ = _ReplicationPad.__doc__
    rank = 1


class ReplicationPad2d(_ReplicationPad):
    __doc__ = _ReplicationPad.__doc__
    rank = 2


class ReplicationPad3d(_ReplicationPad):
    __doc__ = _ReplicationPad.__doc__
    rank = 3


class CircularPad1d(_CircularPad):
    __doc__ = _CircularPad.__doc__
    rank = 1


class CircularPad2d(_CircularPad):
    __doc__ = _CircularPad.__doc__
    rank = 2


class CircularPad3d(_CircularPad):
    __doc__ = _CircularPad.__doc__
    rank = 3
