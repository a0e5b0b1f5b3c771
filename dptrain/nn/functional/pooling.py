"""Pools over windows of a fixed size: maxima, means and p-norms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import Any

from dptrain.core.export import FUNCTIONS
from dptrain.core.node_names import named
from dptrain.core.ops.pool_any import max_pool
from dptrain.core.ops.windows import sizes_of
from dptrain.core.tensor import Tensor

avg_pool1d = FUNCTIONS["avg_pool1d"]
avg_pool2d = FUNCTIONS["avg_pool2d"]
avg_pool3d = FUNCTIONS["avg_pool3d"]


def _max_pool(rank: int) -> Any:
    name = f"max_pool{rank}d"
    # Without its checks of arguments, which those of the function here have done.
    plain = named(name, FUNCTIONS[name].__wrapped__)  # type: ignore[attr-defined]

    def pool(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        if return_indices:
            return max_pool(name, rank, input, kernel_size, stride, padding, dilation, ceil_mode)
        return plain(input, kernel_size, stride, padding, dilation, ceil_mode)

    pool.__name__ = pool.__qualname__ = name
    pool.__doc__ = """The largest value of each window: (N, C, *sizes) -> (N, C, *outs); also unbatched.

    With `return_indices` a pair: the values, and where they stand (row-major over the sizes).

    Raises:
        RuntimeError: sizes that do not fit.
    """
    return pool


max_pool1d, max_pool2d, max_pool3d = (_max_pool(rank) for rank in (1, 2, 3))


def with_indices(pool: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The function of a pool that always gives the indices too."""
    signature = inspect.signature(pool)

    @wraps(pool)
    def both(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = signature.bind(*args, **kwargs).arguments
        found: tuple[Tensor, Tensor] = pool(**{**given, "return_indices": True})
        return found

    both.__name__ = both.__qualname__ = f"{pool.__name__}_with_indices"
    both.__doc__ = f"`{pool.__name__}` with its indices."
    return both


max_pool1d_with_indices = with_indices(max_pool1d)
max_pool2d_with_indices = with_indices(max_pool2d)
max_pool3d_with_indices = with_indices(max_pool3d)


def _lp_pool(
    rank: int, input: Tensor, norm_type: float, kernel_size: Any, stride: Any, ceil_mode: bool
) -> Tensor:
    taps = math.prod(sizes_of(kernel_size, rank, f"lp_pool{rank}d", "kernel_size"))
    mean = (avg_pool1d, avg_pool2d, avg_pool3d)[rank - 1]
    out = mean(input**norm_type, kernel_size, stride, 0, ceil_mode)
    # As PyTorch: the sign survives an odd power, and the root is taken of the absolute value.
    return (out.sign() * out.abs().relu() * taps) ** (1.0 / norm_type)


def lp_pool1d(
    input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The p-norm of each window: (N, C, L) -> (N, C, out); also unbatched."""
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The p-norm of each window: (N, C, H, W) -> (N, C, oh, ow); also unbatched."""
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
) -> Tensor:
    """The p-norm of each window: (N, C, D, H, W) -> (N, C, od, oh, ow); also unbatched."""
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode)
