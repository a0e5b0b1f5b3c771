"""Kernels over windows of an image in plain NumPy: convolution and pooling, and their transposes.

Part of the definition in `reference`. Images are channels-last: (N, H, W, C). `geometry` is the tuple
(kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels import grouping

Geometry = tuple[int, int, int, int, int, int, int, int]


def _taps(out_h: int, out_w: int, geometry: Geometry) -> Iterator[tuple[int, slice, slice]]:
    """For each kernel tap: its number and the rows and columns of the padded image it meets."""
    kh, kw, sh, sw, _, _, dh, dw = geometry
    for i in range(kh):
        rows = slice(i * dh, i * dh + (out_h - 1) * sh + 1, sh)
        for j in range(kw):
            yield i * kw + j, rows, slice(j * dw, j * dw + (out_w - 1) * sw + 1, sw)


def _padded(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry, fill: float) -> np.ndarray:
    """The image with its border, large enough for the last window (ceil_mode may overhang)."""
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    n, h, w, c = x.shape
    full_h = max(h + 2 * ph, (out_h - 1) * sh + (kh - 1) * dh + 1)
    full_w = max(w + 2 * pw, (out_w - 1) * sw + (kw - 1) * dw + 1)
    if (full_h, full_w) == (h, w):
        return x
    out = np.full((n, full_h, full_w, c), fill, dtype=x.dtype)
    out[:, ph : ph + h, pw : pw + w] = x
    return out


def im2col(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry) -> np.ndarray:
    """Windows as rows: (N, H, W, C) -> (N * out_h * out_w, kernel_h * kernel_w * C)."""
    kh, kw, sh, sw, _, _, dh, dw = geometry
    p = _padded(x, out_h, out_w, geometry, 0)
    n, _, _, c = p.shape
    s0, s1, s2, s3 = p.strides
    windows = as_strided(
        p,
        (n, out_h, out_w, kh, kw, c),
        (s0, s1 * sh, s2 * sw, s1 * dh, s2 * dw, s3),
        writeable=False,
    )
    return windows.reshape(n * out_h * out_w, kh * kw * c)


def col2im(
    columns: np.ndarray,
    shape: tuple[int, int, int, int],
    out_h: int,
    out_w: int,
    geometry: Geometry,
) -> np.ndarray:
    """The transpose of `im2col`: windows added back to an image of `shape` (N, H, W, C)."""
    kh, kw, _, _, ph, pw, _, _ = geometry
    n, h, w, c = shape
    p = np.zeros_like(_padded(np.empty(shape, columns.dtype), out_h, out_w, geometry, 0))
    windows = columns.reshape(n, out_h, out_w, kh * kw, c)
    for tap, rows, cols in _taps(out_h, out_w, geometry):
        p[:, rows, cols] += windows[:, :, :, tap]
    return p[:, ph : ph + h, pw : pw + w]


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """Convolution as products of windows: (N, H, W, C) with (O, C/groups, kh, kw) -> (N, oh, ow, O).

    Source: Chellapilla et al., "High performance convolutional neural networks for document
    processing", 2006.
    """
    n, o = x.shape[0], weight.shape[0]
    columns = grouping.by_group(
        im2col(x, out_h, out_w, geometry), groups, geometry[0] * geometry[1]
    )
    out = np.matmul(columns, grouping.weight_matrix(weight, groups))
    out = out.transpose(1, 0, 2).reshape(n, out_h, out_w, o)
    return out if bias is None else out + bias


def conv_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """The gradient of `conv`'s input, of that shape (also a transposed convolution, with its bias)."""
    _, out_h, out_w, _ = grad.shape
    products = np.matmul(
        grouping.channel_rows(grad, groups),
        grouping.weight_matrix(weight, groups).transpose(0, 2, 1),
    )
    taps, c = geometry[0] * geometry[1], shape[3]
    count = grad.shape[0] * out_h * out_w
    split = products.reshape(groups, count, taps, c // groups)
    columns = split.transpose(1, 2, 0, 3).reshape(count, taps * c)
    out = col2im(columns, shape, out_h, out_w, geometry)
    return out if bias is None else out + bias


def conv_weight_grad(
    x: np.ndarray,
    grad: np.ndarray,
    w_shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of `conv`'s weight and bias, the former in `out` (contiguous) if it is given."""
    o, c, kh, kw = w_shape
    _, out_h, out_w, _ = grad.shape
    columns = grouping.by_group(im2col(x, out_h, out_w, geometry), groups, kh * kw)
    found = np.matmul(columns.transpose(0, 2, 1), grouping.channel_rows(grad, groups))
    taps = found.reshape(groups, kh * kw, c, o // groups).transpose(0, 3, 2, 1)
    if out is None:
        out = np.empty(w_shape, x.dtype)
    out[...] = taps.reshape(w_shape)
    return out, grad.sum(axis=(0, 1, 2))


def max_pool(
    x: np.ndarray, out_h: int, out_w: int, geometry: Geometry, rectified: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Largest value of each window and the tap (row-major number in the window) where it stands.

    The first of equal values counts; NaN counts as larger than everything, the last of them, as in PyTorch. If
    `rectified`, values up to 0 become 0 and their taps -1.
    """
    p = _padded(x, out_h, out_w, geometry, -np.inf)
    best = np.full((x.shape[0], out_h, out_w, x.shape[3]), -np.inf, dtype=x.dtype)
    where = np.full(best.shape, -1, dtype=np.int32)
    inside = _padded(np.ones((1, *x.shape[1:3], 1), bool), out_h, out_w, geometry, 0)
    for tap, rows, cols in _taps(out_h, out_w, geometry):
        value = p[:, rows, cols]
        # A window that holds nothing but -inf still points at one of its own elements.
        better = (value > best) | np.isnan(value) | ((where < 0) & inside[:, rows, cols])
        np.copyto(best, value, where=better)
        where[better] = tap
    if rectified:
        where[best <= 0] = -1
        best = np.maximum(best, 0)
    return best, where


def max_pool_scatter(
    grad: np.ndarray, where: np.ndarray, shape: tuple[int, int, int, int], geometry: Geometry
) -> np.ndarray:
    """Each window's value added at the place where its maximum stood."""
    _, out_h, out_w, _ = grad.shape
    _, h, w, _ = shape
    ph, pw = geometry[4:6]
    p = np.zeros_like(_padded(np.empty(shape, grad.dtype), out_h, out_w, geometry, 0))
    for tap, rows, cols in _taps(out_h, out_w, geometry):
        p[:, rows, cols] += np.where(where == tap, grad, 0)
    return p[:, ph : ph + h, pw : pw + w]


def sum_pool(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry) -> np.ndarray:
    """The sum of each window (of dilation 1)."""
    p = _padded(x, out_h, out_w, geometry, 0)
    out = np.zeros((x.shape[0], out_h, out_w, x.shape[3]), dtype=x.dtype)
    for _, rows, cols in _taps(out_h, out_w, geometry):
        out += p[:, rows, cols]
    return out


def sum_pool_scatter(
    grad: np.ndarray, shape: tuple[int, int, int, int], geometry: Geometry
) -> np.ndarray:
    """Each window's value added to all its elements: the transpose of `sum_pool`."""
    _, out_h, out_w, _ = grad.shape
    _, h, w, _ = shape
    ph, pw = geometry[4:6]
    p = np.zeros_like(_padded(np.empty(shape, grad.dtype), out_h, out_w, geometry, 0))
    for _, rows, cols in _taps(out_h, out_w, geometry):
        p[:, rows, cols] += grad
    return p[:, ph : ph + h, pw : pw + w]


def max_pool_gather(x: np.ndarray, where: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The value of each window at the place that `where` names: the transpose of the scatter."""
    _, out_h, out_w, _ = where.shape
    p = _padded(x, out_h, out_w, geometry, 0)
    out = np.zeros(where.shape, dtype=x.dtype)
    for tap, rows, cols in _taps(out_h, out_w, geometry):
        np.copyto(out, p[:, rows, cols], where=where == tap)
    return out


def weighted_sums(
    x: np.ndarray, starts: np.ndarray, cols: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """Sums of a few entries of the middle dimension, one after the other: out[:, r] = sum of x[:, cols[t]] * weights[t].

    Args:
        x: (outer, entries, inner).
        starts: int64; t runs from starts[r] to starts[r + 1].
        cols: int64, entries.
        weights: float64, brought to the type of x; None: 1.

    Returns:
        (outer, len(starts) - 1, inner).
    """
    counts, xp = np.diff(starts), namespace_of(x)
    out = xp.zeros((len(x), len(counts), x.shape[2]), x.dtype)
    for depth in range(max(counts.tolist(), default=0)):
        rows = np.flatnonzero(counts > depth)
        taps = starts[rows] + depth
        part = x[:, xp.asarray(cols[taps])]
        if weights is not None:
            part = part * xp.asarray(weights[taps], x.dtype)[:, None]
        out[:, xp.asarray(rows)] += part
    return out
