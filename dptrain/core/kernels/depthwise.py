"""Convolution of every channel by itself (groups = channels), vectorised along the channels.

The tile of `micro` has nothing to do here: each result is a sum over the taps only, for which `depthwise_tile`
is. At stride 1 the gradient of the input is a convolution with the reversed filters.
Rounding: chains of kh * kw products; the weight's gradient sums over one image after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import FAST, call, kernel
from dptrain.core.kernels.depthwise_tile import MOST, tile
from dptrain.core.kernels.lookup import column_sums
from dptrain.core.kernels.memory import address, array_at, zero
from dptrain.core.kernels.reference import Geometry
from dptrain.core.kernels.target import target

real: Any = None  # each compiled copy has its own

#: Bytes of rows of both images that pass once for each row of taps: they stay near.
_BAND = 1 << 17


@kernel
def _forward(args, share, shares, worker):
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw, dh, dw = (
        args[6], args[7], args[8], args[9], args[10], args[11], args[12], args[13],
    )  # fmt: skip
    x, weight, start, out = args[14], args[15], args[16], args[17]
    tile_code, size, lanes = args[18], args[19], args[20]
    pixel = c * size
    vectors, rest = c // lanes, c % lanes
    # Results from `inner` to `outer` see all taps of a row.
    inner = min(out_w, (pw + sw - 1) // sw)
    span = w + pw - (kw - 1) * dw - 1
    outer = max(inner, min(out_w, span // sw + 1 if span >= 0 else 0))
    for line in range(share * n * out_h // shares, (share + 1) * n * out_h // shares):
        b, oh = line // out_h, line % out_h
        top = oh * sh - ph
        low, high = max(0, -(top // dh)), min(kh, -((top - h) // dh))
        source = x + (b * h + top + low * dh) * w * pixel
        to = out + line * out_w * pixel
        ow = 0
        while ow < out_w:
            left, count, first, last = ow * sw - pw, 1, 0, kw
            if inner <= ow < outer:
                parts = -(-(outer - ow) // MOST)
                count = (outer - ow) // parts
            else:
                first, last = max(0, -(left // dw)), min(kw, -((left - w) // dw))
            call(
                tile_code,
                (
                    count, vectors, rest, start, 0,
                    source + (left + first * dw) * pixel, sw * pixel, dh * w * pixel, dw * pixel,
                    weight + (low * kw + first) * pixel, kw * pixel, pixel,
                    max(0, high - low), max(0, last - first),
                    to + ow * pixel, pixel,
                ),
            )  # fmt: skip
            ow += count


@kernel
def _weight(args, share, shares, worker):
    """The gradient of the weight, one sum per share."""
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw, dh, dw = (
        args[6], args[7], args[8], args[9], args[10], args[11], args[12], args[13],
    )  # fmt: skip
    x, grad, sums = args[14], args[15], args[16]
    tile_code, size, lanes = args[17], args[18], args[19]
    pixel = c * size
    vectors, rest = c // lanes, c % lanes
    inner = min(out_w, (pw + sw - 1) // sw)
    span = w + pw - (kw - 1) * dw - 1
    outer = max(inner, min(out_w, span // sw + 1 if span >= 0 else 0))
    sums += share * kh * kw * pixel
    zero(sums, kh * kw * pixel)
    band = max(1, _BAND // (2 * w * pixel))
    bands = -(-out_h // band)
    for part in range(share * n // shares * bands, (share + 1) * n // shares * bands):
        b, top = part // bands, part % bands * band
        for i in range(kh):
            low = max(top, -((i * dh - ph) // sh))
            high = min(min(out_h, top + band), -((i * dh - ph - h) // sh))
            if low >= high:
                continue
            source = x + (b * h + low * sh + i * dh - ph) * w * pixel
            seen = grad + (b * out_h + low) * out_w * pixel
            ow = 0
            while ow < out_w:  # columns that see all taps together, the others one by one
                left, count, first, last = ow * sw - pw, 1, 0, kw
                if inner <= ow < outer:
                    count = outer - ow
                else:
                    first, last = max(0, -(left // dw)), min(kw, -((left - w) // dw))
                while first < last:
                    taps = min(MOST, last - first)
                    to = sums + (i * kw + first) * pixel
                    call(
                        tile_code,
                        (
                            taps, vectors, rest, to, pixel,
                            source + (left + first * dw) * pixel,
                            dw * pixel, sh * w * pixel, sw * pixel,
                            seen + ow * pixel, out_w * pixel, pixel, high - low, count,
                            to, pixel,
                        ),
                    )  # fmt: skip
                    first += taps
                ow += count


@kernel(fastmath=FAST)
def _input(args, share, shares, worker):
    """The gradient of the input, added to it: what every window saw."""
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw, dh, dw = (
        args[6], args[7], args[8], args[9], args[10], args[11], args[12], args[13],
    )  # fmt: skip
    weight = array_at(args[14], (kh * kw, c), real)
    grad = array_at(args[15], (n, out_h, out_w, c), real)
    d_x = array_at(args[16], (n, h, w, c), real)
    for b in range(share * n // shares, (share + 1) * n // shares):
        for oh in range(out_h):
            for ow in range(out_w):
                source = grad[b, oh, ow]
                for i in range(kh):
                    y = oh * sh - ph + i * dh
                    if y < 0 or y >= h:
                        continue
                    for j in range(kw):
                        z = ow * sw - pw + j * dw
                        if z < 0 or z >= w:
                            continue
                        to, factor = d_x[b, y, z], weight[i * kw + j]
                        for k in range(c):
                            to[k] += source[k] * factor[k]


def _kind(dtype: Any) -> tuple[int, int, int]:
    """What a kernel has to know of the tile: code, item size, lanes."""
    return tile.address(dtype.type), dtype.itemsize, target().lanes(dtype.itemsize)


def _rows(weight: np.ndarray) -> np.ndarray:
    """(C, 1, kh, kw) -> (taps, C)."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T)


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
) -> np.ndarray:
    """`reference.conv` for groups = channels = results."""
    return _correlate(x, _rows(weight), bias, out_h, out_w, geometry)


