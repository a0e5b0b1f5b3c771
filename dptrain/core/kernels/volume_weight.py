"""Direct convolution over channels-last volumes: the gradient of the weight.

Some planes, or some rows of a plane, or some places of a row are worked on at a time: all taps pass over them
while they lie in the cache. Sources and rounding as in `direct`; sums of one part after the other are added up.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import call, kernel
from dptrain.core.kernels.direct import groups_of, tile_facts
from dptrain.core.kernels.memory import address, lines, move, scratch, zero
from dptrain.core.kernels.reference import Geometry, Windows
from dptrain.core.kernels.reference_volumes import of_one_plane
from dptrain.core.kernels.target import target
from dptrain.core.kernels.volume_loops import copied_planes, inside
from dptrain.core.kernels.weights import collected
from dptrain.core.threads import get_num_threads

Shape = tuple[int, ...]

#: Bytes of an image and its gradient that a pass over all taps reads again and again.
_REUSED = 1 << 18
#: Bytes of which the second cache holds all.
_CACHE = 1 << 20


@kernel
def outer_loop(args, share, shares, worker):
    tile_code, itemsize, lanes, most_narrow, most_wide = args[0], args[1], args[2], args[3], args[4]
    volume, volume_step, plane, row, pixel = args[5], args[6], args[7], args[8], args[9]
    deep, height, width, depth = args[10], args[11], args[12], args[13]
    copies, left, reach = args[14], args[15], args[16]
    own = args[17] + worker * args[18]
    grads, grads_step, columns, one = args[19], args[20], args[21], args[22]
    volumes, out_d, out_h, out_w = args[23], args[24], args[25], args[26]
    grad_pixel, pads, grad_place = args[27], args[28], own + args[29]
    sums_step, taps_i, taps_j, taps_k, merged = args[31], args[32], args[33], args[34], args[35]
    z_step, y_step, x_step = args[36], args[37], args[38]
    i_step, j_step, k_step, before, above = args[39], args[40], args[41], args[42], args[43]
    # A share sums some of the units, in some of the panels of columns.
    parts, some_planes, some_rows, some_columns = args[44], args[45], args[46], args[47]
    group, groups = share // parts, shares // parts
    sums = args[30] + group * sums_step
    panels = -(-columns // (2 * lanes))
    first_panel, last_panel = share % parts * panels // parts, (share % parts + 1) * panels // parts
    line = -(-columns // lanes) * lanes * itemsize  # of the sums
    left_end = first_panel * 2 * lanes * itemsize
    taps = taps_i * taps_j * taps_k * merged
    for m in range(taps + 1):
        zero(sums + m * line + left_end, min(line, last_panel * 2 * lanes * itemsize) - left_end)
    if pads:
        # Nobody uses what is summed beside the columns, but numbers that happen to lie there may be
        # subnormal, with which products take fifty times as long.
        zero(grad_place, some_planes * some_rows * some_columns * line)
    cuts_z, cuts_y, cuts_x = (
        -(-out_d // some_planes), -(-out_h // some_rows), -(-out_w // some_columns),
    )  # fmt: skip
    units = volumes * cuts_z * cuts_y * cuts_x
    for unit in range(group * units // groups, (group + 1) * units // groups):
        n, x = unit // (cuts_z * cuts_y * cuts_x), unit % cuts_x * some_columns
        z, y = unit // (cuts_y * cuts_x) % cuts_z * some_planes, unit // cuts_x % cuts_y * some_rows
        planes, rows = min(some_planes, out_d - z), min(some_rows, out_h - y)
        cols = min(some_columns, out_w - x)
        source, in_plane, in_row, in_pixel = volume + n * volume_step, plane, row, pixel
        if copies:
            low = max(0, z * z_step - before)
            high = min(deep, (z + planes - 1) * z_step - before + (taps_i - 1) * i_step + 1)
            top = max(0, y * y_step - above)
            end = min(height, (y + rows - 1) * y_step - above + (taps_j - 1) * j_step + 1)
            tall = max(0, end - top)
            # Columns that the windows see, of which some lie in the border.
            seen, aside = (cols - 1) * x_step + reach, x * x_step - left
            begin, stop = max(0, aside), min(width, aside + seen)
            source = copied_planes(
                own, source + top * row + begin * pixel, plane, low, high,
                tall, max(0, stop - begin), row, pixel, depth, min(begin - aside, seen), seen,
            )  # fmt: skip
            in_plane, in_row, in_pixel = tall * seen * depth, seen * depth, depth
            source -= top * in_row
        else:
            source += x * x_step * in_pixel
        grad_plane, grad_row, grad_in = out_h * out_w * grad_pixel, out_w * grad_pixel, grad_pixel
        grad = grads + n * grads_step + z * grad_plane + y * grad_row + x * grad_in
        if pads:  # whole vectors are read
            for k in range(planes):
                for r in range(rows):
                    for place in range(cols):
                        move(
                            grad_place + ((k * rows + r) * cols + place) * line,
                            grad + k * grad_plane + r * grad_row + place * grad_pixel,
                            columns * itemsize,
                        )
            grad, grad_plane, grad_row, grad_in = grad_place, rows * cols * line, cols * line, line
        for i in range(taps_i):
            front = z * z_step + i * i_step - before
            low_z, count_z = inside(front, z_step, planes, deep)
            for j in range(taps_j):
                top = y * y_step + j * j_step - above
                low_y, count_y = inside(top, y_step, rows, height)
                if not count_z or not count_y:
                    continue
                for k in range(taps_k):
                    first = (
                        source + (front + low_z * z_step) * in_plane
                        + (top + low_y * y_step) * in_row + k * k_step * in_pixel
                    )  # fmt: skip
                    to = sums + ((i * taps_j + j) * taps_k + k) * merged * line
                    for block in range(first_panel, last_panel):
                        used = min(2 * lanes, -(-columns // lanes) * lanes - block * 2 * lanes)
                        most = most_narrow if used <= lanes else most_wide
                        cuts = -(-merged // most)
                        right = block * 2 * lanes * itemsize
                        for cut in range(cuts):
                            m = cut * merged // cuts
                            here = to + m * line + right
                            call(
                                tile_code,
                                (
                                    (cut + 1) * merged // cuts - m, used, here, line,
                                    first + m * itemsize, itemsize,
                                    z_step * in_plane, y_step * in_row, x_step * in_pixel,
                                    grad + low_z * grad_plane + low_y * grad_row + right,
                                    grad_plane, grad_row, grad_in,
                                    count_z, count_y, cols, here, line,
                                ),
                            )  # fmt: skip
        for block in range(first_panel, last_panel):
            used = min(2 * lanes, -(-columns // lanes) * lanes - block * 2 * lanes)
            right = block * 2 * lanes * itemsize
            here = sums + taps * line + right
            call(
                tile_code,
                (
                    1, used, here, 0, one, 0, 0, 0, 0,
                    grad + right, grad_plane, grad_row, grad_in,
                    planes, rows, cols, here, 0,
                ),
            )  # fmt: skip


class _Outer:
    """The outer driver for volumes of one shape: what a call needs beside the addresses.

    Args:
        volume: (N, D, H, W, channels) of the contiguous volumes.
        grad: likewise of the gradient of the results.
        windows: kernel, stride, padding, dilation.
        groups: of channels.
        dtype: of the elements.
        threads: how many there are.
    """

    def __init__(
        self,
        volume: Shape,
        grad: Shape,
        windows: Windows,
        groups: int,
        dtype: np.dtype[Any],
        threads: int,
    ) -> None:
        (kd, kh, kw), (sd, sh, sw), (pd, ph, pw), (dd, dh, dw) = windows
        n, d, h, w, c = volume
        _, out_d, out_h, out_w, o = grad
        self.channels = tuple(zip(groups_of(c, groups), groups_of(o, groups), strict=True))
        depth, columns = c // groups, o // groups
        size, self.dtype = dtype.itemsize, dtype
        lanes = target().lanes(size)
        taps_k, merged = (1, kw * depth) if dw == 1 else (kw, depth)
        line = -(-columns // lanes) * lanes
        copies, pads, reach = groups > 1 or pw > 0, line != o, (kw - 1) * dw + 1
        # So many planes, or rows of one, or places of one, that they stay in the cache while all taps pass over them.
        places = max(1, _REUSED // ((line + sh * sw * depth) * size))
        cols = min(out_w, places)
        rows = min(out_h, max(1, places // out_w))
        planes = min(out_d, max(1, places // (out_w * out_h)))
        seen = (
            min(d, (planes - 1) * sd + (kd - 1) * dd + 1),
            min(h, (rows - 1) * sh + (kh - 1) * dh + 1),
            (cols - 1) * sw + reach,
        )
        self._volume_bytes = lines(prod(seen) * depth * size) if copies else 0
        own = self._volume_bytes + (lines(planes * rows * cols * line * size) if pads else 0)
        units = n * -(-out_d // planes) * -(-out_h // rows) * -(-out_w // cols)
        count, work = kd * kh * kw * depth + 1, pool.as_bytes(prod(grad) * depth * kd * kh * kw)
        blocks = pool.blocks(units, work, count * line * size)
        parts = pool.across(-(-columns // (2 * lanes)), blocks, work)
        self._sums, self._shares = (blocks, count, line), blocks * parts
        self._one = np.ones(1, dtype)
        self._scratch, self._own = own * min(threads, self._shares), own
        self._taps = kd * kh * kw, depth
        self._volume = (
            d * h * w * c * size, h * w * c * size, w * c * size, c * size,
            d, h, w, depth * size, int(copies), pw, reach,
        )  # fmt: skip
        self._grad = (
            out_d * out_h * out_w * o * size, columns, address(self._one),
            n, out_d, out_h, out_w, o * size, int(pads), self._volume_bytes,
        )  # fmt: skip
        self._last = (
            count * line * size, kd, kh, taps_k, merged, sd, sh, sw, dd, dh, dw, pd, ph,
            parts, planes, rows, cols,
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
                    address(x) + ins.start * size, *self._volume, where, self._own,
                    address(grad) + outs.start * size, *self._grad,
                    address(sums), *self._last,
                ),
                self._shares,
            )  # fmt: skip
            collected(sums, *self._taps, out[outs], bias[outs])


_outer = lru_cache(maxsize=1024)(_Outer)


def conv_volume_weight_grad(
    x: np.ndarray, grad: np.ndarray, w_shape: Shape, windows: Windows, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_volume_weight_grad` for contiguous arrays that are not empty."""
    plan = _outer(x.shape, grad.shape, windows, groups, x.dtype, get_num_threads())
    out, bias = np.empty(w_shape, x.dtype), np.empty(grad.shape[4], x.dtype)
    plan.run(x, grad, out, bias)
    return out, bias


def pays(image: np.ndarray, grad: np.ndarray) -> bool:
    """Whether images and gradients, of which these hold several, are too large for the cache to hold one of each."""
    return image[0].nbytes + grad[0].nbytes > _CACHE


def conv_weight_grad(
    x: np.ndarray,
    grad: np.ndarray,
    w_shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_weight_grad`: an image is a volume of one plane."""
    windows, shape = of_one_plane(geometry), (*w_shape[:2], 1, *w_shape[2:])
    out, bias = conv_volume_weight_grad(x[:, None], grad[:, None], shape, windows, groups)
    return out.reshape(w_shape), bias
