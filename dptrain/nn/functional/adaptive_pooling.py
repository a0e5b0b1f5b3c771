"""Pools to a given size, pools over random windows, and what undoes a maximum pool."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of, to_host
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.conv import batched
from dptrain.core.ops.pick import Pick
from dptrain.core.ops.pool_any import MaxUnpool, adaptive_spans, output_sizes, planes
from dptrain.core.ops.windows import Sizes, sizes_of
from dptrain.core.random import default_generator
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.pooling import with_indices

adaptive_avg_pool1d = FUNCTIONS["adaptive_avg_pool1d"]
adaptive_avg_pool2d = FUNCTIONS["adaptive_avg_pool2d"]
adaptive_avg_pool3d = FUNCTIONS["adaptive_avg_pool3d"]


def _picked(input: Tensor, where: np.ndarray, rank: int, outs: Sizes, both: bool) -> Any:
    shape = (*input.shape[:-rank], *outs)
    values = Pick.apply(planes(input, rank)[0], where).reshape(shape)
    return (values, wrap(where.reshape(shape))) if both else values


def _best(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The number of the largest value over the last axis (the first of equals; NaN is largest, the last of them)."""
    if not values.size:
        at = namespace_of(values).zeros(values.shape[:-1], int)
    else:
        nans = values != values
        last = values.shape[-1] - 1 - nans[..., ::-1].argmax(axis=-1)
        at = np.where(nans.any(axis=-1), last, values.argmax(axis=-1))
    return np.take_along_axis(np.broadcast_to(numbers, values.shape), at[..., None], axis=-1)[
        ..., 0
    ]


