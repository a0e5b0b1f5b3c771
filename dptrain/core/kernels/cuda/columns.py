"""A bias added to all rows of a matrix on the GPU, and the sum of all rows, which is its gradient.

For the sum each thread reads four neighbours of a row at once where the rows allow it. Blocks take a strip of columns and a
chunk of rows each and leave partial sums of the computed type, which a second kernel adds up in one order, so
that a result has the same bits in every run and 16-bit values are rounded once.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.arrays import address, namespace_of
from dptrain.core.kernels.cuda.launch import Family

_SOURCE = r"""
// W neighbours in one piece of memory.
template <int W> struct alignas(sizeof(T) * W) Piece { T of[W]; };

// A block for each strip of 32 pieces and chunk of rows; 8 threads share a piece's rows.
#define STRIP(W)                                                                             \
    __shared__ A cache[256 * W];                                                             \
    for (long long b = blockIdx.x; b < strips * chunks; b += gridDim.x) {                    \
        long long c = (b % strips * 32 + threadIdx.x % 32) * W, part = b / strips;           \
        long long last = (part + 1) * chunk < rows ? (part + 1) * chunk : rows;              \
        A total[W];                                                                          \
        for (int i = 0; i < W; i++) total[i] = 0;                                            \
        if (c < columns)                                                                     \
            for (long long r = part * chunk + threadIdx.x / 32; r < last; r += 8) {          \
                Piece<W> piece = *(const Piece<W>*)(x + r * columns + c);                    \
                for (int i = 0; i < W; i++) total[i] += A(piece.of[i]);                      \
            }                                                                                \
        for (int i = 0; i < W; i++) cache[i * 256 + threadIdx.x] = total[i];                 \
        __syncthreads();                                                                     \
        if (threadIdx.x < 32 && c < columns)                                                 \
            for (int i = 0; i < W; i++) {                                                    \
                A sum = 0;                                                                   \
                for (int lane = 0; lane < 8; lane++)                                         \
                    sum += cache[i * 256 + threadIdx.x + 32 * lane];                         \
                partial[part * columns + c + i] = sum;                                       \
            }                                                                                \
        __syncthreads();                                                                     \
    }

extern "C" __global__ void strips_of_four(
    const T* x, A* partial, long long rows, long long columns, long long chunk,
    long long strips, long long chunks) {
    STRIP(4)
}

extern "C" __global__ void strips_of_one(
    const T* x, A* partial, long long rows, long long columns, long long chunk,
    long long strips, long long chunks) {
    STRIP(1)
}

#define TO_EACH_ROW(W)                                                                       \
    EACH(i, pieces) {                                                                        \
        Piece<W> piece = *(const Piece<W>*)(x + (long long)i * W);                           \
        Piece<W> more = *(const Piece<W>*)(bias + i % columns * W);                          \
        for (int k = 0; k < W; k++) piece.of[k] = T(A(piece.of[k]) + A(more.of[k]));         \
        *(Piece<W>*)(x + (long long)i * W) = piece;                                          \
    }

extern "C" __global__ void add_fours(T* x, const T* bias, long long pieces, int columns) {
    TO_EACH_ROW(4)
}

extern "C" __global__ void add_ones(T* x, const T* bias, long long pieces, int columns) {
    TO_EACH_ROW(1)
}

// A block for each 32 columns; 8 threads share a column's partial sums.
extern "C" __global__ void add_partial(
    const A* partial, T* out, long long chunks, long long columns) {
    __shared__ A cache[256];
    for (long long b = blockIdx.x; b * 32 < columns; b += gridDim.x) {
        long long c = b * 32 + threadIdx.x % 32;
        A total = 0;
        if (c < columns)
            for (long long part = threadIdx.x / 32; part < chunks; part += 8)
                total += partial[part * columns + c];
        cache[threadIdx.x] = total;
        __syncthreads();
        if (threadIdx.x < 32 && c < columns) {
            for (int lane = 1; lane < 8; lane++) total += cache[threadIdx.x + 32 * lane];
            out[c] = T(total);
        }
        __syncthreads();
    }
}
"""

FAMILY = Family("columns", _SOURCE)

#: Blocks that keep a GPU busy; rows of a chunk at least.
_WANTED_BLOCKS, _LEAST_ROWS = 1024, 64


def add_bias(rows: Any, bias: Any) -> None:
    """Add (D,) to each row of (..., D), which is contiguous, in place."""
    bias = namespace_of(bias).ascontiguousarray(bias)
    step = 4 * rows.dtype.itemsize
    wide = len(bias) % 4 == 0 and address(rows) % step == address(bias) % step == 0
    name, width = ("add_fours", 4) if wide else ("add_ones", 1)
    pieces = rows.size // width
    FAMILY.launch(name, rows.dtype, pieces, rows, bias, pieces, len(bias) // width)


def column_sums(rows: Any) -> Any:
    """See `reference.column_sums`."""
    if not FAMILY.serves(rows.dtype) or 0 in rows.shape:
        return rows.sum(axis=0)
    xp, (count, columns) = namespace_of(rows), rows.shape
    rows = xp.ascontiguousarray(rows)
    kind = rows.dtype
    wide = columns % 4 == 0 and address(rows) % (4 * kind.itemsize) == 0
    strips = -(-columns // (128 if wide else 32))
    chunks = max(min(-(-count // _LEAST_ROWS), _WANTED_BLOCKS // strips), 1)
    chunk = -(-count // chunks)
    chunks = -(-count // chunk)
    partial = xp.empty((chunks, columns), "float64" if kind == "float64" else "float32")
    out = xp.empty(columns, kind)
    sizes = (count, columns, chunk, strips, chunks)
    name = "strips_of_four" if wide else "strips_of_one"
    FAMILY.launch(name, kind, count, rows, partial, *sizes, blocks=strips * chunks)
    FAMILY.launch(
        "add_partial", kind, columns, partial, out, chunks, columns, blocks=-(-columns // 32)
    )
    return out
