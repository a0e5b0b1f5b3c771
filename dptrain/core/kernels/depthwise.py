"""Convolution of every channel by itself (groups = channels), vectorised along the channels.

A register tile has nothing to do here: each result is a sum over the taps only.
Rounding: chains of kh * kw products; the weight's gradient sums over one image after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import FAST, kernel
from dptrain.core.kernels.memory import address, array_at
from dptrain.core.kernels.reference import Geometry

real: Any = None  # each compiled copy has its own


@kernel(fastmath=FAST)
def _forward(args, share, shares, worker):
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw, dh, dw = (
        args[6], args[7], args[8], args[9], args[10], args[11], args[12], args[13],
    )  # fmt: skip
    x = array_at(args[14], (n, h, w, c), real)
    weight = array_at(args[15], (kh * kw, c), real)
    start = array_at(args[16], (c,), real)
    out = array_at(args[17], (n, out_h, out_w, c), real)
    for line in range(share * n * out_h // shares, (share + 1) * n * out_h // shares):
        b, oh = line // out_h, line % out_h
        for ow in range(out_w):
            to = out[b, oh, ow]
            for k in range(c):
                to[k] = start[k]
            for i in range(kh):
                y = oh * sh - ph + i * dh
                if y < 0 or y >= h:
                    continue
                for j in range(kw):
                    z = ow * sw - pw + j * dw
                    if z < 0 or z >= w:
                        continue
                    source, factor = x[b, y, z], weight[i * kw + j]
                    for k in range(c):
                        to[k] += source[k] * factor[k]


@kernel(fastmath=FAST)
def _backward(args, share, shares, worker):
    """Both gradients: of the input (added to) and of the weight (one sum per share)."""
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw, dh, dw = (
        args[6], args[7], args[8], args[9], args[10], args[11], args[12], args[13],
    )  # fmt: skip
    x = array_at(args[14], (n, h, w, c), real)
    weight = array_at(args[15], (kh * kw, c), real)
    grad = array_at(args[16], (n, out_h, out_w, c), real)
    wants_input, wants_weight = args[18], args[20]
    d_x = array_at(args[17], (n, h, w, c), real)
    d_weight = array_at(args[19], (shares, kh * kw + 1, c), real)
    for b in range(share * n // shares, (share + 1) * n // shares):
        for oh in range(out_h):
            for ow in range(out_w):
                source = grad[b, oh, ow]
                if wants_weight:
                    total = d_weight[share, kh * kw]
                    for k in range(c):
                        total[k] += source[k]
                for i in range(kh):
                    y = oh * sh - ph + i * dh
                    if y < 0 or y >= h:
                        continue
                    for j in range(kw):
                        z = ow * sw - pw + j * dw
                        if z < 0 or z >= w:
                            continue
                        if wants_input:
                            to, factor = d_x[b, y, z], weight[i * kw + j]
                            for k in range(c):
                                to[k] += source[k] * factor[k]
                        if wants_weight:
                            seen, total = x[b, y, z], d_weight[share, i * kw + j]
                            for k in range(c):
                                total[k] += source[k] * seen[k]


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
    n, h, w, c = x.shape
    out = np.empty((n, out_h, out_w, c), x.dtype)
    rows = _rows(weight)
    start = np.zeros(c, x.dtype) if bias is None else np.ascontiguousarray(bias)
    places = (address(x), address(rows), address(start), address(out))
    shares = pool.shares(n * out_h, out.nbytes * rows.shape[0])
    args = (n, h, w, c, out_h, out_w, *geometry, *places)
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
    out = np.zeros(shape, grad.dtype)
    if bias is not None:
        out += bias
    rows = _rows(weight)
    places = (address(out), address(rows), address(grad), address(out), 1, address(out), 0)
    args = (*shape, *grad.shape[1:3], *geometry, *places)
    shares = pool.shares(shape[0], grad.nbytes * rows.shape[0])
    pool.run(_backward.address(grad.dtype.type), args, shares)
    return out


def conv_weight_grad(
    x: np.ndarray, grad: np.ndarray, w_shape: tuple[int, int, int, int], geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_weight_grad`, likewise."""
    taps = geometry[0] * geometry[1]
    line = (taps + 1) * x.shape[3]
    blocks = pool.blocks(len(x), grad.nbytes * taps, line * x.itemsize)
    sums = np.zeros((blocks, taps + 1, x.shape[3]), x.dtype)
    places = (address(x), address(sums), address(grad), address(sums), 0, address(sums), 1)
    pool.run(
        _backward.address(x.dtype.type),
        (*x.shape, *grad.shape[1:3], *geometry, *places),
        blocks,
    )
    total = sums[0] if blocks == 1 else sums.sum(axis=0)
    return np.ascontiguousarray(total[:-1].T).reshape(w_shape), total[-1].copy()
