"""Convolution as one product of matrices: windows as rows, the weight as it lies in memory.

A filter of 1 x 1 has its windows ready: they are the pixels. For larger filters the windows are copied out
(im2col), in the order of the weight, (channel, tap), so that a large weight is read once and no copy of it
is made, and its gradient is written where it belongs. That pays where the weight is large and the places
are few: with more of them its panels, which `direct` makes, are used often enough.
Source: Chellapilla et al., "High performance convolutional neural networks for document processing", 2006.

Rounding: that of `gemm`; what several windows see of a pixel is added tap by tap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import gemm, pool
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.lookup import column_sums
from dptrain.core.kernels.memory import address, array_at
from dptrain.core.kernels.reference import Geometry

Shape = tuple[int, int, int, int]

real: Any = None  # each compiled copy has its own

#: Places, and elements of the weight, up to and from which its windows are copied out.
_MOST_PLACES, _LEAST_WEIGHT = 128, 1 << 17
#: Places up to which, and elements of a weight of 1 x 1 from which, its gradient is one product.
_FEW_PLACES, _LEAST_POINTS = 512, 1 << 12


def serves(
    places: int, channels: int, results: int, geometry: Geometry, weight_grad: bool = False
) -> bool:
    """Whether it is the algorithm for a convolution of one group over so many places."""
    kh, kw, *_, ph, pw, _, _ = geometry
    size = channels * results * kh * kw
    if (kh, kw, ph, pw) == (1, 1, 0, 0):
        return not weight_grad or places <= _FEW_PLACES or size >= _LEAST_POINTS
    return places <= _MOST_PLACES and size >= _LEAST_WEIGHT


@kernel
def _copy_windows(args, share, shares, worker):
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw = args[6], args[7], args[8], args[9]
    ph, pw, dh, dw = args[10], args[11], args[12], args[13]
    x = array_at(args[14], (n, h, w, c), real)
    taps = kh * kw
    rows = array_at(args[15], (n, out_h, out_w, c, taps), real)
    for line in range(share * n * out_h // shares, (share + 1) * n * out_h // shares):
        b, oh = line // out_h, line % out_h
        for ow in range(out_w):
            to = rows[b, oh, ow]
            for i in range(kh):
                y = oh * sh - ph + i * dh
                for j in range(kw):
                    z, tap = ow * sw - pw + j * dw, i * kw + j
                    if 0 <= y < h and 0 <= z < w:
                        source = x[b, y, z]
                        for k in range(c):
                            to[k, tap] = source[k]
                    else:
                        for k in range(c):
                            to[k, tap] = 0


@kernel
def _add_windows(args, share, shares, worker):
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw = args[6], args[7], args[8], args[9]
    ph, pw, dh, dw = args[10], args[11], args[12], args[13]
    out = array_at(args[14], (n, h, w, c), real)
    taps = kh * kw
    rows = array_at(args[15], (n, out_h, out_w, c, taps), real)
    for b in range(share * n // shares, (share + 1) * n // shares):
        for oh in range(out_h):
            for ow in range(out_w):
                source = rows[b, oh, ow]
                for i in range(kh):
                    y = oh * sh - ph + i * dh
                    for j in range(kw):
                        z, tap = ow * sw - pw + j * dw, i * kw + j
                        if 0 <= y < h and 0 <= z < w:
                            to = out[b, y, z]
                            for k in range(c):
                                to[k] += source[k, tap]


def _is_point(geometry: Geometry) -> bool:
    return geometry[:2] == (1, 1) and geometry[4:6] == (0, 0)


def _seen(image: np.ndarray, out_h: int, out_w: int, geometry: Geometry) -> np.ndarray:
    """The pixels that a filter of 1 x 1 sees, as a view."""
    sh, sw = geometry[2:4]
    return image[:, : (out_h - 1) * sh + 1 : sh, : (out_w - 1) * sw + 1 : sw]


def _windows(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry) -> np.ndarray:
    """(N, H, W, C) -> (N * out_h * out_w, C * taps)."""
    n, h, w, c = x.shape
    if _is_point(geometry):
        return np.ascontiguousarray(_seen(x, out_h, out_w, geometry)).reshape(-1, c)
    rows = np.empty((n * out_h * out_w, c * geometry[0] * geometry[1]), x.dtype)
    args = (n, h, w, c, out_h, out_w, *geometry, address(x), address(rows))
    pool.run(_copy_windows.address(x.dtype.type), args, pool.shares(n * out_h, 2 * rows.nbytes))
    return rows


def _image_of(
    rows: np.ndarray,
    bias: np.ndarray | None,
    shape: Shape,
    out_h: int,
    out_w: int,
    geometry: Geometry,
) -> np.ndarray:
    """The transpose of `_windows`, plus a bias."""
    whole = _is_point(geometry) and (out_h, out_w) == shape[1:3]
    if whole:
        out = rows.reshape(shape)
    elif bias is None:
        out = np.zeros(shape, rows.dtype)
    else:
        out = np.empty(shape, rows.dtype)
        out[...] = bias
    if whole:
        if bias is not None:
            out += bias
    elif _is_point(geometry):
        seen = _seen(out, out_h, out_w, geometry)
        seen += rows.reshape(seen.shape)
    else:
        args = (*shape, out_h, out_w, *geometry, address(out), address(rows))
        pool.run(
            _add_windows.address(rows.dtype.type), args, pool.shares(shape[0], 2 * rows.nbytes)
        )
    return out


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
) -> np.ndarray:
    """`reference.conv` of one group."""
    rows = _windows(x, out_h, out_w, geometry)
    out = gemm.linear(rows, weight.reshape(len(weight), -1), bias)
    return out.reshape(len(x), out_h, out_w, len(weight))


def conv_input_grad(
    grad: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, shape: Shape, geometry: Geometry
) -> np.ndarray:
    """`reference.conv_input_grad`, likewise."""
    _, out_h, out_w, o = grad.shape
    rows = gemm.matmul(grad.reshape(-1, o), weight.reshape(o, -1))
    return _image_of(rows, bias, shape, out_h, out_w, geometry)


def conv_weight_grad(
    x: np.ndarray,
    grad: np.ndarray,
    w_shape: Shape,
    geometry: Geometry,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_weight_grad`, likewise."""
    _, out_h, out_w, o = grad.shape
    grads = grad.reshape(-1, o)
    out = np.empty(w_shape, x.dtype) if out is None else out
    gemm.matmul(grads.T, _windows(x, out_h, out_w, geometry), out=out.reshape(o, -1))
    return out, column_sums(grads)
