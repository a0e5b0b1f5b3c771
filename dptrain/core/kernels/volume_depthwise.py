"""Convolution of every channel of volumes by itself (groups = channels), vectorised along the channels.

Rounding: chains of as many products as there are taps; the weight's gradient sums over one volume after the other.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import FAST, kernel
from dptrain.core.kernels.memory import address, array_at
from dptrain.core.kernels.reference import Windows

real: Any = None  # each compiled copy has its own


@kernel(fastmath=FAST)
def _forward(args, share, shares, worker):
    n, d, h, w, c = args[0], args[1], args[2], args[3], args[4]
    out_d, out_h, out_w, kd, kh, kw = args[5], args[6], args[7], args[8], args[9], args[10]
    sd, sh, sw, pd, ph, pw = args[11], args[12], args[13], args[14], args[15], args[16]
    dd, dh, dw = args[17], args[18], args[19]
    x = array_at(args[20], (n, d, h, w, c), real)
    weight = array_at(args[21], (kd * kh * kw, c), real)
    start = array_at(args[22], (c,), real)
    out = array_at(args[23], (n, out_d, out_h, out_w, c), real)
    lines = n * out_d * out_h
    for line in range(share * lines // shares, (share + 1) * lines // shares):
        b, od, oh = line // (out_d * out_h), line // out_h % out_d, line % out_h
        for ow in range(out_w):
            to = out[b, od, oh, ow]
            for k in range(c):
                to[k] = start[k]
            for t in range(kd):
                u = od * sd - pd + t * dd
                if u < 0 or u >= d:
                    continue
                for i in range(kh):
                    y = oh * sh - ph + i * dh
                    if y < 0 or y >= h:
                        continue
                    for j in range(kw):
                        z = ow * sw - pw + j * dw
                        if z < 0 or z >= w:
                            continue
                        source, factor = x[b, u, y, z], weight[(t * kh + i) * kw + j]
                        for k in range(c):
                            to[k] += source[k] * factor[k]


@kernel(fastmath=FAST)
def _backward(args, share, shares, worker):
    """Both gradients: of the input (added to) and of the weight (one sum per share)."""
    n, d, h, w, c = args[0], args[1], args[2], args[3], args[4]
    out_d, out_h, out_w, kd, kh, kw = args[5], args[6], args[7], args[8], args[9], args[10]
    sd, sh, sw, pd, ph, pw = args[11], args[12], args[13], args[14], args[15], args[16]
    dd, dh, dw = args[17], args[18], args[19]
    x = array_at(args[20], (n, d, h, w, c), real)
    weight = array_at(args[21], (kd * kh * kw, c), real)
    grad = array_at(args[22], (n, out_d, out_h, out_w, c), real)
    wants_input, wants_weight = args[24], args[26]
    d_x = array_at(args[23], (n, d, h, w, c), real)
    d_weight = array_at(args[25], (shares, kd * kh * kw + 1, c), real)
    for b in range(share * n // shares, (share + 1) * n // shares):
        for line in range(out_d * out_h):
            od, oh = line // out_h, line % out_h
            for ow in range(out_w):
                source = grad[b, od, oh, ow]
                if wants_weight:
                    total = d_weight[share, kd * kh * kw]
                    for k in range(c):
                        total[k] += source[k]
                for t in range(kd):
                    u = od * sd - pd + t * dd
                    if u < 0 or u >= d:
                        continue
                    for i in range(kh):
                        y = oh * sh - ph + i * dh
                        if y < 0 or y >= h:
                            continue
                        for j in range(kw):
                            z = ow * sw - pw + j * dw
                            if z < 0 or z >= w:
                                continue
                            tap = (t * kh + i) * kw + j
                            if wants_input:
                                to, factor = d_x[b, u, y, z], weight[tap]
                                for k in range(c):
                                    to[k] += source[k] * factor[k]
                            if wants_weight:
                                seen, total = x[b, u, y, z], d_weight[share, tap]
                                for k in range(c):
                                    total[k] += source[k] * seen[k]


def _rows(weight: np.ndarray) -> np.ndarray:
    """(C, 1, *kernel) -> (taps, C)."""
    return np.ascontiguousarray(weight.reshape(len(weight), -1).T)


def _sizes(windows: Windows) -> tuple[int, ...]:
    return tuple(size for sizes in windows for size in sizes)


def conv_volume(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    outs: tuple[int, ...],
    windows: Windows,
) -> np.ndarray:
    """`reference.conv_volume` for groups = channels = results."""
    n, *_, c = x.shape
    out = np.empty((n, *outs, c), x.dtype)
    rows = _rows(weight)
    start = np.zeros(c, x.dtype) if bias is None else np.ascontiguousarray(bias)
    places = (address(x), address(rows), address(start), address(out))
    shares = pool.shares(n * outs[0] * outs[1], out.nbytes * rows.shape[0])
    args = (*x.shape, *outs, *_sizes(windows), *places)
    pool.run(_forward.address(x.dtype.type), args, shares)
    return out


def conv_volume_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: tuple[int, ...],
    windows: Windows,
) -> np.ndarray:
    """`reference.conv_volume_input_grad`, likewise."""
    out = np.zeros(shape, grad.dtype)
    if bias is not None:
        out += bias
    rows = _rows(weight)
    places = (address(out), address(rows), address(grad), address(out), 1, address(out), 0)
    args = (*shape, *grad.shape[1:-1], *_sizes(windows), *places)
    shares = pool.shares(shape[0], grad.nbytes * rows.shape[0])
    pool.run(_backward.address(grad.dtype.type), args, shares)
    return out


def conv_volume_weight_grad(
    x: np.ndarray, grad: np.ndarray, w_shape: tuple[int, ...], windows: Windows
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_volume_weight_grad`, likewise."""
    taps, c = prod(windows[0]), x.shape[-1]
    blocks = pool.blocks(len(x), grad.nbytes * taps, (taps + 1) * c * x.itemsize)
    sums = np.zeros((blocks, taps + 1, c), x.dtype)
    places = (address(x), address(sums), address(grad), address(sums), 0, address(sums), 1)
    pool.run(
        _backward.address(x.dtype.type),
        (*x.shape, *grad.shape[1:-1], *_sizes(windows), *places),
        blocks,
    )
    total = sums[0] if blocks == 1 else sums.sum(axis=0)
    return np.ascontiguousarray(total[:-1].T).reshape(w_shape), total[-1].copy()
