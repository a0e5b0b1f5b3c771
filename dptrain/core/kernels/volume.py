"""Convolution over channels-last volumes: the choice of the algorithm; direct, forward and the gradient of the input.

What `direct` does over images, with a third kind of taps. A window of one plane, or of one column of
planes, is a convolution over images: volumes are seen as those wherever that is so. For the others,

    out[z, y, x] = start + sum over taps (i, j, k) of in[z * z_step + i * i_step + z_shift, ...] @ weight[i, j, k]

Sources and rounding as in `direct`. Some planes at a time are copied with a border of zeros, so that they
stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.conv_algo import get_conv_algo
from dptrain.core.kernels import (
    convolution,
    pool,
    reference,
    volume_depthwise,
    volume_weight,
    volume_winograd,
    winograd,
)
from dptrain.core.kernels.direct import border_of, groups_of, taps_of, tile_facts
from dptrain.core.kernels.memory import address, lines, scratch
from dptrain.core.kernels.reference import Geometry, Windows
from dptrain.core.kernels.target import target
from dptrain.core.kernels.transform import TILE
from dptrain.core.kernels.volume_loops import gather_loop
from dptrain.core.kernels.weights import panels, started
from dptrain.core.threads import get_num_threads

Shape = tuple[int, ...]

#: Bytes of planes that are copied at a time, and into how many parts to cut a pass at least, if there are as many planes.
_COPIED, _LEAST_JOBS = 1 << 19, 8
#: Bytes of weights that pass over results at a time, up to twice as many if those are all.
_WEIGHTS = 1 << 18


class _Images(NamedTuple):
    """A convolution over volumes as one over images."""

    image: tuple[int, int, int, int]
    result: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    geometry: Geometry


@lru_cache(maxsize=1024)
def _as_images(volume: Shape, result: Shape, weight: Shape, windows: Windows) -> _Images | None:
    """The images that give the same; None where none do."""
    (n, d, h, w, c), (_, out_d, out_h, out_w, o) = volume, result
    (kd, kh, kw), (sd, sh, sw), (pd, ph, pw), (dd, dh, dw) = windows
    channels = weight[1]
    if (kd, sd, pd, d) == (1, 1, 0, out_d):
        image, of = (n * d, h, w, c), (n * d, out_h, out_w, o)
        return _Images(image, of, (o, channels, kh, kw), (kh, kw, sh, sw, ph, pw, dh, dw))
    if (kh, kw, sh, sw, ph, pw, h, w) == (1, 1, 1, 1, 0, 0, out_h, out_w):
        image, of = (n, d, h * w, c), (n, out_d, h * w, o)
        return _Images(image, of, (o, channels, kd, 1), (kd, 1, sd, 1, pd, 0, dd, 1))
    return None


#: Fewer tiles than this do not pay for the transform of the filters; fewer channels, not for their own.
_LEAST_TILES, _LEAST_CHANNELS = 32, 16


@lru_cache(maxsize=1024)
def _by_transform(
    allowed: str, volume: Shape, result: Shape, windows: Windows, groups: int, dtype: Any
) -> bool:
    """Whether fewer products serve a convolution and its gradients, and pay."""
    kernel, *steps, pads, gaps = windows
    n, out_d, out_h, out_w, o = result
    if allowed != "auto" or dtype != np.float32 or groups != 1:
        return False
    square = kernel[1] == kernel[2] and kernel[1] in winograd.SIZES
    near = all(p < k for p, k in zip(pads, kernel, strict=True))
    dense = (*steps[0], *gaps) == (1,) * 6
    tiles = n * out_d * -(-out_h // TILE) * -(-out_w // TILE)
    pays = tiles >= _LEAST_TILES and min(volume[4], o) >= _LEAST_CHANNELS
    return square and near and dense and pays and min(out_h, out_w) >= TILE


class _Phase(NamedTuple):
    """Results that see the same taps; the names are those of the formula, sizes in pixels."""

    planes: int
    rows: int
    columns: int
    out: int  # bytes to the first result
    out_plane: int
    out_row: int
    out_pixel: int
    in_plane: int  # plane of the volume that the first tap of the first result sees
    in_row: int
    in_column: int  # likewise, its column in the bordered copy
    z_step: int
    y_step: int
    x_step: int
    i_step: int
    j_step: int
    k_step: int
    taps_i: int
    taps_j: int
    taps_k: int
    depth: int  # contiguous numbers per tap
    weight: int  # bytes to the weights of the first tap
    weight_i: int  # bytes from tap plane to tap plane
    weight_j: int
    weight_k: int


def _most_planes(phases: Sequence[_Phase], chunks: int, deep: int) -> int:
    """How many planes of a volume a chunk of the results of all phases sees at most."""
    most = 0
    for chunk in range(chunks):
        seen = []
        for p in phases:
            ends = {chunk * p.planes // chunks, (chunk + 1) * p.planes // chunks - 1}
            taps = {0, max(0, p.taps_i - 1)}
            seen += [p.in_plane + z * p.z_step + i * p.i_step for z in ends for i in taps]
        most = max(most, min(deep, max(seen) - min(seen) + 1))
    return most


def _passes(phases: Sequence[_Phase]) -> tuple[int, int]:
    """Into how many parts to cut the tap planes and the tap rows, so that weights of a panel stay in the cache."""
    planes, rows = max(p.taps_i for p in phases), max(p.taps_j for p in phases)
    row = 2 * target().width * max(p.taps_k * p.depth for p in phases)
    if any(p.taps_k > 1 for p in phases):
        return max(1, planes), -(-rows * row // _WEIGHTS) if rows * row > 2 * _WEIGHTS else 1
    if planes * rows * row <= 2 * _WEIGHTS:
        return 1, 1
    if rows * row <= _WEIGHTS:
        return min(planes, -(-planes * rows * row // _WEIGHTS)), 1
    return planes, min(rows, -(-rows * row // _WEIGHTS))


class _Gather:
    """The gather driver for volumes of one shape: what a call needs beside the addresses.

    Args:
        volume: (N, D, H, W, channels) of the contiguous volumes.
        out: likewise of the results.
        groups: of channels.
        phases: cover the results of a group.
        border: pixels of zeros left and right that the phases see.
        dtype: of the elements.
    """

    def __init__(
        self,
        volume: Shape,
        out: Shape,
        groups: int,
        phases: Sequence[_Phase],
        border: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> None:
        n, d, h, w, c = volume
        self.size, self.dtype = dtype.itemsize, dtype
        self.channels = tuple(zip(groups_of(c, groups), groups_of(out[4], groups), strict=True))
        depth, columns = c // groups, out[4] // groups
        copies, total, size = groups > 1 or border != (0, 0), w + sum(border), self.size
        plane = h * total * depth * size
        planes = max(p.planes for p in phases)
        chunks = planes
        if copies:
            some = max(1, _COPIED // plane // max(p.z_step for p in phases))
            chunks = min(planes, max(-(-planes // some), -(-_LEAST_JOBS // n)))
        self._own = lines(_most_planes(phases, chunks, d) * plane) if copies else 0
        wide = 2 * target().lanes(size)
        self._zeros = np.zeros(-(-columns // wide) * wide, dtype)
        self._table = np.array(phases, np.int64)
        self._volume = (
            d * h * w * c * size, h * w * c * size, w * c * size, c * size,
            d, h, w, depth * size, int(copies), border[0], total,
        )  # fmt: skip
        self._columns = columns
        self._result = (prod(out[1:]) * size, columns)
        self._phases = (n, chunks, len(phases), address(self._table), *_passes(phases))
        taps = sum(
            p.taps_i * p.taps_j * p.taps_k * p.depth * p.planes * p.rows * p.columns for p in phases
        )
        self._jobs, self._work = n * chunks, pool.as_bytes(n * out[4] * taps)

    def run(
        self,
        volume: np.ndarray,
        first: int,
        weight: np.ndarray,
        bias: np.ndarray | None,
        out: np.ndarray,
        out_first: int,
    ) -> None:
        """Compute one group.

        Args:
            volume: contiguous.
            first: channel of it.
            weight: panels.
            bias: (columns,) of the group or None.
            out: contiguous.
            out_first: channel of it.
        """
        start = started(self._zeros, bias)
        workers = min(get_num_threads(), self._jobs)
        pool.run(
            gather_loop.address(),
            (
                *tile_facts(self.dtype),
                address(volume) + first * self.size, *self._volume,
                scratch(self._own * workers), self._own,
                address(out) + out_first * self.size, *self._result, address(start),
                *self._phases, weight.strides[0], address(weight),
            ),
            pool.shares(self._jobs, self._work),
        )  # fmt: skip


def _filters(weight: np.ndarray) -> np.ndarray:
    """(O, C, kd, kh, kw) -> (O, C, kd * kh, kw)."""
    o, c, kd, kh, kw = weight.shape
    return weight.reshape(o, c, kd * kh, kw)


@lru_cache(maxsize=1024)
def _forward(
    volume: Shape, out: Shape, windows: Windows, groups: int, dtype: np.dtype[Any]
) -> _Gather:
    (kd, kh, kw), (sd, sh, sw), (pd, ph, pw), (dd, dh, dw) = windows
    _, out_d, out_h, out_w, o = out
    depth, pixel = volume[4] // groups, o * dtype.itemsize
    # Neighbouring taps are one run of numbers, unless the taps lie apart.
    taps_k, run = (1, kw * depth) if dw == 1 else (kw, depth)
    line = 2 * target().width * depth
    phase = _Phase(
        out_d, out_h, out_w, 0, out_h * out_w * pixel, out_w * pixel, pixel,
        -pd, -ph, 0, sd, sh, sw, dd, dh, dw, kd, kh, taps_k, run, 0, kh * kw * line, kw * line, line,
    )  # fmt: skip
    return _Gather(volume, out, groups, [phase], (pw, pw), dtype)


def conv_volume(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    outs: tuple[int, int, int],
    windows: Windows,
    groups: int,
) -> np.ndarray:
    """See `reference.conv_volume`."""
    x = np.ascontiguousarray(x)
    shape = (len(x), *outs, len(weight))
    flat = _as_images(x.shape, shape, weight.shape, windows)
    if flat is not None:
        image, filters = x.reshape(flat.image), weight.reshape(flat.weight)
        out = convolution.conv(image, filters, bias, *flat.result[1:3], flat.geometry, groups)
        return out.reshape(shape)
    if not prod(shape) or not x.size:
        return reference.conv_volume(x, weight, bias, outs, windows, groups)
    if 1 < groups == len(weight) == x.shape[4]:
        return volume_depthwise.conv_volume(x, weight, bias, outs, windows)
    if _by_transform(get_conv_algo(), x.shape, shape, windows, groups, x.dtype):
        return volume_winograd.conv(x, weight, bias, outs, windows[2])
    plan = _forward(x.shape, shape, windows, groups, x.dtype)
    out = np.empty(shape, x.dtype)
    filters = _filters(weight)
    for ins, of in plan.channels:
        part = None if bias is None else bias[of]
        plan.run(x, ins.start, panels(filters[of]), part, out, of.start)
    return out


@lru_cache(maxsize=1024)
def _backward(
    grad: Shape, shape: Shape, windows: Windows, groups: int, dtype: np.dtype[Any]
) -> _Gather:
    (kd, kh, kw), (sd, sh, sw), (pd, ph, pw), (dd, dh, dw) = windows
    _, d, h, w, c = shape
    depth, pixel = grad[4] // groups, c * dtype.itemsize
    line = 2 * target().width * depth
    into = [taps_of(r, kd, sd, pd, dd) for r in range(min(sd, d))]
    down = [taps_of(r, kh, sh, ph, dh) for r in range(min(sh, h))]
    across = [taps_of(r, kw, sw, pw, dw) for r in range(min(sw, w))]
    border = border_of(across, w, grad[3], sw)
    flat = sw == dw == 1  # the taps that a result sees lie behind each other, in reverse
    phases = []
    for (z, i), (y, j), (x, k) in product(*map(enumerate, (into, down, across))):
        run, last = (kw, kw - 1) if flat else (1, 0)
        phases.append(
            _Phase(
                len(range(z, d, sd)), len(range(y, h, sh)), len(range(x, w, sw)),
                ((z * h + y) * w + x) * pixel, sd * h * w * pixel, sh * w * pixel, sw * pixel,
                i.place, j.place, k.place - last + border[0], 1, 1, 1,
                -i.step, -j.step, 1 if flat else -k.step,
                i.number, j.number, 1 if flat else k.number, run * depth,
                ((i.first * kh + j.first) * kw + (0 if flat else k.first)) * line,
                i.every * kh * kw * line, j.every * kw * line, k.every * line,
            )
        )  # fmt: skip
    return _Gather(grad, shape, groups, phases, border, dtype)


def conv_volume_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: Shape,
    windows: Windows,
    groups: int,
) -> np.ndarray:
    """See `reference.conv_volume_input_grad`."""
    grad = np.ascontiguousarray(grad)
    flat = _as_images(shape, grad.shape, weight.shape, windows)
    if flat is not None:
        result, filters = grad.reshape(flat.result), weight.reshape(flat.weight)
        out = convolution.conv_input_grad(result, filters, bias, flat.image, flat.geometry, groups)
        return out.reshape(shape)
    if not prod(shape) or not grad.size:
        return reference.conv_volume_input_grad(grad, weight, bias, shape, windows, groups)
    if 1 < groups == len(weight) == shape[4]:
        return volume_depthwise.conv_volume_input_grad(grad, weight, bias, shape, windows)
    if _by_transform(get_conv_algo(), shape, grad.shape, windows, groups, grad.dtype):
        return volume_winograd.conv_input_grad(grad, weight, bias, shape, windows[2])
    plan = _backward(grad.shape, shape, windows, groups, grad.dtype)
    out = np.empty(shape, grad.dtype)
    filters = _filters(weight)
    flip = (False, windows[1][2] == windows[3][2] == 1)
    for ins, outs in plan.channels:
        packed = panels(filters[ins], transposed=True, flip=flip)
        part = None if bias is None else bias[outs]
        plan.run(grad, ins.start, packed, part, out, outs.start)
    return out


def conv_volume_weight_grad(
    x: np.ndarray, grad: np.ndarray, w_shape: Shape, windows: Windows, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """See `reference.conv_volume_weight_grad`."""
    x, grad = np.ascontiguousarray(x), np.ascontiguousarray(grad)
    flat = _as_images(x.shape, grad.shape, w_shape, windows)
    if flat is not None:
        image, result = x.reshape(flat.image), grad.reshape(flat.result)
        out, bias = convolution.conv_weight_grad(image, result, flat.weight, flat.geometry, groups)
        return out.reshape(w_shape), bias
    if not prod(w_shape) or not grad.size:
        return reference.conv_volume_weight_grad(x, grad, w_shape, windows, groups)
    if 1 < groups == w_shape[0] == x.shape[4]:
        return volume_depthwise.conv_volume_weight_grad(x, grad, w_shape, windows)
    if _by_transform(get_conv_algo(), x.shape, grad.shape, windows, groups, x.dtype):
        return volume_winograd.conv_weight_grad(x, grad, w_shape, windows[2])
    return volume_weight.conv_volume_weight_grad(x, grad, w_shape, windows, groups)
