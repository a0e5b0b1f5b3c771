"""The compiled loop of direct convolution over volumes; `volume` says what it computes, and with which arguments."""

from __future__ import annotations

import numpy as np

from dptrain.core.kernels.compiled import call, kernel
from dptrain.core.kernels.deferred import njit
from dptrain.core.kernels.direct_loops import bordered_copy
from dptrain.core.kernels.memory import array_at


@njit(inline="always")
def inside(top, step, taps, size):
    """Which of the places top + tap * step lie in 0..size: the first tap, and how many."""
    if step > 0:
        low, high = -(top // step), -((top - size) // step)
    else:
        low, high = -((size - 1 - top) // -step), top // -step + 1
    low = max(0, low)
    return low, max(0, min(taps, high) - low)


@njit(inline="always")
def copied_planes(to, source, plane, low, high, height, width, row, pixel, depth, left, total):
    """Copy planes `low` to `high` with borders; gives where plane 0 would lie."""
    each = height * total * depth
    for z in range(low, high):
        here = to + (z - low) * each
        bordered_copy(here, source + z * plane, height, width, row, pixel, depth, left, total)
    return to - low * each


@kernel
def gather_loop(args, share, shares, worker):
    tile_code, itemsize, lanes, most_narrow, most_wide = args[0], args[1], args[2], args[3], args[4]
    volume, volume_step, plane, row, pixel = args[5], args[6], args[7], args[8], args[9]
    deep, height, width, depth = args[10], args[11], args[12], args[13]
    copies, left, total = args[14], args[15], args[16]
    own = args[17] + worker * args[18]
    out, out_step, columns, start = args[19], args[20], args[21], args[22]
    volumes, chunks, phases, table = args[23], args[24], args[25], args[26]
    passes_i, passes_j = args[27], args[28]
    panel_bytes, weights = args[29], args[30]
    panel = 2 * lanes
    phase = array_at(table, (phases, 24), np.int64)
    for job in range(share * volumes * chunks // shares, (share + 1) * volumes * chunks // shares):
        n, chunk = job // chunks, job % chunks
        source, in_plane, in_row, in_pixel = volume + n * volume_step, plane, row, pixel
        if copies:
            low, high = deep, 0
            for p in range(phases):
                z, end = chunk * phase[p, 0] // chunks, (chunk + 1) * phase[p, 0] // chunks
                if z < end:
                    first = phase[p, 7] + z * phase[p, 10]
                    last = phase[p, 7] + (end - 1) * phase[p, 10]
                    reach = (phase[p, 16] - 1) * phase[p, 13]
                    low, high = min(low, first + min(0, reach)), max(high, last + max(0, reach) + 1)
            source = copied_planes(
                own, source, plane, max(0, low), min(deep, high),
                height, width, row, pixel, depth, left, total,
            )  # fmt: skip
            in_plane, in_row, in_pixel = height * total * depth, total * depth, depth
        for p in range(phases):
            rows, cols, first, out_plane, out_row, out_pixel = (
                phase[p, 1], phase[p, 2], phase[p, 3], phase[p, 4], phase[p, 5], phase[p, 6],
            )  # fmt: skip
            x_step, i_step, j_step, k_step = phase[p, 12], phase[p, 13], phase[p, 14], phase[p, 15]
            taps_k, depth_k = phase[p, 18], phase[p, 19]
            weight_i, weight_j, weight_k = phase[p, 21], phase[p, 22], phase[p, 23]
            begin, end = chunk * phase[p, 0] // chunks, (chunk + 1) * phase[p, 0] // chunks
            taps_i, taps_j, front_step = phase[p, 16], phase[p, 17], phase[p, 10]
            for step in range(-(-columns // panel) * passes_i * passes_j):
                # The weights of a pass stay in the cache while all results take its products; the next pass goes
                # on with their sums.
                block, i, j = (
                    step // (passes_i * passes_j),
                    step // passes_j % passes_i,
                    step % passes_j,
                )
                used = min(panel, columns - block * panel)
                most = most_narrow if used <= lanes else most_wide
                parts = -(-cols // most)
                right = block * panel * itemsize
                goes_on = i + j > 0
                first_i, last_i = i * taps_i // passes_i, (i + 1) * taps_i // passes_i
                first_j, last_j = j * taps_j // passes_j, (j + 1) * taps_j // passes_j
                for z in range(begin, end):
                    # Tap planes and rows outside of the volume are left out.
                    front = phase[p, 7] + z * front_step
                    low_i, count_i = inside(
                        front + first_i * i_step, i_step, last_i - first_i, deep
                    )
                    low_i += first_i
                    for y in range(rows):
                        top = phase[p, 8] + y * phase[p, 11]
                        low_j, count_j = inside(
                            top + first_j * j_step, j_step, last_j - first_j, height
                        )
                        low_j += first_j
                        if goes_on and (count_i == 0 or count_j == 0 or taps_k == 0):
                            continue
                        line = (
                            source
                            + (front + low_i * i_step) * in_plane
                            + (top + low_j * j_step) * in_row
                            + phase[p, 9] * in_pixel
                        )
                        weight = (
                            weights + block * panel_bytes
                            + phase[p, 20] + low_i * weight_i + low_j * weight_j
                        )  # fmt: skip
                        # A tile sums over three kinds of taps. Where single columns are a fourth, a pass has one plane.
                        if taps_k > 1:
                            a_i, a_j, b_i, b_j = (
                                j_step * in_row,
                                k_step * in_pixel,
                                weight_j,
                                weight_k,
                            )
                            size_i, size_j = count_j if count_i else 0, taps_k
                        else:
                            a_i, a_j, b_i, b_j = (
                                i_step * in_plane,
                                j_step * in_row,
                                weight_i,
                                weight_j,
                            )
                            size_i, size_j = count_i if taps_k else 0, count_j
                        to = out + n * out_step + first + z * out_plane + y * out_row + right
                        for part in range(parts):
                            x = part * cols // parts
                            here = to + x * out_pixel
                            call(
                                tile_code,
                                (
                                    (part + 1) * cols // parts - x, used,
                                    here if goes_on else start + right, out_pixel if goes_on else 0,
                                    line + x * x_step * in_pixel, x_step * in_pixel, a_i, a_j, itemsize,
                                    weight, b_i, b_j, panel * itemsize,
                                    size_i, size_j, depth_k, here, out_pixel,
                                ),
                            )  # fmt: skip
