"""Convolution over volumes for arrays of any library: windows as rows times the weights as a matrix.

Part of the definition in `reference`. Volumes are channels-last: (N, D, H, W, C); weights (O, C/groups, kd, kh, kw).
Source: as of `reference_windows`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.half import lift
from dptrain.core.kernels import grouping
from dptrain.core.kernels.reference_windows import Geometry

Sizes = tuple[int, ...]
#: Kernel, stride, padding and dilation, each with three sizes.
Windows = tuple[Sizes, Sizes, Sizes, Sizes]


def of_one_plane(geometry: Geometry) -> Windows:
    """The windows of images as volumes of one plane."""
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    return (1, kh, kw), (1, sh, sw), (0, ph, pw), (1, dh, dw)


def _bordered(sizes: Sizes, outs: Sizes, windows: Windows) -> Sizes:
    """Sizes of the volume with its border, large enough for the last window."""
    return tuple(
        max(s + 2 * p, (o - 1) * t + (k - 1) * d + 1)
        for s, o, k, t, p, d in zip(sizes, outs, *windows, strict=True)
    )


def _inside(sizes: Sizes, windows: Windows) -> tuple[slice, ...]:
    return (slice(None), *(slice(p, p + s) for s, p in zip(sizes, windows[2], strict=True)))


def _taps(outs: Sizes, windows: Windows) -> Iterator[tuple[slice, ...]]:
    """For each tap of the kernel: the places of the bordered volume that it meets."""
    kernel, strides, _, dilation = windows
    for places in product(*map(range, kernel)):
        yield (
            slice(None),
            *(
                slice(i * d, i * d + (o - 1) * t + 1, t)
                for i, o, t, d in zip(places, outs, strides, dilation, strict=True)
            ),
        )


def _columns(x: Any, outs: Sizes, windows: Windows, groups: int) -> Any:
    """Windows of each group as rows: (groups, N * outs, taps * C / groups)."""
    n, *sizes, c = x.shape
    xp, kernel = namespace_of(x), windows[0]
    padded = xp.zeros((n, *_bordered(tuple(sizes), outs, windows), c), x.dtype)
    padded[_inside(tuple(sizes), windows)] = x
    first, *steps, last = padded.strides
    windowed = xp.lib.stride_tricks.as_strided(
        padded,
        (n, *outs, *kernel, c),
        (
            first,
            *(s * t for s, t in zip(steps, windows[1], strict=True)),
            *(s * d for s, d in zip(steps, windows[3], strict=True)),
            last,
        ),
        writeable=False,
    )
    rows = windowed.reshape(n * math.prod(outs), math.prod(kernel) * c)
    return grouping.by_group(rows, groups, math.prod(kernel))


def conv_volume(
    x: Any,
    weight: Any,
    bias: Any,
    outs: Sizes,
    windows: Windows,
    groups: int,
    matmul: Callable[..., Any] = np.matmul,
) -> Any:
    """(N, D, H, W, C) with (O, C/groups, kd, kh, kw) -> (N, *outs, O)."""
    columns = _columns(x, outs, windows, groups)
    out = matmul(columns, grouping.weight_matrix(weight, groups))
    out = out.transpose(1, 0, 2).reshape(len(x), *outs, len(weight))
    return out if bias is None else out + bias


def conv_volume_input_grad(
    grad: Any,
    weight: Any,
    bias: Any,
    shape: Sizes,
    windows: Windows,
    groups: int,
    matmul: Callable[..., Any] = np.matmul,
) -> Any:
    """The gradient of `conv_volume`'s input, of that shape (also a transposed convolution, with its bias)."""
    n, *sizes, c = shape
    outs = tuple(grad.shape[1:-1])
    products = matmul(
        grouping.channel_rows(grad, groups),
        grouping.weight_matrix(weight, groups).transpose(0, 2, 1),
    )
    # What the taps of a place hold is added up in float32, if it has 16 bits (on a GPU).
    taps = lift(products).reshape(groups, n, *outs, math.prod(windows[0]), c // groups)
    padded = namespace_of(grad).zeros(
        (n, *_bordered(tuple(sizes), outs, windows), groups, c // groups), taps.dtype
    )
    for tap, places in enumerate(_taps(outs, windows)):
        padded[places] += taps[..., tap, :].transpose(1, 2, 3, 4, 0, 5)
    out = padded[_inside(tuple(sizes), windows)].reshape(shape)
    out = out if bias is None else out + bias
    return out.astype(grad.dtype, copy=False)


def conv_volume_weight_grad(
    x: Any,
    grad: Any,
    w_shape: Sizes,
    windows: Windows,
    groups: int,
    matmul: Callable[..., Any] = np.matmul,
) -> tuple[Any, Any]:
    """The gradients of `conv_volume`'s weight and bias."""
    o, c, *kernel = w_shape
    columns = _columns(x, tuple(grad.shape[1:-1]), windows, groups)
    out = matmul(columns.transpose(0, 2, 1), grouping.channel_rows(grad, groups))
    taps = out.reshape(groups, math.prod(kernel), c, o // groups).transpose(0, 3, 2, 1)
    flat = namespace_of(grad).ascontiguousarray(grad).reshape(-1, o)
    # As a product, which is much faster than a strided sum.
    sums = matmul(namespace_of(flat).ones((1, len(flat)), flat.dtype), flat)[0]
    return taps.reshape(w_shape), sums
