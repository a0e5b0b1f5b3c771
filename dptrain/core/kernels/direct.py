"""Direct convolution over channels-last images: forward, gradient of the input, gradient of the weight.

No windows are copied out: the tiles of `micro` read the image where it lies, or a copy of one image with
a border of zeros that stays in the cache. Forward and the gradient of the input are one driver, "gather":

    out[y, x] = start + sum over taps (i, j) of in[y * y_step + i * i_step + y_shift, ...] @ weight[i, j]

for all (y, x) of a phase. The forward pass has one phase. The gradient of the input at stride s has
s * s: results whose coordinates have the same remainder see the same taps, and nothing is multiplied by
zeros in between. Depthwise convolutions have a driver of their own, which runs along the channels.
Source: Georganas et al., "Anatomy of high-performance deep learning convolutions on SIMD
architectures", 2018 (small products over rows of the image); the phases are a polyphase filter bank.

Rounding: each result is a sum of K products in one chain per lane, |error| <= (K + 1) eps * sum |a b|.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.direct_loops import gather_loop, outer_loop
from dptrain.core.kernels.memory import address, lines, scratch
from dptrain.core.kernels.micro import tile
from dptrain.core.kernels.reference import Geometry
from dptrain.core.kernels.target import target
from dptrain.core.kernels.weights import collected, panels, started
from dptrain.core.threads import get_num_threads

Shape = tuple[int, int, int, int]


class _Phase(NamedTuple):
    """Results that see the same taps; the names are those of the driver's formula, sizes in pixels."""

    rows: int
    columns: int
    out: int  # bytes to the first result
    out_row: int  # bytes from row to row
    out_pixel: int
    in_row: int  # row of the image that the first tap of the first result sees
    in_column: int  # likewise, its column in the bordered copy
    y_step: int
    x_step: int
    i_step: int
    j_step: int
    taps_i: int
    taps_j: int
    depth: int  # contiguous numbers per tap
    weight: int  # bytes to the weights of the first tap
    weight_i: int  # bytes from tap row to tap row
    weight_j: int


@cache
def tile_facts(dtype: Any) -> tuple[int, int, int, int, int]:
    """The first arguments of the drivers."""
    kind = target()
    size = dtype.itemsize
    return (tile.address(dtype.type), size, kind.lanes(size), kind.most_rows(1), kind.most_rows(2))


