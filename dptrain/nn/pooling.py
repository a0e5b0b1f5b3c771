"""Pooling layers over windows of a fixed size."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.module import Module


class _MaxPool(Module):
    """The largest value of each window: (N, C, *sizes) -> (N, C, *outs); also unbatched.

    Args:
        kernel_size: one size or one per dimension.
        stride: step of the window; the kernel size by default.
        padding: border of minus infinity.
        dilation: distance between the elements of a window.
        return_indices: also give the positions of the maxima.
        ceil_mode: let the last window overhang the image.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Any:
        """(N, C, *sizes) -> (N, C, *outs), and the positions where asked."""
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[self.rank - 1]
        return pool(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    __doc__ = _MaxPool.__doc__
    rank = 1


class MaxPool2d(_MaxPool):
    __doc__ = _MaxPool.__doc__
    rank = 2


class MaxPool3d(_MaxPool):
    __doc__ = _MaxPool.__doc__
    rank = 3


class AvgPool1d(Module):
    """The mean of each window: (N, C, L) -> (N, C, out); also unbatched.

    Args:
        kernel_size: size of the window.
        stride: its step; the kernel size by default.
        padding: border of zeros.
        ceil_mode: let the last window overhang the line.
        count_include_pad: whether the border counts in the mean.
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        # One size each, kept as PyTorch keeps them: a tuple of one.
        self.kernel_size = _single(kernel_size)
        self.stride = self.kernel_size if stride is None else _single(stride)
        self.padding = _single(padding)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, L) -> (N, C, out)."""
        return F.avg_pool1d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def _single(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


class _AvgPool(Module):
    """The mean of each window: (N, C, *sizes) -> (N, C, *outs); also unbatched.

    Args:
        kernel_size: one size or one per dimension.
        stride: step of the window; the kernel size by default.
        padding: border of zeros.
        ceil_mode: let the last window overhang the image.
        count_include_pad: whether the border counts in the mean.
        divisor_override: divide by this instead of the number of elements.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *sizes) -> (N, C, *outs)."""
        return (F.avg_pool2d, F.avg_pool3d)[self.rank - 2](
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(_AvgPool):
    __doc__ = _AvgPool.__doc__
    rank = 2


class AvgPool3d(_AvgPool):
    __doc__ = _AvgPool.__doc__
    rank = 3


class _LPPool(Module):
    """The p-norm of each window: (N, C, *sizes) -> (N, C, *outs); also unbatched.

    Args:
        norm_type: p.
        kernel_size: one size or one per dimension.
        stride: step of the window; the kernel size by default.
        ceil_mode: let the last window overhang the image.
    """

    rank: ClassVar[int]

    def __init__(
        self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.norm_type = norm_type
        self.kernel_size = kernel_size
        self.stride = stride
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *sizes) -> (N, C, *outs)."""
        pool = (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)[self.rank - 1]
        return pool(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return (
            f"norm_type={self.norm_type}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"ceil_mode={self.ceil_mode}"
        )


class LPPool1d(_LPPool):
    __doc__ = _LPPool.__doc__
    rank = 1


class LPPool2d(_LPPool):
    __doc__ = _LPPool.__doc__
    rank = 2


class LPPool3d(_LPPool):
    __doc__ = _LPPool.__doc__
    rank = 3
