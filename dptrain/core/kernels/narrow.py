"""Convolution where one side has so few channels that a vector of them would be empty for the most part.

The gradient of an image of a few channels is one product for all taps and channels together, (places, O) times
(O, taps * C), whose columns fill vectors, and a pass that adds what belongs to one pixel. At stride 1 a
convolution with few results is the gradient of one in the other direction, its filters reversed, and the
gradient of its weight the same product of windows with the two images exchanged.

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

#: Channels that are few, and from which on there are enough to fill vectors.
_FEW, _MANY = 4, 16
#: Bytes of products that are made before they are added: they stay in the second cache.
_PRODUCTS = 1 << 19


def few_channels(channels: int, results: int, geometry: Geometry) -> bool:
    """Whether the gradient of the image is computed here."""
    return channels <= _FEW and results >= _MANY and geometry[0] * geometry[1] > 1


def few_results(channels: int, results: int, geometry: Geometry) -> bool:
    """Whether the result and the gradient of the weight are computed here."""
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    reversible = sh == sw == 1 and ph <= dh * (kh - 1) and pw <= dw * (kw - 1)
    return reversible and few_channels(results, channels, geometry)


@kernel
def _add_runs(args, share, shares, worker):
    """Adds rows of (tap, channel) to the pixels that their windows saw."""
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw = args[6], args[7], args[8], args[9]
    ph, pw, dh, dw = args[10], args[11], args[12], args[13]
    out = array_at(args[14], (n, h, w * c), real)
    rows = array_at(args[15], (n, out_h, out_w, kh, kw * c), real)
    for b in range(share * n // shares, (share + 1) * n // shares):
        for oh in range(out_h):
            for i in range(kh):
                y = oh * sh - ph + i * dh
                if y < 0 or y >= h:
                    continue
                for ow in range(out_w):
                    to, source, left = out[b, y], rows[b, oh, ow, i], ow * sw - pw
                    if dw == 1:  # neighbouring taps saw neighbouring pixels
                        first, last = max(0, -left) * c, min(kw, w - left) * c
                        begin, source = np.uint64(left * c + first), source[first:]
                        for k in range(np.uint64(max(0, last - first))):
                            to[begin + k] += source[k]
                        continue
                    for j in range(kw):
                        z = left + j * dw
                        if 0 <= z < w:
                            for k in range(c):
                                to[z * c + k] += source[j * c + k]


@kernel
def _copy_runs(args, share, shares, worker):
    """The windows as rows of (tap, channel), zeros outside of the image."""
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw = args[6], args[7], args[8], args[9]
    ph, pw, dh, dw = args[10], args[11], args[12], args[13]
    x = array_at(args[14], (n, h, w * c), real)
    rows = array_at(args[15], (n, out_h, out_w, kh, kw * c), real)
    for line in range(share * n * out_h // shares, (share + 1) * n * out_h // shares):
        b, oh = line // out_h, line % out_h
        for i in range(kh):
            y = oh * sh - ph + i * dh
            for ow in range(out_w):
                to, left = rows[b, oh, ow, i], ow * sw - pw
                if 0 <= y < h and left >= 0 and left + kw <= w and dw == 1:
                    source = x[b, y, left * c :]
                    for k in range(kw * c):
                        to[k] = source[k]
                    continue
                for j in range(kw):
                    z = left + j * dw
                    inside = 0 <= y < h and 0 <= z < w
                    for k in range(c):
                        to[j * c + k] = x[b, y, z * c + k] if inside else real(0)


def conv_input_grad(
    grad: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, shape: Shape, geometry: Geometry
) -> np.ndarray:
    """`reference.conv_input_grad` of one group."""
    n, out_h, out_w, o = grad.shape
    taps = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(o, -1)
    if bias is None:
        out = np.zeros(shape, grad.dtype)
    else:
        out = np.empty(shape, grad.dtype)
        out[...] = bias
    step = max(1, _PRODUCTS // (out_h * out_w * taps.shape[1] * grad.itemsize))
    for first in range(0, n, step):
        images, part = grad[first : first + step], out[first : first + step]
        rows = gemm.matmul(images.reshape(-1, o), taps)
        args = (*part.shape, out_h, out_w, *geometry, address(part), address(rows))
        pool.run(_add_runs.address(grad.dtype.type), args, pool.shares(len(part), 2 * rows.nbytes))
    return out


def _reversed(geometry: Geometry) -> Geometry:
    """The windows in the other direction."""
    kh, kw, _, _, ph, pw, dh, dw = geometry
    return kh, kw, 1, 1, dh * (kh - 1) - ph, dw * (kw - 1) - pw, dh, dw


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
) -> np.ndarray:
    """`reference.conv`, likewise."""
    other = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    shape = (len(x), out_h, out_w, len(weight))
    return conv_input_grad(x, other, bias, shape, _reversed(geometry))


def conv_weight_grad(
    x: np.ndarray, grad: np.ndarray, w_shape: Shape, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_weight_grad`, likewise."""
    n, h, w, c = x.shape
    o, _, kh, kw = w_shape
    step = max(1, _PRODUCTS // (h * w * o * kh * kw * x.itemsize))
    total = np.zeros((c, kh * kw * o), x.dtype)
    for first in range(0, n, step):
        images, grads = x[first : first + step], grad[first : first + step]
        rows = np.empty((images.size // c, kh * kw * o), x.dtype)
        args = (*grads.shape, h, w, *_reversed(geometry), address(grads), address(rows))
        pool.run(
            _copy_runs.address(x.dtype.type), args, pool.shares(len(images) * h, 2 * rows.nbytes)
        )
        total += gemm.matmul(images.reshape(-1, c).T, rows)
    out = total.reshape(c, kh, kw, o)[:, ::-1, ::-1].transpose(3, 0, 1, 2)
    return np.ascontiguousarray(out), column_sums(grad.reshape(-1, o))
