"""The compiled loops of direct convolution; `direct` says what they compute, and with which arguments."""

from __future__ import annotations

import numpy as np

from dptrain.core.kernels.compiled import call, kernel
from dptrain.core.kernels.deferred import njit
from dptrain.core.kernels.memory import array_at, move, zero


@njit(inline="always")
def bordered_copy(scratch, source, height, width, row, pixel, depth, left, total):
    """Copy an image with `left` pixels of zeros before and some after each row, `total` in all."""
    line = total * depth
    for y in range(height):
        start = scratch + y * line
        zero(start, left * depth)
        if pixel == depth:
            move(start + left * depth, source + y * row, width * depth)
        else:
            for x in range(width):
                move(start + (left + x) * depth, source + y * row + x * pixel, depth)
        zero(start + (left + width) * depth, (total - left - width) * depth)


@kernel
def gather_loop(args, share, shares, worker):
    tile_code, itemsize, lanes, most_narrow, most_wide = args[0], args[1], args[2], args[3], args[4]
    image, image_step, row, pixel = args[5], args[6], args[7], args[8]
    height, width, depth = args[9], args[10], args[11]
    copies, left, total = args[12], args[13], args[14]
    own_scratch = args[15] + worker * args[16]
    out, out_step, columns, start = args[17], args[18], args[19], args[20]
    images, phases, table = args[21], args[22], args[23]
    panel_bytes, weights = args[24], args[25]
    panel = 2 * lanes
    phase = array_at(table, (phases, 17), np.int64)
    for n in range(share * images // shares, (share + 1) * images // shares):
        source = image + n * image_step
        if copies:
            bordered_copy(own_scratch, source, height, width, row, pixel, depth, left, total)
            source, in_row, in_pixel = own_scratch, total * depth, depth
        else:
            in_row, in_pixel = row, pixel
        for p in range(phases):
            rows, cols, first, out_row, out_pixel = (
                phase[p, 0], phase[p, 1], phase[p, 2], phase[p, 3], phase[p, 4],
            )  # fmt: skip
            y_step, i_step, taps_i = phase[p, 7], phase[p, 9], phase[p, 11]
            for block in range(-(-columns // panel)):
                used = min(panel, columns - block * panel)
                most = most_narrow if used <= lanes else most_wide
                weight = weights + block * panel_bytes + phase[p, 14]
                parts = -(-cols // most)
                for y in range(rows):
                    # Tap rows outside of the image are left out.
                    top = phase[p, 5] + y * y_step
                    if i_step > 0:
                        low, high = -(top // i_step), -((top - height) // i_step)
                    else:
                        low, high = -((height - 1 - top) // -i_step), top // -i_step + 1
                    low = max(0, low)
                    count = min(taps_i, high) - low
                    line = source + (top + low * i_step) * in_row + phase[p, 6] * in_pixel
                    to = out + n * out_step + first + y * out_row + block * panel * itemsize
                    for part in range(parts):
                        x = part * cols // parts
                        call(
                            tile_code,
                            (
                                (part + 1) * cols // parts - x, used,
                                start + block * panel * itemsize, 0,
                                line + x * phase[p, 8] * in_pixel, phase[p, 8] * in_pixel,
                                i_step * in_row, phase[p, 10] * in_pixel, itemsize,
                                weight + low * phase[p, 15], phase[p, 15], phase[p, 16],
                                panel * itemsize,
                                count, phase[p, 12], phase[p, 13],
                                to + x * out_pixel, out_pixel,
                            ),
                        )  # fmt: skip


@kernel
def outer_loop(args, share, shares, worker):
    tile_code, itemsize, lanes, most_narrow, most_wide = args[0], args[1], args[2], args[3], args[4]
    image, image_step, row, pixel = args[5], args[6], args[7], args[8]
    height, width, depth = args[9], args[10], args[11]
    copies, left, total = args[12], args[13], args[14]
    own_scratch = args[15] + worker * args[16]
    grads, grads_step, columns, one = args[17], args[18], args[19], args[20]
    images, out_h, out_w = args[21], args[22], args[23]
    grad_pixel, pads, grad_scratch = args[24], args[25], args[26]
    taps_i, taps_j, merged = args[29], args[30], args[31]
    y_step, x_step, i_step, j_step, above = args[32], args[33], args[34], args[35], args[36]
    batch, image_bytes, grad_bytes = args[38], args[39], args[40]
    # A share sums some of the images, in some of the panels of columns.
    parts, group = args[37], share // args[37]
    sums, groups = args[27] + group * args[28], shares // parts
    panels = -(-columns // (2 * lanes))
    first_panel, last_panel = share % parts * panels // parts, (share % parts + 1) * panels // parts
    line = -(-columns // lanes) * lanes * itemsize  # of the sums
    left_end = first_panel * 2 * lanes * itemsize
    for m in range(taps_i * taps_j * merged + 1):
        zero(sums + m * line + left_end, min(line, last_panel * 2 * lanes * itemsize) - left_end)
    grad_scratch += worker * args[16]
    if pads:
        # Nobody uses what is summed beside the columns, but numbers that happen to lie there may be
        # subnormal, with which products take fifty times as long.
        zero(grad_scratch, batch * grad_bytes)
    end = (group + 1) * images // groups
    for n in range(group * images // groups, end, batch):
        count = min(batch, end - n)
        source, in_step, in_row, in_pixel = image + n * image_step, image_step, row, pixel
        if copies:
            for b in range(count):
                bordered_copy(
                    own_scratch + b * image_bytes, source + b * image_step,
                    height, width, row, pixel, depth, left, total,
                )  # fmt: skip
            source, in_step, in_row, in_pixel = own_scratch, image_bytes, total * depth, depth
        grad, grad_step, grad_in = grads + n * grads_step, grads_step, grad_pixel
        if pads:  # whole vectors are read
            for b in range(count):
                for place in range(out_h * out_w):
                    move(
                        grad_scratch + b * grad_bytes + place * line,
                        grad + b * grads_step + place * grad_pixel,
                        columns * itemsize,
                    )
            grad, grad_step, grad_in = grad_scratch, grad_bytes, line
        for i in range(taps_i):
            low = max(0, -((i * i_step - above) // y_step))
            high = min(out_h, -((i * i_step - above - height) // y_step))
            for j in range(taps_j):
                first = (
                    source + (low * y_step + i * i_step - above) * in_row + j * j_step * in_pixel
                )
                to = sums + (i * taps_j + j) * merged * line
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
                                (cut + 1) * merged // cuts - m, used,
                                here, line,
                                first + m * itemsize, itemsize,
                                in_step, y_step * in_row, x_step * in_pixel,
                                grad + low * out_w * grad_in + right,
                                grad_step, out_w * grad_in, grad_in,
                                count, high - low, out_w,
                                here, line,
                            ),
                        )  # fmt: skip
        for block in range(first_panel, last_panel):
            used = min(2 * lanes, -(-columns // lanes) * lanes - block * 2 * lanes)
            here = sums + taps_i * taps_j * merged * line + block * 2 * lanes * itemsize
            call(
                tile_code,
                (
                    1, used, here, 0, one, 0, 0, 0, 0,
                    grad + block * 2 * lanes * itemsize, grad_step, 0, grad_in,
                    count, 1, out_h * out_w, here, 0,
                ),
            )  # fmt: skip
