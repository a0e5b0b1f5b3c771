"""Convolution over volumes of stride 1 by fewer products: F(4x4, 3x3) and F(4x4, 5x5) in the planes.

The tiles of each plane are transformed once; what the planes of a window give is added up in the
transformed space, where a tap plane is one more kind of rows to sum over. Some rows of tiles of some
planes are worked on at a time. Sources and rounding as in `winograd`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import call, kernel
from dptrain.core.kernels.deferred import njit
from dptrain.core.kernels.memory import address, move, scratch, zero
from dptrain.core.kernels.micro import tile
from dptrain.core.kernels.target import target
from dptrain.core.kernels.transform import TILE, code, everywhere
from dptrain.core.kernels.weights import collected, panels, started
from dptrain.core.kernels.winograd import Sizes, padded_copy
from dptrain.core.threads import get_num_threads

Shape = tuple[int, ...]


@njit(inline="always")
def _transform_planes(
    into, zeros, width, volume, d, h, w, pixel, first, count, top, down, left, columns, tiles_x, size, depth,
    pixels, places,
):  # fmt: skip
    """The tiles of `count` planes from `first` on, transformed: (place, plane, tile, channel) at `places`.

    Tiles are `down` rows of them, the first of which sees the image from row `top` on; there are zeros where
    the volume has no plane. One plane at a time is copied to `pixels`, `columns` wide.
    """
    each = down * tiles_x
    seen = count * each
    for q in range(count):
        deep = first + q
        if deep < 0 or deep >= d:
            for place in range(size * size):
                zero(places + (place * seen + q * each) * depth, each * depth)
            continue
        padded_copy(
            pixels, volume + deep * h * w * pixel, h, w, pixel, pixel, depth,
            top, down * 4 + size - 4, left, columns,
        )  # fmt: skip
        for number in range(each):
            y, x = number // tiles_x, number % tiles_x
            call(
                into,
                (
                    pixels + (y * 4 * columns + x * 4) * depth, columns * depth, depth,
                    places + (q * each + number) * depth, size * seen * depth, seen * depth,
                    zeros, 0, depth // width,
                ),
            )  # fmt: skip


@kernel
def _forward(args, share, shares, worker):
    tile_code, into, back, most, narrow = args[0], args[1], args[2], args[3], args[4]
    volume, n_all, d, h, w, c = args[5], args[6], args[7], args[8], args[9], args[10]
    out, out_d, out_h, out_w, o = args[11], args[12], args[13], args[14], args[15]
    before, above, left, taps, size = args[16], args[17], args[18], args[19], args[20]
    filters, bias, zeros, some_planes, band = args[21], args[22], args[23], args[24], args[25]
    width, lanes = args[26], args[27]
    own = args[28] + worker * args[29]
    pixels, places = own, own + args[30]
    products = places + args[31]
    results = products + args[32]
    depth, line = -(-c // lanes) * width, -(-o // lanes) * width
    tiles_y, tiles_x = -(-out_h // 4), -(-out_w // 4)
    cuts, bands = -(-out_d // some_planes), -(-tiles_y // band)
    units = n_all * cuts * bands
    columns = tiles_x * 4 + size - 4  # of the copied plane
    whole = out_h % 4 == 0 and out_w % 4 == 0 and o % lanes == 0
    for unit in range(share * units // shares, (share + 1) * units // shares):
        n, z, top = unit // (cuts * bands), unit // bands % cuts * some_planes, unit % bands * band
        planes, down = min(some_planes, out_d - z), min(band, tiles_y - top)
        each = down * tiles_x
        seen, total = (planes + taps - 1) * each, planes * each
        _transform_planes(
            into, zeros, width, volume + n * d * h * w * c * 4, d, h, w, c * 4, z - before, planes + taps - 1,
            top * 4 - above, down, left, columns, tiles_x, size, depth, pixels, places,
        )  # fmt: skip
        for place in range(size * size):
            for block in range(-(-line // (2 * width))):
                used = min(2 * lanes, (line - block * 2 * width) // 4)
                rows = most if used > lanes else narrow
                panel = filters + (place * -(-line // (2 * width)) + block) * taps * c * 2 * width
                parts = -(-total // rows)
                for part in range(parts):
                    m = part * total // parts
                    call(
                        tile_code,
                        (
                            (part + 1) * total // parts - m, used, zeros, 0,
                            places + (place * seen + m) * depth, depth, 0, each * depth, 4,
                            panel, 0, c * 2 * width, 2 * width, 1, taps, c,
                            products + (place * total + m) * line + block * 2 * width, line,
                        ),
                    )  # fmt: skip
        for number in range(total):
            y, x = number % each // tiles_x, number % tiles_x
            row = ((n * out_d + z + number // each) * out_h + (top + y) * 4) * out_w + x * 4
            to, to_row, to_pixel = out + row * o * 4, out_w * o * 4, o * 4
            if not whole:
                to, to_row, to_pixel = results, 4 * line, line
            call(
                back,
                (
                    products + number * line, size * total * line, total * line,
                    to, to_row, to_pixel, bias, width, line // width,
                ),
            )  # fmt: skip
            if not whole:
                for i in range(min(4, out_h - (top + y) * 4)):
                    for j in range(min(4, out_w - x * 4)):
                        move(
                            out + (row + i * out_w + j) * o * 4,
                            results + (i * 4 + j) * line,
                            o * 4,
                        )


@kernel
def _weight(args, share, shares, worker):
    tile_code, into, over, most, narrow = args[0], args[1], args[2], args[3], args[4]
    volume, n_all, d, h, w, c = args[5], args[6], args[7], args[8], args[9], args[10]
    grad, out_d, out_h, out_w, o = args[11], args[12], args[13], args[14], args[15]
    before, above, left, taps, size = args[16], args[17], args[18], args[19], args[20]
    zeros, one, some_planes, band = args[21], args[22], args[23], args[24]
    width, lanes = args[25], args[26]
    own = args[27] + worker * args[28]
    pixels, places = own, own + args[29]
    grads = places + args[30]
    grad_pixels = grads + args[31]
    # A share sums some of the units, in some of the panels of results.
    parts, group, groups = args[34], share // args[34], shares // args[34]
    depth, whole = -(-c // lanes) * width, -(-o // lanes) * width
    panels = -(-whole // (2 * width))
    first = share % parts * panels // parts * 2 * width
    line = min(whole, (share % parts + 1) * panels // parts * 2 * width) - first
    used_bytes = min(o * 4 - first, line)
    sums = args[32] + group * args[33] + first
    tiles_y, tiles_x = -(-out_h // 4), -(-out_w // 4)
    cuts, bands = -(-out_d // some_planes), -(-tiles_y // band)
    units = n_all * cuts * bands
    columns = tiles_x * 4 + size - 4
    for m in range(size * size * taps * c + 1):
        zero(sums + m * whole, line)
    for unit in range(group * units // groups, (group + 1) * units // groups):
        n, z, top = unit // (cuts * bands), unit // bands % cuts * some_planes, unit % bands * band
        planes, down = min(some_planes, out_d - z), min(band, tiles_y - top)
        each = down * tiles_x
        seen, total = (planes + taps - 1) * each, planes * each
        _transform_planes(
            into, zeros, width, volume + n * d * h * w * c * 4, d, h, w, c * 4, z - before, planes + taps - 1,
            top * 4 - above, down, left, columns, tiles_x, size, depth, pixels, places,
        )  # fmt: skip
        for q in range(planes):
            padded_copy(
                grad_pixels, grad + (n * out_d + z + q) * out_h * out_w * o * 4 + first, out_h,
                out_w, o * 4, used_bytes, line, top * 4, down * 4, 0, tiles_x * 4,
            )  # fmt: skip
            for number in range(each):
                y, x = number // tiles_x, number % tiles_x
                call(
                    over,
                    (
                        grad_pixels + (y * 16 * tiles_x + x * 4) * line, tiles_x * 4 * line, line,
                        grads + (q * each + number) * line, size * total * line, total * line,
                        zeros, 0, line // width,
                    ),
                )  # fmt: skip
            for right in range(0, line, 2 * width):
                here = sums + size * size * taps * c * whole + right
                used = min(2 * lanes, (line - right) // 4)
                call(
                    tile_code,
                    (
                        1, used, here, 0, one, 0, 0, 0, 0, grad_pixels + right, 0, 0, line,
                        1, 1, down * 16 * tiles_x, here, 0,
                    ),
                )  # fmt: skip
        for place in range(size * size):
            for tap in range(taps):
                for right in range(0, line, 2 * width):
                    used = min(2 * lanes, (line - right) // 4)
                    rows = most if used > lanes else narrow
                    cuts_c = -(-c // rows)
                    for cut in range(cuts_c):
                        m = cut * c // cuts_c
                        here = sums + ((place * taps + tap) * c + m) * whole + right
                        call(
                            tile_code,
                            (
                                (cut + 1) * c // cuts_c - m, used, here, whole,
                                places + (place * seen + tap * each) * depth + m * 4, 4, 0, 0, depth,
                                grads + place * total * line + right, 0, 0, line,
                                1, 1, total, here, whole,
                            ),
                        )  # fmt: skip


#: Bytes of transformed tiles that are worked on at a time, and tiles at least: filters, c * o numbers for each place
#: of a tile, pass once for all of them, which are c + o numbers each.
_BUDGET, _LEAST = 1 << 20, 48


class _Plan:
    """Sizes that both drivers share."""

    def __init__(self, n: int, outs: Shape, c: int, o: int, deep: int, taps: int):
        self.sizes = Sizes(c, o, taps)
        out_d, out_h, out_w = outs
        tiles_y, tiles_x = -(-out_h // TILE), -(-out_w // TILE)
        tiles = max(_LEAST, _BUDGET // self.sizes.per_tile, c * o // (c + o))
        # The planes of a window that lie in another unit are transformed once more there; rows are not.
        self.planes = min(out_d, max(deep, tiles // tiles_x))
        self.band = min(tiles_y, max(1, tiles // (self.planes * tiles_x)))
        self.units = n * -(-out_d // self.planes) * -(-tiles_y // self.band)
        self.work = pool.as_bytes(n * out_d * tiles_y * tiles_x * self.sizes.area * deep * c * o)
        each = self.band * tiles_x
        seen = (self.planes + deep - 1) * each
        self.sizes.divide_scratch(self.band, tiles_x, seen, self.planes * each)


_plan = lru_cache(maxsize=1024)(_Plan)


def _correlate(
    x: np.ndarray,
    taps: np.ndarray,
    deep: int,
    bias: np.ndarray | None,
    shape: Shape,
    pads: Shape,
) -> np.ndarray:
    """Results of that shape at stride 1, for panels with the taps of a plane first, rows (tap plane, channel)."""
    n, d, h, w, c = x.shape
    o, r = shape[4], int(len(taps) ** 0.5)
    plan = _plan(n, shape[1:4], c, o, deep, r)
    sizes = plan.sizes
    filters = everywhere("filter", r, taps.reshape(r * r, -1))
    start = started(sizes.zeros, bias)
    out = np.empty(shape, np.float32)
    shares = pool.shares(plan.units, plan.work)
    where = scratch(sizes.own * min(shares, get_num_threads()))
    pool.run(
        _forward.address(),
        (
            tile.address(np.float32), code("image", r), code("output", r), target().most_rows(2), target().most_rows(1),
            address(x), n, d, h, w, c, address(out), *shape[1:], *pads, deep, sizes.size,
            address(filters), address(start), address(sizes.zeros), plan.planes, plan.band,
            sizes.width, sizes.lanes, where, sizes.own, sizes.pixels, sizes.places, sizes.products,
        ),
        shares,
    )  # fmt: skip
    return out


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    outs: Shape,
    pads: Shape,
) -> np.ndarray:
    """`reference.conv_volume` for stride 1, dilation 1, one group, planes of filters square and of a size in `SIZES`."""
    o, c, deep, r, _ = weight.shape
    rows = weight.transpose(0, 2, 1, 3, 4).reshape(o, deep * c, r, r)
    return _correlate(x, panels(rows, taps_first=True), deep, bias, (len(x), *outs, o), pads)


def conv_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: Shape,
    pads: Shape,
) -> np.ndarray:
    """`reference.conv_volume_input_grad`, likewise, for padding below the size of the filter."""
    o, c, deep, r, _ = weight.shape
    rows = weight[:, :, ::-1].transpose(2, 0, 1, 3, 4).reshape(deep * o, c, r, r)
    taps = panels(rows, transposed=True, flip=(True, True), taps_first=True)
    before, above, left = pads
    return _correlate(
        grad, taps, deep, bias, shape, (deep - 1 - before, r - 1 - above, r - 1 - left)
    )


def conv_weight_grad(
    x: np.ndarray, grad: np.ndarray, w_shape: Shape, pads: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_volume_weight_grad`, likewise."""
    n, d, h, w, c = x.shape
    o, _, deep, r, _ = w_shape
    plan = _plan(n, grad.shape[1:4], c, o, deep, r)
    sizes = plan.sizes
    area, line = sizes.area, sizes.line // 4
    blocks = pool.blocks(plan.units, plan.work, (area * deep * c + 1) * sizes.line)
    parts = pool.across(-(-line // (2 * sizes.lanes)), blocks, plan.work)
    sums = np.empty((blocks, area * deep * c + 1, line), np.float32)
    one = np.ones(1, np.float32)
    where = scratch(sizes.own * min(get_num_threads(), blocks * parts))
    pool.run(
        _weight.address(),
        (
            tile.address(np.float32), code("image", r), code("output_grad", r), target().most_rows(2), target().most_rows(1),
            address(x), n, d, h, w, c, address(grad), *grad.shape[1:], *pads, deep, sizes.size,
            address(sizes.zeros), address(one), plan.planes, plan.band,
            sizes.width, sizes.lanes, where, sizes.own, sizes.pixels, sizes.places, sizes.products,
            address(sums), sums[0].nbytes, parts,
        ),
        blocks * parts,
    )  # fmt: skip
    total = sums[0] if blocks == 1 else sums.sum(axis=0)
    taps = everywhere("filter_grad", r, total[:-1].reshape(area, deep * c * line))
    out = np.empty((o, deep * c, r, r), np.float32)
    collected(taps.reshape(1, r * r * deep * c, line), r * r, deep * c, out)
    weight = out.reshape(o, deep, c, r, r).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(weight), total[-1, :o].copy()
