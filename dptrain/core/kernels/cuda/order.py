"""Images brought to the order of the kernels on the GPU: channels last. The twin of `reference.channels_last`.

Tiles go through shared memory, so that both reading and writing run along the memory. Source: Ruetsch &
Micikevicius, "Optimizing matrix transpose in CUDA", 2009.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels.cuda.launch import Family

_SOURCE = r"""
// (images, rows, columns) -> (images, columns, rows): a block of 256 threads for each tile of 32 x 32.
extern "C" __global__ void turn(
    const T* x, T* out, long long images, long long rows, long long columns) {
    __shared__ unsigned long long held[32 * 33 * sizeof(T) / 8];
    T* tile = (T*)held;
    const long long across = (columns + 31) / 32, down = (rows + 31) / 32;
    const int lane = threadIdx.x % 32;
    for (long long b = blockIdx.x; b < images * across * down; b += gridDim.x) {
        const long long r = b / across % down * 32, c = b % across * 32;
        const long long start = b / (across * down) * rows * columns;
        for (int k = threadIdx.x / 32; k < 32; k += 8)
            if (r + k < rows && c + lane < columns)
                tile[k * 33 + lane] = x[start + (r + k) * columns + c + lane];
        __syncthreads();
        for (int k = threadIdx.x / 32; k < 32; k += 8)
            if (c + k < columns && r + lane < rows)
                out[start + (c + k) * rows + r + lane] = tile[lane * 33 + k];
        __syncthreads();
    }
}

// Likewise for few rows: a thread for each column of each image.
extern "C" __global__ void turn_few(
    const T* x, T* out, long long count, long long rows, long long columns) {
    EACH(i, count) {
        const long long at = i, start = at / columns * rows * columns + at % columns;
        for (long long k = 0; k < rows; k++) out[at * rows + k] = x[start + k * columns];
    }
}
"""

FAMILY = Family("order", _SOURCE)

#: Channels from which on tiles are worth their corners.
_MANY = 16


def channels_last(x: Any) -> Any:
    """See `reference.channels_last`."""
    xp, last = namespace_of(x), x.transpose(0, *range(2, x.ndim), 1)
    if last.flags.c_contiguous:
        return last
    if not x.flags.c_contiguous or x.dtype.name not in FAMILY.kinds or not x.size:
        return xp.ascontiguousarray(last)
    images, channels = x.shape[:2]
    places = x.size // (images * channels)
    out = xp.empty(last.shape, x.dtype)
    if channels < _MANY:
        count = images * places
        FAMILY.launch("turn_few", x.dtype, count, x, out, count, channels, places)
        return out
    blocks = images * -(-channels // 32) * -(-places // 32)
    FAMILY.launch("turn", x.dtype, x.size, x, out, images, channels, places, blocks=blocks)
    return out