def _correlate(
    x: np.ndarray,
    rows: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
) -> np.ndarray:
    """`conv` for a weight as (taps, C)."""
    n, h, w, c = x.shape
    out = np.empty((n, out_h, out_w, c), x.dtype)
    start = np.zeros(c, x.dtype) if bias is None else np.ascontiguousarray(bias)
    places = (address(x), address(rows), address(start), address(out))
    shares = pool.shares(n * out_h, out.nbytes * rows.shape[0] // 4)
    args = (n, h, w, c, out_h, out_w, *geometry, *places, *_kind(x.dtype))
    pool.run(_forward.address(x.dtype.type), args, shares)
    return out


def conv_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: tuple[int, int, int, int],
    geometry: Geometry,
) -> np.ndarray:
    """`reference.conv_input_grad`, likewise."""
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    above, left = dh * (kh - 1) - ph, dw * (kw - 1) - pw
    if sh == sw == 1 and min(above, left) >= 0:
        other = (kh, kw, 1, 1, above, left, dh, dw)
        turned = np.ascontiguousarray(_rows(weight)[::-1])
        return _correlate(grad, turned, bias, *shape[1:3], other)
    out = np.zeros(shape, grad.dtype)
    if bias is not None:
        out += bias
    rows = _rows(weight)
    places = (address(rows), address(grad), address(out))
    args = (*shape, *grad.shape[1:3], *geometry, *places)
    shares = pool.shares(shape[0], grad.nbytes * rows.shape[0])
    pool.run(_input.address(grad.dtype.type), args, shares)
    return out


def conv_weight_grad(
    x: np.ndarray, grad: np.ndarray, w_shape: tuple[int, int, int, int], geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_weight_grad`, likewise."""
    taps, c = geometry[0] * geometry[1], x.shape[3]
    blocks = pool.blocks(len(x), grad.nbytes * taps // 2, taps * c * x.itemsize)
    sums = np.empty((blocks, taps, c), x.dtype)
    args = (
        *(*x.shape, *grad.shape[1:3], *geometry, address(x), address(grad), address(sums)),
        *_kind(x.dtype),
    )
    pool.run(_weight.address(x.dtype.type), args, blocks)
    total = sums[0] if blocks == 1 else sums.sum(axis=0)
    return np.ascontiguousarray(total.T).reshape(w_shape), column_sums(grad.reshape(-1, c))
