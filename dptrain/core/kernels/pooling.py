"""Pooling over channels-last images, vectorised along the channels.

The scatter visits each window once and adds to every element of it, selecting by comparison: a store
to a computed place, channel by channel, could not be vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import address, array_at, zero
from dptrain.core.kernels.reference import Geometry

real: Any = None  # each compiled copy has its own


@kernel
def _max(args, share, shares, worker):
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw, dh, dw = (
        args[6], args[7], args[8], args[9], args[10], args[11], args[12], args[13],
    )  # fmt: skip
    x = array_at(args[14], (n, h, w, c), real)
    best = array_at(args[15], (n, out_h, out_w, c), real)
    where = array_at(args[16], (n, out_h, out_w, c), np.int32)
    rectified = args[17]
    for line in range(share * n * out_h // shares, (share + 1) * n * out_h // shares):
        b, oh = line // out_h, line % out_h
        for ow in range(out_w):
            value, place = best[b, oh, ow], where[b, oh, ow]
            first = True
            for i in range(kh):
                y = oh * sh - ph + i * dh
                if y < 0 or y >= h:
                    continue
                for j in range(kw):
                    z = ow * sw - pw + j * dw
                    if z < 0 or z >= w:
                        continue
                    seen, tap = x[b, y, z], np.int32(i * kw + j)
                    if first:
                        for k in range(c):
                            value[k] = seen[k]
                            place[k] = tap
                        first = False
                        continue
                    for k in range(c):
                        v, m = seen[k], value[k]
                        # The first of equal values stays, of numbers that are none the last.
                        better = (v > m) | (v != v)
                        value[k] = v if better else m
                        place[k] = tap if better else place[k]
            if first:
                for k in range(c):
                    value[k] = -np.inf
                    place[k] = -1
            if rectified:
                for k in range(c):
                    m = value[k]
                    value[k] = real(0) if m <= 0 else m
                    place[k] = np.int32(-1) if m <= 0 else place[k]


@kernel
def _scatter(args, share, shares, worker):
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw, dh, dw = (
        args[6], args[7], args[8], args[9], args[10], args[11], args[12], args[13],
    )  # fmt: skip
    out = array_at(args[14], (n, h, w, c), real)
    grad = array_at(args[15], (n, out_h, out_w, c), real)
    where = array_at(args[16], (n, out_h, out_w, c), np.int32)
    image, apart = args[17], args[18]  # bytes
    for b in range(share * n // shares, (share + 1) * n // shares):
        if not apart:
            zero(args[14] + b * image, image)
        for oh in range(out_h):
            for ow in range(out_w):
                value, place = grad[b, oh, ow], where[b, oh, ow]
                if apart:  # each element is in one window
                    for i in range(kh):
                        for j in range(kw):
                            to, tap = out[b, oh * kh + i, ow * kw + j], np.int32(i * kw + j)
                            for k in range(c):
                                to[k] = value[k] if place[k] == tap else real(0)
                    continue
                for i in range(kh):
                    y = oh * sh - ph + i * dh
                    if y < 0 or y >= h:
                        continue
                    for j in range(kw):
                        z = ow * sw - pw + j * dw
                        if z < 0 or z >= w:
                            continue
                        to, tap = out[b, y, z], np.int32(i * kw + j)
                        for k in range(c):
                            to[k] += value[k] if place[k] == tap else real(0)


@kernel
def _sum(args, share, shares, worker):
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw = args[6], args[7], args[8], args[9], args[10], args[11]
    x = array_at(args[14], (n, h, w, c), real)
    out = array_at(args[15], (n, out_h, out_w, c), real)
    for line in range(share * n * out_h // shares, (share + 1) * n * out_h // shares):
        b, oh = line // out_h, line % out_h
        for ow in range(out_w):
            total = out[b, oh, ow]
            for k in range(c):
                total[k] = 0
            for y in range(max(0, oh * sh - ph), min(h, oh * sh - ph + kh)):
                for z in range(max(0, ow * sw - pw), min(w, ow * sw - pw + kw)):
                    seen = x[b, y, z]
                    for k in range(c):
                        total[k] += seen[k]


@kernel
def _sum_scatter(args, share, shares, worker):
    n, h, w, c, out_h, out_w = args[0], args[1], args[2], args[3], args[4], args[5]
    kh, kw, sh, sw, ph, pw = args[6], args[7], args[8], args[9], args[10], args[11]
    out = array_at(args[14], (n, h, w, c), real)
    grad = array_at(args[15], (n, out_h, out_w, c), real)
    image = args[16]  # bytes
    for b in range(share * n // shares, (share + 1) * n // shares):
        zero(args[14] + b * image, image)
        for oh in range(out_h):
            for ow in range(out_w):
                value = grad[b, oh, ow]
                for y in range(max(0, oh * sh - ph), min(h, oh * sh - ph + kh)):
                    for z in range(max(0, ow * sw - pw), min(w, ow * sw - pw + kw)):
                        to = out[b, y, z]
                        for k in range(c):
                            to[k] += value[k]


def _sizes(image: tuple[int, ...], out_h: int, out_w: int, geometry: Geometry) -> tuple[int, ...]:
    return (*image, out_h, out_w, *geometry)


def max_pool(
    x: np.ndarray, out_h: int, out_w: int, geometry: Geometry, rectified: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """See `reference.max_pool`."""
    x = np.ascontiguousarray(x)
    best = np.empty((x.shape[0], out_h, out_w, x.shape[3]), x.dtype)
    where = np.empty(best.shape, np.int32)
    places = (address(x), address(best), address(where), rectified)
    args = (*_sizes(x.shape, out_h, out_w, geometry), *places)
    pool.run(_max.address(x.dtype.type), args, pool.shares(len(x) * out_h, x.nbytes))
    return best, where


def max_pool_scatter(
    grad: np.ndarray, where: np.ndarray, shape: tuple[int, int, int, int], geometry: Geometry
) -> np.ndarray:
    """See `reference.max_pool_scatter`."""
    grad = np.ascontiguousarray(grad)
    out = np.empty(shape, grad.dtype)
    if out.size:
        kh, kw, sh, sw, ph, pw, dh, dw = geometry
        covered = (grad.shape[1] * kh, grad.shape[2] * kw) == shape[1:3]
        apart = covered and (kh, kw, 0, 0, 1, 1) == (sh, sw, ph, pw, dh, dw)
        places = (address(out), address(grad), address(where), out[0].nbytes, apart)
        args = (*_sizes(shape, grad.shape[1], grad.shape[2], geometry), *places)
        pool.run(_scatter.address(grad.dtype.type), args, pool.shares(len(out), out.nbytes))
    return out


def sum_pool(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry) -> np.ndarray:
    """See `reference.sum_pool`."""
    x = np.ascontiguousarray(x)
    out = np.empty((x.shape[0], out_h, out_w, x.shape[3]), x.dtype)
    args = (*_sizes(x.shape, out_h, out_w, geometry), address(x), address(out))
    pool.run(_sum.address(x.dtype.type), args, pool.shares(len(x) * out_h, x.nbytes))
    return out


def sum_pool_scatter(
    grad: np.ndarray, shape: tuple[int, int, int, int], geometry: Geometry
) -> np.ndarray:
    """See `reference.sum_pool_scatter`."""
    grad = np.ascontiguousarray(grad)
    out = np.empty(shape, grad.dtype)
    if out.size:
        places = (address(out), address(grad), out[0].nbytes)
        args = (*_sizes(shape, grad.shape[1], grad.shape[2], geometry), *places)
        pool.run(_sum_scatter.address(grad.dtype.type), args, pool.shares(len(out), out.nbytes))
    return out