def _adaptive_max(rank: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    op = f"adaptive_max_pool{rank}d"
    outs = output_sizes(op, output_size, rank, input)
    rows, sizes = planes(input, rank)
    # Windows of unequal length are filled up with their last entry, which changes no maximum.
    places = []
    for size, out in zip(sizes, outs, strict=True):
        start, end = adaptive_spans(size, out)
        longest = int((end - start).max()) if out else 1
        places.append(np.minimum(start[:, None] + np.arange(longest), end[:, None] - 1))
    grid = [p.reshape(*_spread(p.shape, i, rank)) for i, p in enumerate(places)]
    numbers = np.ravel_multi_index(np.broadcast_arrays(*grid), sizes).reshape(
        math.prod(outs), math.prod(p.shape[1] for p in places)
    )
    numbers = namespace_of(rows._array).asarray(numbers)
    where = _best(rows._array[:, numbers], numbers)
    return _picked(input, where, rank, outs, return_indices)


def _spread(shape: Sizes, i: int, rank: int) -> Sizes:
    """(out, length) of dimension i as part of (outs..., lengths...)."""
    out, length = [1] * rank, [1] * rank
    out[i], length[i] = shape
    return (*out, *length)


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over windows that divide the input evenly: (N, C, L) -> (N, C, output_size)."""
    return _adaptive_max(1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over windows that divide the input evenly: (N, C, H, W) -> (N, C, *output_size)."""
    return _adaptive_max(2, input, output_size, return_indices)


def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over windows that divide the input evenly: (N, C, D, H, W) -> (N, C, *output_size)."""
    return _adaptive_max(3, input, output_size, return_indices)


adaptive_max_pool1d_with_indices = with_indices(adaptive_max_pool1d)
adaptive_max_pool2d_with_indices = with_indices(adaptive_max_pool2d)
adaptive_max_pool3d_with_indices = with_indices(adaptive_max_pool3d)


def _starts(samples: np.ndarray, size: int, out: int, kernel: int) -> np.ndarray:
    """First entries of the random windows: (R,) in [0, 1) -> (R, out)."""
    starts = np.full((len(samples), out), size - kernel)
    if out > 1:
        alpha = samples.dtype.type((size - kernel) / (out - 1))
        i = np.arange(out - 1, dtype=samples.dtype)
        s = samples[:, None]
        starts[:, :-1] = ((i + s) * alpha).astype(np.int64) - (s * alpha).astype(np.int64)
    return starts


def _fractional(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    output_size: Any,
    output_ratio: Any,
    return_indices: bool,
    samples: Tensor | None,
) -> Any:
    op = f"fractional_max_pool{rank}d"
    batched(op, input, rank)
    kernel = sizes_of(kernel_size, rank, op, "kernel_size")
    rows, sizes = planes(input, rank)
    if output_size is None and output_ratio is None:
        raise ValueError(f"{op} requires specifying either an output_size or an output_ratio")
    if output_size is None:
        ratios = output_ratio if isinstance(output_ratio, (tuple, list)) else (output_ratio,) * rank
        outs = tuple(int(s * r) for s, r in zip(sizes, ratios, strict=True))
    else:
        outs = sizes_of(output_size, rank, op, "output_size")
    for size, out, k in zip(sizes, outs, kernel, strict=True):
        # PyTorch asks for one entry more in three dimensions.
        if out < 1 or out + k - 1 > size - (rank == 3):
            raise RuntimeError(
                f"{op}: kernel_size {kernel} and output size {outs} are too large for input sizes {sizes}"
            )
    if samples is None:
        drawn = default_generator().stream().random((len(rows._array), rank))
        draws = drawn.astype(rows._array.dtype)
    else:
        if samples.dtype is not input.dtype:
            raise RuntimeError(
                f"{op}: expected _random_samples to have the dtype of the input, {input.dtype}, got {samples.dtype}"
            )
        # PyTorch takes samples of a larger batch too.
        n, channels = (1, input.shape[0]) if input.ndim == rank + 1 else input.shape[:2]
        if samples.ndim != 3 or samples.shape[0] < n or samples.shape[1:] != (channels, rank):
            raise RuntimeError(
                f"{op}: expected _random_samples of shape ({n}, {channels}, {rank}), got {tuple(samples.shape)}"
            )
        draws = to_host(samples._array)[:n].reshape(-1, rank)
    # PyTorch's order: the last dimension first in two dimensions, the first one in three.
    order = (1, 0) if rank == 2 else (0, 1, 2)
    starts = [
        _starts(draws[:, order[i]], sizes[i], outs[i], kernel[i])[
            (slice(None), *(slice(None) if i == j else None for j in range(rank)))
        ]
        for i in range(rank)
    ]
    numbers = np.stack(
        [
            np.ravel_multi_index(
                np.broadcast_arrays(*(s + t for s, t in zip(starts, taps, strict=True))), sizes
            )
            for taps in product(*(range(k) for k in kernel))
        ],
        axis=-1,
    ).reshape(len(draws), math.prod(outs), math.prod(kernel))
    numbers = namespace_of(rows._array).asarray(numbers)
    values = np.take_along_axis(
        rows._array[:, :, None],
        numbers.reshape(len(draws), math.prod(outs) * math.prod(kernel), 1),
        axis=1,
    )
    where = _best(values.reshape(numbers.shape), numbers)
    return _picked(input, where, rank, outs, return_indices)


def fractional_max_pool2d(
    input: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """Maxima over windows at random, increasing places: (N, C, H, W) -> (N, C, oh, ow).

    Source: Graham, "Fractional max-pooling", 2014.

    Args:
        input: (N, C, H, W) or (C, H, W).
        kernel_size: one size or two.
        output_size: sizes of the result; or
        output_ratio: as parts of the input's.
        return_indices: also give the positions of the maxima.

    Raises:
        ValueError: neither size nor ratio.
        RuntimeError: sizes that do not fit.
    """
    return _fractional(
        2, input, kernel_size, output_size, output_ratio, return_indices, _random_samples
    )


def fractional_max_pool3d(
    input: Tensor,
    kernel_size: Any,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """`fractional_max_pool2d` over three dimensions: (N, C, D, H, W) -> (N, C, od, oh, ow)."""
    return _fractional(
        3, input, kernel_size, output_size, output_ratio, return_indices, _random_samples
    )


fractional_max_pool2d_with_indices = with_indices(fractional_max_pool2d)
fractional_max_pool3d_with_indices = with_indices(fractional_max_pool3d)


def _unpool(
    rank: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
) -> Tensor:
    op = f"max_unpool{rank}d"
    batched(op, input, rank)
    kernel = sizes_of(kernel_size, rank, op, "kernel_size")
    step = kernel if stride is None else sizes_of(stride, rank, op, "stride")
    border = sizes_of(padding, rank, op, "padding")
    if min(step) < 1:
        raise RuntimeError(f"{op}: strides should be greater than zero, but got {step}")
    if indices.dtype.name != "int64":
        raise RuntimeError(
            f"{op}: elements in indices should be type int64 but got: {indices.dtype}"
        )
    if indices.shape != input.shape:
        raise RuntimeError(
            f"{op}: Expected shape of indices to be same as that of the input tensor ({list(input.shape)}) "
            f"but got indices tensor with shape: {list(indices.shape)}"
        )
    default = [
        (int(s) - 1) * t + k - 2 * p
        for s, k, t, p in zip(input.shape[-rank:], kernel, step, border, strict=True)
    ]
    given = default if output_size is None else [int(s) for s in output_size]
    if len(given) not in (rank, rank + 2):
        raise ValueError(
            f"output_size should be a sequence containing {rank} or {rank + 2} elements, but it has a length of '{len(given)}'"
        )
    sizes = given[-rank:]
    if min(sizes) < 0:
        raise ValueError(f"{op}: output_size must be non-negative, but got {sizes}")
    for size, d, t in zip(sizes, default, step, strict=True):
        if output_size is not None and not d - t < size < d + t:
            raise ValueError(
                f'invalid output_size "{sizes}" (each dim must be less than one stride away from {default})'
            )
    total = math.prod(sizes)
    where = indices._array
    if where.size and not (where.min() >= 0 and where.max() < total):
        raise RuntimeError(
            f"{op}: found an invalid max index: {int(where.max())} (output sizes are {sizes})"
        )
    rows, _ = planes(input, rank)
    out = MaxUnpool.apply(rows, where.reshape(rows._array.shape), total)
    return out.reshape(*input.shape[:-rank], *sizes)


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
) -> Tensor:
    """Values back at the positions of `max_pool1d(..., return_indices=True)`, zeros elsewhere."""
    return _unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
) -> Tensor:
    """Values back at the positions of `max_pool2d(..., return_indices=True)`, zeros elsewhere."""
    return _unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
) -> Tensor:
    """Values back at the positions of `max_pool3d(..., return_indices=True)`, zeros elsewhere."""
    return _unpool(3, input, indices, kernel_size, stride, padding, output_size)
