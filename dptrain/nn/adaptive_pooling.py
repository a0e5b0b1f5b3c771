"""Pooling layers to a given size, over random windows, and those that undo a maximum pool."""

from __future__ import annotations

from typing import Any, ClassVar

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.module import Module


class _AdaptiveAvgPool(Module):
    """Means over windows that divide the input evenly: (N, C, *sizes) -> (N, C, *output_size).

    Args:
        output_size: one size or one per dimension; None keeps the input's.
    """

    rank: ClassVar[int]

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, *sizes) -> (N, C, *output_size)."""
        pools = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
        return pools[self.rank - 1](input, self.output_size)

    def extra_repr(self) -> str:
        """The size, as PyTorch prints it."""
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    __doc__ = _AdaptiveAvgPool.__doc__
    rank = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    __doc__ = _AdaptiveAvgPool.__doc__
    rank = 2


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    __doc__ = _AdaptiveAvgPool.__doc__
    rank = 3


class _AdaptiveMaxPool(Module):
    """Maxima over windows that divide the input evenly: (N, C, *sizes) -> (N, C, *output_size).

    Args:
        output_size: one size or one per dimension; None keeps the input's.
        return_indices: also give the positions of the maxima.
    """

    rank: ClassVar[int]

    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__()
        self.output_size = output_size
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        """(N, C, *sizes) -> (N, C, *output_size), and the positions where asked."""
        pools = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
        return pools[self.rank - 1](input, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        """The size, as PyTorch prints it."""
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    __doc__ = _AdaptiveMaxPool.__doc__
    rank = 1


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    __doc__ = _AdaptiveMaxPool.__doc__
    rank = 2


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    __doc__ = _AdaptiveMaxPool.__doc__
    rank = 3


class _FractionalMaxPool(Module):
    """Maxima over windows at random, increasing places: (N, C, *sizes) -> (N, C, *outs).

    Args:
        kernel_size: one size or one per dimension.
        output_size: sizes of the result; or
        output_ratio: as parts of the input's, between 0 and 1.
        return_indices: also give the positions of the maxima.

    Raises:
        ValueError: neither or both of size and ratio, or a ratio outside (0, 1).
    """

    rank: ClassVar[int]

    def __init__(
        self,
        kernel_size: Any,
        output_size: Any = None,
        output_ratio: Any = None,
        return_indices: bool = False,
        _random_samples: Tensor | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.kernel_size = self._sizes(kernel_size)
        if self.rank == 3 and any(not size > 0 for size in self.kernel_size):
            raise ValueError(f"kernel_size must be greater than 0, but got {kernel_size}")
        self.return_indices = return_indices
        self.register_buffer("_random_samples", _random_samples)
        self.output_size = None if output_size is None else self._sizes(output_size)
        self.output_ratio = None if output_ratio is None else self._sizes(output_ratio)
        if output_size is None and output_ratio is None:
            raise ValueError(
                f"{name} requires specifying either an output size, or a pooling ratio"
            )
        if output_size is not None and output_ratio is not None:
            raise ValueError("only one of output_size and output_ratio may be specified")
        if self.output_ratio is not None and not all(0 < r < 1 for r in self.output_ratio):
            raise ValueError(f"output_ratio must be between 0 and 1 (got {output_ratio})")

    def _sizes(self, value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * self.rank

    def forward(self, input: Tensor) -> Any:
        """(N, C, *sizes) -> (N, C, *outs), and the positions where asked."""
        pool = (F.fractional_max_pool2d, F.fractional_max_pool3d)[self.rank - 2]
        return pool(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            self._random_samples,
        )


class FractionalMaxPool2d(_FractionalMaxPool):
    __doc__ = _FractionalMaxPool.__doc__
    rank = 2


class FractionalMaxPool3d(_FractionalMaxPool):
    __doc__ = _FractionalMaxPool.__doc__
    rank = 3


class _MaxUnpool(Module):
    """Values back at the positions of a maximum pool, zeros elsewhere.

    Args:
        kernel_size: that of the pool.
        stride: that of the pool; the kernel size by default.
        padding: that of the pool.
    """

    rank: ClassVar[int]

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__()
        self.kernel_size = self._sizes(kernel_size)
        self.stride = self._sizes(kernel_size if stride is None else stride)
        self.padding = self._sizes(padding)

    def _sizes(self, value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * self.rank

    def forward(self, input: Tensor, indices: Tensor, output_size: Any = None) -> Tensor:
        """(N, C, *outs) with the pool's positions -> (N, C, *sizes)."""
        unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[self.rank - 1]
        return unpool(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        """The options, as PyTorch prints them."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpool):
    __doc__ = _MaxUnpool.__doc__
    rank = 1


class MaxUnpool2d(_MaxUnpool):
    __doc__ = _MaxUnpool.__doc__
    rank = 2


class MaxUnpool3d(_MaxUnpool):
    __doc__ = _MaxUnpool.__doc__
    rank = 3
