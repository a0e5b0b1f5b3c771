"""Rows added up by index on the GPU, the gradient of a table: a twin of `reference.add_rows`.

Equal indices sum in order, in one block that looks for them from the first on; so there are no atomic sums of
floats, no sorting, and the bits are the same in every run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels import reference
from dptrain.core.kernels.cuda.launch import BLOCK, Family, in_rows

#: Columns that a block adds up: so many for each thread.
_EACH = 4

_SOURCE = r"""
// seats: for each row of the table (zeros before) its first index, counted from the end; how many there are.
extern "C" __global__ void find_seats(
    const long long* index, int* seats, long long count, long long size) {
    EACH(i, count) {
        const long long to = index[i];
        if (to < 0 || to >= size) continue;  // not checked while a graph is captured
        atomicMax(seats + to, (int)(count - i));
        atomicAdd(seats + size + to, 1);
    }
}

// One block for each row that comes, and each 1024 of its columns. The block of the first row with an index
// adds up all that have it: 1024 indices are looked through at once, those found are listed in order.
extern "C" __global__ void add_rows(
    const T* rows, const long long* index, const int* seats, T* out, long long count, long long columns,
    long long size, int tiles) {
    __shared__ unsigned int found[32];
    __shared__ int list[1024];
    const int me = threadIdx.x;
    for (long long b = blockIdx.x; b < count * tiles; b += gridDim.x) {
        const long long i = b / tiles, to = index[i];
        if (to < 0 || to >= size || seats[to] != count - i) continue;
        const long long first = b % tiles * 1024;
        int missing = seats[size + to];
        A sum[4] = {0, 0, 0, 0};
        for (long long start = i; missing > 0; start += 1024) {
            bool mine[4];
            for (int s = 0; s < 4; s++) {
                const long long at = start + s * 256 + me;
                mine[s] = at < count && index[at] == to;
                const unsigned int votes = __ballot_sync(0xffffffffu, mine[s]);
                if (me % 32 == 0) found[s * 8 + me / 32] = votes;
            }
            __syncthreads();
            int total = 0, before[4] = {0, 0, 0, 0};
            for (int w = 0; w < 32; w++) {
                const int here = __popc(found[w]);
                for (int s = 0; s < 4; s++) if (w < s * 8 + me / 32) before[s] += here;
                total += here;
            }
            for (int s = 0; s < 4; s++)
                if (mine[s]) {
                    const unsigned int lower = found[s * 8 + me / 32] & ((1u << (me % 32)) - 1);
                    list[before[s] + __popc(lower)] = s * 256 + me;
                }
            __syncthreads();
            for (int n = 0; n < total; n += 4) {
                // Four rows at once: they are added in order, but come from memory together.
                A v[4][4];
                for (int m = 0; m < 4; m++)
                    for (int s = 0; s < 4; s++) {
                        const long long c = first + s * 256 + me;
                        v[m][s] = n + m < total && c < columns
                            ? A(rows[(start + list[n + m]) * columns + c]) : A(0);
                    }
                for (int m = 0; m < 4; m++)
                    if (n + m < total) for (int s = 0; s < 4; s++) sum[s] += v[m][s];
            }
            missing -= total;
            __syncthreads();
        }
        for (int s = 0; s < 4; s++) {
            const long long c = first + s * 256 + me;
            if (c < columns) out[to * columns + c] = T(sum[s]);
        }
    }
}
"""

FAMILY = Family("lookup", _SOURCE)


def add_rows(rows: Any, index: Any, size: int, out: Any = None) -> Any:
    """See `reference.add_rows`; 16-bit rows are summed in float32."""
    xp, columns = namespace_of(rows), int(np.prod(rows.shape[1:], dtype=np.int64))
    if out is None:
        out = xp.zeros((size, *rows.shape[1:]), rows.dtype)
    else:
        out.fill(0)
    if not rows.size:
        return out
    if not FAMILY.serves(rows.dtype):
        return reference.add_rows(rows, index, size, out)
    rows, index = in_rows(rows), in_rows(index.astype(np.int64, copy=False))
    count, seats = len(index), xp.zeros(2 * size, np.int32)
    FAMILY.launch("find_seats", rows.dtype, count, index, seats, count, size)
    tiles = -(-columns // (BLOCK * _EACH))
    sizes = (count, columns, size, tiles)
    blocks = count * tiles
    FAMILY.launch("add_rows", rows.dtype, count, rows, index, seats, out, *sizes, blocks=blocks)
    return out