class _Gather:
    """The gather driver for images of one shape: what a call needs beside the addresses.

    Args:
        image: (N, H, W, channels) of the contiguous images.
        out: likewise of the results.
        groups: of channels.
        phases: cover the results of a group.
        border: pixels of zeros left and right that the phases see.
        dtype: of the elements.
    """

    def __init__(
        self,
        image: Shape,
        out: Shape,
        groups: int,
        phases: Sequence[_Phase],
        border: tuple[int, int],
        dtype: np.dtype[Any],
    ) -> None:
        n, h, w, c = image
        self.size, self.out, self.dtype = dtype.itemsize, out, dtype
        self.channels = tuple(zip(groups_of(c, groups), groups_of(out[3], groups), strict=True))
        depth, columns = c // groups, out[3] // groups
        copies, total, size = groups > 1 or border != (0, 0), w + sum(border), self.size
        self._own = lines(h * total * depth * size) if copies else 0
        wide = 2 * target().lanes(size)
        self._zeros = np.zeros(-(-columns // wide) * wide, dtype)
        self._table = np.array(phases, np.int64)
        self._image = (
            h * w * c * size, w * c * size, c * size,
            h, w, depth * size, copies, border[0], total,
        )  # fmt: skip
        self._columns = columns
        self._result = (out[1] * out[2] * out[3] * size, columns)
        self._phases = (n, len(phases), address(self._table))
        taps = sum(p.taps_i * p.taps_j * p.depth * p.rows * p.columns for p in phases)
        self._images, self._work = n, pool.as_bytes(n * out[3] * taps)

    def run(
        self,
        image: np.ndarray,
        first: int,
        weight: np.ndarray,
        bias: np.ndarray | None,
        out: np.ndarray,
        out_first: int,
    ) -> None:
        """Compute one group.

        Args:
            image: contiguous.
            first: channel of it.
            weight: panels.
            bias: (columns,) of the group or None.
            out: contiguous.
            out_first: channel of it.
        """
        start = started(self._zeros, bias)
        workers = min(get_num_threads(), self._images)
        pool.run(
            gather_loop.address(),
            (
                *tile_facts(self.dtype),
                address(image) + first * self.size, *self._image,
                scratch(self._own * workers), self._own,
                address(out) + out_first * self.size, *self._result, address(start),
                *self._phases, weight.strides[0], address(weight),
            ),
            pool.shares(self._images, self._work),
        )  # fmt: skip


def groups_of(total: int, groups: int) -> list[slice]:
    """The channels of each group."""
    each = total // groups
    return [slice(g * each, (g + 1) * each) for g in range(groups)]


@lru_cache(maxsize=1024)
def _forward(
    image: Shape, out: Shape, geometry: Geometry, groups: int, dtype: np.dtype[Any]
) -> _Gather:
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    depth, o, size = image[3] // groups, out[3], dtype.itemsize
    # Neighbouring taps are one run of numbers, unless the taps lie apart.
    taps_j, run = (1, kw * depth) if dw == 1 else (kw, depth)
    line = run * 2 * target().width
    phase = _Phase(
        out[1], out[2], 0, out[2] * o * size, o * size, -ph, 0, sh, sw, dh, dw,
        kh, taps_j, run, 0, taps_j * line, line,
    )  # fmt: skip
    return _Gather(image, out, groups, [phase], (pw, pw), dtype)


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """See `reference.conv`."""
    shape = (len(x), out_h, out_w, len(weight))
    plan = _forward(x.shape, shape, geometry, groups, x.dtype)
    out = np.empty(shape, x.dtype)
    for ins, outs in plan.channels:
        part = None if bias is None else bias[outs]
        plan.run(x, ins.start, panels(weight[outs]), part, out, outs.start)
    return out


class Taps(NamedTuple):
    """The taps that meet results of one remainder along one dimension."""

    first: int
    number: int
    every: int  # of the kernel's taps
    place: int  # what the first tap of the first result sees
    step: int  # from tap to tap, towards lower places


def taps_of(remainder: int, kernel: int, stride: int, padding: int, dilation: int) -> Taps:
    """Those of the results at that remainder, in the gradient of the input."""
    every = stride // gcd(stride, dilation)
    fits = [
        i for i in range(min(kernel, every)) if (remainder + padding - i * dilation) % stride == 0
    ]
    first = fits[0] if fits else kernel
    place = (remainder + padding - first * dilation) // stride if fits else 0
    return Taps(first, len(range(first, kernel, every)), every, place, every * dilation // stride)


def border_of(across: Sequence[Taps], width: int, grad_width: int, stride: int) -> tuple[int, int]:
    """Pixels that results of a row, by remainder, see before and behind a row of the gradient."""
    ends = [
        (t.step * (t.number - 1) - t.place, t.place + len(range(r, width, stride)) - grad_width)
        for r, t in enumerate(across)
        if t.number
    ]
    return max([0, *(left for left, _ in ends)]), max([0, *(right for _, right in ends)])


@lru_cache(maxsize=1024)
def _backward(
    grad: Shape, shape: Shape, geometry: Geometry, groups: int, dtype: np.dtype[Any]
) -> _Gather:
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    _, h, w, c = shape
    depth, grad_w = grad[3] // groups, grad[2]
    size = dtype.itemsize
    line = depth * 2 * target().width
    across = [taps_of(r, kw, sw, pw, dw) for r in range(min(sw, w))]
    border = border_of(across, w, grad_w, sw)
    flat = _is_flat(geometry)
    phases = []
    for y in range(min(sh, h)):
        down = taps_of(y, kh, sh, ph, dh)
        for x, over in enumerate(across):
            j_step, taps_j, run, place = -over.step, over.number, depth, over.place
            if flat:
                j_step, taps_j, run, place = 1, 1, kw * depth, over.place - kw + 1
            phases.append(
                _Phase(
                    len(range(y, h, sh)), len(range(x, w, sw)),
                    (y * w + x) * c * size, sh * w * c * size, sw * c * size,
                    down.place, place + border[0], 1, 1, -down.step, j_step,
                    down.number, taps_j if down.number else 0, run,
                    (down.first * kw + (0 if flat else over.first)) * line,
                    down.every * kw * line, over.every * line,
                )
            )  # fmt: skip
    return _Gather(grad, shape, groups, phases, border, dtype)


def _is_flat(geometry: Geometry) -> bool:
    """Whether the taps that a result sees lie behind each other, in reverse."""
    return geometry[3] == geometry[7] == 1


def conv_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: Shape,
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """See `reference.conv_input_grad`."""
    plan = _backward(grad.shape, shape, geometry, groups, grad.dtype)
    out = np.empty(shape, grad.dtype)
    for ins, outs in plan.channels:
        packed = panels(weight[ins], transposed=True, flip=(False, _is_flat(geometry)))
        part = None if bias is None else bias[outs]
        plan.run(grad, ins.start, packed, part, out, outs.start)
    return out


#: Places of images whose products are summed before they are added to those of others, and bytes of their copies.
_PLACES, _BATCH_BYTES = 128, 1 << 18


class _Outer:
    """The outer driver for images of one shape: what a call needs beside the addresses.

    Args:
        image: (N, H, W, channels) of the contiguous images.
        grad: likewise of the gradient of the results.
        geometry: of the windows.
        groups: of channels.
        dtype: of the elements.
        threads: how many there are.
    """

    def __init__(
        self,
        image: Shape,
        grad: Shape,
        geometry: Geometry,
        groups: int,
        dtype: np.dtype[Any],
        threads: int,
    ) -> None:
        kh, kw, sh, sw, ph, pw, dh, dw = geometry
        n, h, w, c = image
        _, out_h, out_w, o = grad
        self.channels = tuple(zip(groups_of(c, groups), groups_of(o, groups), strict=True))
        depth, columns = c // groups, o // groups
        size, self.dtype = dtype.itemsize, dtype
        lanes = target().lanes(size)
        taps_j, merged = (1, kw * depth) if dw == 1 else (kw, depth)
        line = -(-columns // lanes) * lanes
        copies, pads, total = groups > 1 or pw > 0, line != o, w + 2 * pw
        image_bytes = lines(h * total * depth * size) if copies else 0
        grad_bytes = lines(out_h * out_w * line * size) if pads else 0
        rows, work = kh * kw * depth + 1, pool.as_bytes(prod(grad) * depth * kh * kw)
        blocks = pool.blocks(n, work, rows * line * size)
        parts = pool.across(-(-columns // (2 * lanes)), blocks, work)
        self._sums, self._shares = (blocks, rows, line), blocks * parts
        # The sums pass through memory once per batch of images.
        room = _BATCH_BYTES // max(1, image_bytes + grad_bytes)
        batch = max(1, min(_PLACES // (out_h * out_w), room, n // blocks))
        own = batch * (image_bytes + grad_bytes)
        self._one = np.ones(1, dtype)
        self._scratch, self._taps = own * min(threads, self._shares), (kh * kw, depth)
        self._image = (
            h * w * c * size, w * c * size, c * size,
            h, w, depth * size, int(copies), pw, total,
        )  # fmt: skip
        self._own, self._before = own, batch * image_bytes
        self._grad = (
            out_h * out_w * o * size, columns, address(self._one),
            n, out_h, out_w, o * size, int(pads),
        )  # fmt: skip
        self._last = (
            rows * line * size, kh, taps_j, merged, sh, sw, dh, dw, ph, parts,
            batch, image_bytes, grad_bytes,
        )  # fmt: skip

    def run(self, x: np.ndarray, grad: np.ndarray, out: np.ndarray, bias: np.ndarray) -> None:
        """Compute the gradients of the weight and of the bias, both contiguous."""
        size, where = self.dtype.itemsize, scratch(self._scratch)
        sums = np.empty(self._sums, self.dtype)
        for ins, outs in self.channels:
            pool.run(
                outer_loop.address(),
                (
                    *tile_facts(self.dtype),
                    address(x) + ins.start * size, *self._image, where, self._own,
                    address(grad) + outs.start * size, *self._grad, where + self._before,
                    address(sums), *self._last,
                ),
                self._shares,
            )  # fmt: skip
            collected(sums, *self._taps, out[outs], bias[outs])


_outer = lru_cache(maxsize=1024)(_Outer)


def conv_weight_grad(
    x: np.ndarray,
    grad: np.ndarray,
    w_shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """See `reference.conv_weight_grad`."""
    plan = _outer(x.shape, grad.shape, geometry, groups, x.dtype, get_num_threads())
    out = np.empty(w_shape, x.dtype) if out is None else out
    bias = np.empty(grad.shape[3], x.dtype)
    plan.run(x, grad, out, bias)
    return out, bias
