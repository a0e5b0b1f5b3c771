"""Pooling over windows of images."""

from __future__ import annotations

from typing import Any

from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor

avg_pool2d = FUNCTIONS["avg_pool2d"]
_max_pool2d = FUNCTIONS["max_pool2d"]


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The largest value of each window: (N, C, H, W) -> (N, C, oh, ow); also unbatched.

    Raises:
        ValueError: `return_indices`, which is not supported.
        RuntimeError: sizes that do not fit.
    """
    if return_indices:
        raise ValueError("max_pool2d: return_indices=True is not supported; use False")
    return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
