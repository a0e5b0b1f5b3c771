"""The three products behind convolution over raw arrays, in one to three dimensions.

Images are (N, C, *sizes) for the caller and channels-last in memory. One and two dimensions run through
the kernels of `dptrain.core.kernels` (a line is an image of height one). Three are windows as rows
(im2col) times the weights as a matrix, one BLAS call per group; source: Chellapilla et al., "High
performance convolutional neural networks for document processing", 2006.
"""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.half import lift
from dptrain.core.kernels import kernels_for
from dptrain.core.kernels.grouping import by_group, channel_rows, weight_matrix
from dptrain.core.ops.windows import (
    Sizes,
    Window,
    channels_first,
    channels_last,
    columns,
    image_of,
)


def _flat(image: Any) -> Any:
    """(N, C, *sizes) -> (N, H, W, C) of what has one or two dimensions."""
    last = channels_last(image)
    return last if image.ndim == 4 else last[:, None]


def _deep(image: Any, rank: int) -> Any:
    """The reverse of `_flat`."""
    return channels_first(image if rank == 2 else image[:, 0])


def _taps(weight: Any) -> Any:
    """(O, C/g, *kernel) -> (O, C/g, kh, kw)."""
    return weight if weight.ndim == 4 else weight[:, :, None]


def _columns(x: Any, outs: Sizes, window: Window, groups: int) -> Any:
    """Windows of each group: (groups, N * outs, taps * C / groups)."""
    return by_group(columns(x, outs, window), groups, math.prod(window.kernel))


def convolve(x: Any, weight: Any, bias: Any, outs: Sizes, window: Window, groups: int) -> Any:
    """(N, C, *sizes) with (O, C/groups, *kernel) -> (N, O, *outs)."""
    rank = len(outs)
    if rank < 3:
        oh, ow = outs if rank == 2 else (1, *outs)
        taps = _taps(weight)
        out = kernels_for(x).conv(_flat(x), taps, bias, oh, ow, window.geometry(), groups)
        return _deep(out, rank)
    columns = _columns(x, outs, window, groups)
    out = kernels_for(x).matmul(columns, weight_matrix(weight, groups))
    out = out.transpose(1, 0, 2).reshape(x.shape[0], *outs, weight.shape[0])
    if bias is not None:
        out += bias  # the product is nobody else's
    return channels_first(out)


def input_gradient(
    grad: Any, weight: Any, bias: Any, x_shape: Sizes, window: Window, groups: int
) -> Any:
    """The gradient of `convolve`'s input, which a transposed convolution (with its bias) computes too."""
    n, c, *sizes = x_shape
    outs = tuple(grad.shape[2:])
    rank = len(outs)
    if rank < 3:
        h, w = sizes if rank == 2 else (1, *sizes)
        out = kernels_for(grad).conv_input_grad(
            _flat(grad), _taps(weight), bias, (n, h, w, c), window.geometry(), groups
        )
        return _deep(out, rank)
    rows = channel_rows(channels_last(grad), groups)
    cols = kernels_for(grad).matmul(rows, weight_matrix(weight, groups).transpose(0, 2, 1))
    taps, count = math.prod(window.kernel), n * math.prod(outs)
    cols = cols.reshape(groups, count, taps, c // groups).transpose(1, 2, 0, 3)
    # Of 16 bits on a GPU only: what the taps of a place hold is added up in float32.
    out = image_of(lift(cols.reshape(count, c * taps)), tuple(x_shape), outs, window)
    out = out if bias is None else out + bias.reshape(-1, *(1,) * rank)
    return out.astype(grad.dtype, copy=False)


def weight_gradient(
    x: Any, grad: Any, w_shape: Sizes, window: Window, groups: int, target: Any = None
) -> tuple[Any, Any]:
    """The gradients of `convolve`'s weight and bias; `target` may take the former, and is returned then."""
    outs = tuple(grad.shape[2:])
    if len(outs) < 3:
        shape = tuple(w_shape) if len(w_shape) == 4 else (*w_shape[:2], 1, w_shape[2])
        given = _flat(x), _flat(grad), shape, window.geometry(), groups
        if target is not None and target.dtype == x.dtype and target.flags.c_contiguous:
            kernels = kernels_for(x)
            return target, kernels.conv_weight_grad(*given, target.reshape(shape))[1]
        out, sums = kernels_for(x).conv_weight_grad(*given)
        return out.reshape(tuple(w_shape)), sums
    o, c, *_ = w_shape
    cols = _columns(x, outs, window, groups)
    rows = channel_rows(channels_last(grad), groups)
    out = kernels_for(x).matmul(cols.transpose(0, 2, 1), rows)  # (g, taps*C/g, O/g)
    taps = out.reshape(groups, math.prod(window.kernel), c, o // groups).transpose(0, 3, 2, 1)
    flat = namespace_of(grad).ascontiguousarray(channels_last(grad)).reshape(-1, o)
    # As a product, which is much faster than a strided sum.
    sums = kernels_for(flat).matmul(namespace_of(flat).ones(len(flat), flat.dtype), flat)
    return taps.reshape(tuple(w_shape)), sums
