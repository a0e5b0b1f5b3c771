"""Convolution of stride 1 by fewer products: F(4x4, 3x3) and F(4x4, 5x5) over channels-last images.

Tiles of the image and the filters are transformed (`cook_toom`), multiplied place by place, which is
36 or 64 small matrix products over the channels, and transformed back. The weight's gradient sums in
the transformed space. Any number of channels and any size of image: channels are filled up with zeros
to whole vectors, the last tiles with zeros to whole tiles, in copies that stay in the cache.
Sources: as in `cook_toom`.

Rounding: the transforms magnify it. Relative to the largest result in float32, about 7e-6 forward and
4e-5 for the weight's gradient (plain sums: 7e-7 and 6e-6). Infinity and NaN spread over their tile.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import call, kernel
from dptrain.core.kernels.deferred import njit
from dptrain.core.kernels.memory import address, lines, move, scratch, zero
from dptrain.core.kernels.micro import tile
from dptrain.core.kernels.target import target
from dptrain.core.kernels.transform import TILE, code, everywhere
from dptrain.core.kernels.weights import collected, panels, started
from dptrain.core.threads import get_num_threads

#: Sizes of filters that it serves.
SIZES = (3, 5)


@njit(inline="always")
def padded_copy(to, image, h, w, pixel, used, depth, top, rows, left, columns):
    """Rows `top` to `top + rows` of an image, shifted right by `left`, zeros around.

    Of each `pixel` bytes the first `used` are copied, to pixels of `depth` bytes.
    """
    inside = min(w, columns - left)
    for y in range(rows):
        line = to + y * columns * depth
        if top + y < 0 or top + y >= h:
            zero(line, columns * depth)
            continue
        source = image + (top + y) * w * pixel
        zero(line, left * depth)
        if pixel == used == depth:
            move(line + left * depth, source, inside * depth)
        else:
            for x in range(inside):
                move(line + (left + x) * depth, source + x * pixel, used)
                zero(line + (left + x) * depth + used, depth - used)
        zero(line + (left + inside) * depth, (columns - left - inside) * depth)


@kernel
def _forward(args, share, shares, worker):
    tile_code, into, back, most, narrow = args[0], args[1], args[2], args[3], args[4]
    image, n, h, w, c = args[5], args[6], args[7], args[8], args[9]
    out, out_h, out_w, o = args[10], args[11], args[12], args[13]
    above, left, size = args[14], args[15], args[16]
    filters, bias, zeros, group, band = args[17], args[18], args[19], args[20], args[28]
    width, lanes = args[21], args[22]
    depth, line = -(-c // lanes) * width, -(-o // lanes) * width
    tiles_y, tiles_x = -(-out_h // 4), -(-out_w // 4)
    bands = -(-tiles_y // band)
    own = args[23] + worker * args[24]
    pixels, places = own, own + args[25]
    products = places + args[26]
    results = products + args[27]
    columns = tiles_x * 4 + size - 4  # of the copied image
    whole = out_h % 4 == 0 and out_w % 4 == 0 and o % lanes == 0
    panel_bytes = c * 2 * width
    for unit in range(
        share * (-(-n // group) * bands) // shares, (share + 1) * (-(-n // group) * bands) // shares
    ):
        first, top = unit // bands * group, unit % bands * band
        images, down = min(group, n - first), min(band, tiles_y - top)
        total = images * down * tiles_x
        for b in range(images):
            padded_copy(
                pixels, image + (first + b) * h * w * c * 4, h, w, c * 4, c * 4, depth,
                top * 4 - above, down * 4 + size - 4, left, columns,
            )  # fmt: skip
            for y in range(down):
                for x in range(tiles_x):
                    number = (b * down + y) * tiles_x + x
                    call(
                        into,
                        (
                            pixels + (y * 4 * columns + x * 4) * depth, columns * depth, depth,
                            places + number * depth, size * total * depth, total * depth,
                            zeros, 0, depth // width,
                        ),
                    )  # fmt: skip
        for place in range(size * size):
            for block in range(-(-line // (2 * width))):
                used = min(2 * lanes, (line - block * 2 * width) // 4)
                rows = most if used > lanes else narrow
                parts = -(-total // rows)
                for part in range(parts):
                    m = part * total // parts
                    call(
                        tile_code,
                        (
                            (part + 1) * total // parts - m, used, zeros, 0,
                            places + (place * total + m) * depth, depth, 0, 0, 4,
                            filters + (place * -(-line // (2 * width)) + block) * panel_bytes,
                            0, 0, 2 * width, 1, 1, c,
                            products + (place * total + m) * line + block * 2 * width, line,
                        ),
                    )  # fmt: skip
        for b in range(images):
            for y in range(down):
                for x in range(tiles_x):
                    number = (b * down + y) * tiles_x + x
                    to_row, to_pixel = out_w * o * 4, o * 4
                    to = out + (((first + b) * out_h + (top + y) * 4) * out_w + x * 4) * o * 4
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
                                place = (
                                    ((first + b) * out_h + (top + y) * 4 + i) * out_w + x * 4 + j
                                )
                                move(out + place * o * 4, results + (i * 4 + j) * line, o * 4)


@kernel
def _weight(args, share, shares, worker):
    tile_code, into, over, most, narrow = args[0], args[1], args[2], args[3], args[4]
    image, n, h, w, c = args[5], args[6], args[7], args[8], args[9]
    grad, out_h, out_w, o = args[10], args[11], args[12], args[13]
    above, left, size = args[14], args[15], args[16]
    zeros, one, group, band = args[17], args[18], args[19], args[20]
    width, lanes = args[21], args[22]
    # A share sums some of the images, in some of the panels of results.
    parts, block, blocks = args[30], share // args[30], shares // args[30]
    depth, whole = -(-c // lanes) * width, -(-o // lanes) * width
    panels = -(-whole // (2 * width))
    before = share % parts * panels // parts * 2 * width
    line = min(whole, (share % parts + 1) * panels // parts * 2 * width) - before
    used_bytes = min(o * 4 - before, line)
    tiles_y, tiles_x = -(-out_h // 4), -(-out_w // 4)
    bands = -(-tiles_y // band)
    own = args[23] + worker * args[24]
    pixels, places, grads = own, own + args[25], own + args[25] + args[26]
    grad_pixels = grads + args[27]
    sums = args[28] + block * args[29] + before
    columns = tiles_x * 4 + size - 4
    for m in range(size * size * c + 1):
        zero(sums + m * whole, line)
    for unit in range(
        block * (-(-n // group) * bands) // blocks, (block + 1) * (-(-n // group) * bands) // blocks
    ):
        first, top = unit // bands * group, unit % bands * band
        images, down = min(group, n - first), min(band, tiles_y - top)
        total = images * down * tiles_x
        for b in range(images):
            padded_copy(
                pixels, image + (first + b) * h * w * c * 4, h, w, c * 4, c * 4, depth,
                top * 4 - above, down * 4 + size - 4, left, columns,
            )  # fmt: skip
            padded_copy(
                grad_pixels, grad + (first + b) * out_h * out_w * o * 4 + before, out_h, out_w,
                o * 4, used_bytes, line, top * 4, down * 4, 0, tiles_x * 4,
            )  # fmt: skip
            for y in range(down):
                for x in range(tiles_x):
                    number = (b * down + y) * tiles_x + x
                    call(
                        into,
                        (
                            pixels + (y * 4 * columns + x * 4) * depth, columns * depth, depth,
                            places + number * depth, size * total * depth, total * depth,
                            zeros, 0, depth // width,
                        ),
                    )  # fmt: skip
                    call(
                        over,
                        (
                            grad_pixels + (y * 16 * tiles_x + x * 4) * line, tiles_x * 4 * line, line,
                            grads + number * line, size * total * line, total * line,
                            zeros, 0, line // width,
                        ),
                    )  # fmt: skip
            for right in range(0, line, 2 * width):
                here = sums + size * size * c * whole + right
                used = min(2 * lanes, (line - right) // 4)
                call(
                    tile_code,
                    (
                        1, used, here, 0, one, 0, 0, 0, 0, grad_pixels + right, 0, 0, line,
                        1, 1, down * 16 * tiles_x, here, 0,
                    ),
                )  # fmt: skip
        for place in range(size * size):
            for right in range(0, line, 2 * width):
                used = min(2 * lanes, (line - right) // 4)
                rows = most if used > lanes else narrow
                cuts = -(-c // rows)
                for cut in range(cuts):
                    m = cut * c // cuts
                    here = sums + (place * c + m) * whole + right
                    call(
                        tile_code,
                        (
                            (cut + 1) * c // cuts - m, used, here, whole,
                            places + place * total * depth + m * 4, 4, 0, 0, depth,
                            grads + place * total * line + right, 0, 0, line,
                            1, 1, total, here, whole,
                        ),
                    )  # fmt: skip


#: Bytes of transformed tiles that are worked on at a time: they stay in the second cache.
_BUDGET = 1 << 19


def _blocks(
    n: int, tiles_y: int, tiles_x: int, bytes_per_tile: int, c: int, o: int, most: int
) -> tuple[int, int]:
    """How many images, or how many rows of tiles of one, to transform at a time.

    The filters (or the sums of their gradients) pass once per block. Where they are too many for the cache, a block
    has so many tiles that their own way through memory, twice c + o numbers for each place of a tile, is as long as
    that of the filters, c * o numbers for each place.
    """
    tiles = max(16, _BUDGET // bytes_per_tile, min(c * o // (2 * (c + o)), most))
    if tiles_y * tiles_x <= tiles:
        return min(n, tiles // (tiles_y * tiles_x)), tiles_y
    return 1, max(1, tiles // tiles_x)


class Sizes:
    """What drivers over tiles of planes need beside addresses, for results of one size.

    Args:
        c, o: channels of the images and of the results.
        taps: of a side of a filter.
    """

    def __init__(self, c: int, o: int, taps: int) -> None:
        kind = target()
        self.size = TILE + taps - 1
        self.area = self.size * self.size
        self.width, self.lanes = kind.width, kind.lanes(4)
        self.depth = -(-c // self.lanes) * self.width
        self.line = -(-o // self.lanes) * self.width
        self.per_tile = self.area * (self.depth + self.line)
        self.zeros = np.zeros(max(self.depth, self.line) // 4 + 2 * self.lanes, np.float32)

    def divide_scratch(self, rows: int, columns: int, seen: int, total: int) -> None:
        """Size the pieces of a worker's scratch.

        Args:
            rows, columns: of tiles that are copied at a time.
            seen: tiles of images that are transformed at a time.
            total: likewise of results.
        """
        edge = self.size - TILE
        self.pixels = lines((rows * TILE + edge) * (columns * TILE + edge) * self.depth)
        self.places = lines(self.area * seen * self.depth)
        self.products = lines(self.area * total * self.line)
        results = lines(rows * TILE * columns * TILE * self.line)
        self.own = self.pixels + self.places + self.products + results


class _Plan:
    """Sizes that both drivers share; threads, if their number may change them."""

    def __init__(
        self, n: int, out_h: int, out_w: int, c: int, o: int, taps: int, threads: int
    ) -> None:
        self.sizes = Sizes(c, o, taps)
        tiles_y, tiles_x = -(-out_h // TILE), -(-out_w // TILE)
        most = -(-n * tiles_y * tiles_x // threads)
        self.group, self.band = _blocks(n, tiles_y, tiles_x, self.sizes.per_tile, c, o, most)
        self.units = -(-n // self.group) * -(-tiles_y // self.band)
        self.work = pool.as_bytes(n * tiles_y * tiles_x * self.sizes.area * c * o)
        tiles = self.group * self.band * tiles_x
        self.sizes.divide_scratch(self.band, tiles_x, tiles, tiles)


_plan = lru_cache(maxsize=1024)(_Plan)


def _correlate(
    x: np.ndarray,
    taps: np.ndarray,
    o: int,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    pads: tuple[int, int],
) -> np.ndarray:
    """`o` results at stride 1, for filters as panels with the taps first."""
    n, h, w, c = x.shape
    r = int(len(taps) ** 0.5)
    # How a result is summed does not depend on its block.
    plan = _plan(n, out_h, out_w, c, o, r, get_num_threads())
    sizes = plan.sizes
    filters = everywhere("filter", r, taps.reshape(r * r, -1))
    start = started(sizes.zeros, bias)
    out = np.empty((n, out_h, out_w, o), np.float32)
    shares = pool.shares(plan.units, plan.work)
    where = scratch(sizes.own * min(shares, get_num_threads()))
    pool.run(
        _forward.address(),
        (
            tile.address(np.float32), code("image", r), code("output", r), target().most_rows(2), target().most_rows(1),
            address(x), n, h, w, c, address(out), out_h, out_w, o, *pads, sizes.size,
            address(filters), address(start), address(sizes.zeros), plan.group,
            sizes.width, sizes.lanes, where, sizes.own, sizes.pixels, sizes.places, sizes.products, plan.band,
        ),
        shares,
    )  # fmt: skip
    return out


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    pads: tuple[int, int],
) -> np.ndarray:
    """`reference.conv` for stride 1, dilation 1, one group, square filters of a size in `SIZES`."""
    taps = panels(weight, taps_first=True)
    return _correlate(x, taps, len(weight), bias, out_h, out_w, pads)


def conv_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: tuple[int, int, int, int],
    pads: tuple[int, int],
) -> np.ndarray:
    """`reference.conv_input_grad`, likewise, for padding below the size of the filter."""
    r = weight.shape[2]
    taps = panels(weight, transposed=True, flip=(True, True), taps_first=True)
    return _correlate(
        grad, taps, shape[3], bias, shape[1], shape[2], (r - 1 - pads[0], r - 1 - pads[1])
    )


def conv_weight_grad(
    x: np.ndarray,
    grad: np.ndarray,
    w_shape: tuple[int, int, int, int],
    pads: tuple[int, int],
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`reference.conv_weight_grad`, likewise."""
    n, h, w, c = x.shape
    _, out_h, out_w, o = grad.shape
    r = w_shape[2]
    plan = _plan(n, out_h, out_w, c, o, r, 1)
    sizes = plan.sizes
    area, line = sizes.area, sizes.line // 4
    blocks = pool.blocks(plan.units, plan.work, (area * c + 1) * sizes.line)
    parts = pool.across(-(-line // (2 * sizes.lanes)), blocks, plan.work)
    sums = np.empty((blocks, area * c + 1, line), np.float32)
    one = np.ones(1, np.float32)
    where = scratch(sizes.own * min(get_num_threads(), blocks * parts))
    pool.run(
        _weight.address(),
        (
            tile.address(np.float32), code("image", r), code("output_grad", r), target().most_rows(2), target().most_rows(1),
            address(x), n, h, w, c, address(grad), out_h, out_w, o, *pads, sizes.size,
            address(sizes.zeros), address(one), plan.group, plan.band,
            sizes.width, sizes.lanes, where, sizes.own, sizes.pixels, sizes.places, sizes.products,
            address(sums), sums[0].nbytes, parts,
        ),
        blocks * parts,
    )  # fmt: skip
    total = sums[0] if blocks == 1 else sums.sum(axis=0)
    taps = everywhere("filter_grad", r, total[:-1].reshape(area, c * line))
    out = np.empty(w_shape, np.float32) if out is None else out
    collected(taps.reshape(1, r * r * c, line), r * r, c, out)
    return out, total[-1, :o].copy()
