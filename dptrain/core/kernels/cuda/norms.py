"""Normalisation over the rows or the columns of a matrix on the GPU: twins of `reference`'s.

Rows: a block of threads shares a row. Columns: blocks take a tile of 32 columns and a chunk of rows each and
leave partial sums, which are added up in one order, so that a result has the same bits in every run. Means
come first and squared deviations from them second: a variance as the difference of two large sums would be
wrong. Values of 16 bits come here as float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels.cuda.launch import BLOCK, REDUCTION, Family, row_block
from dptrain.core.kernels.reference import normalise, relu_grad

#: Columns of a tile, and so many threads of a block share each of them.
_TILE = 32
#: Blocks that keep a GPU busy; rows of a chunk at least.
_WANTED_BLOCKS, _LEAST_ROWS = 512, 64

_SOURCE = (
    REDUCTION
    + r"""
extern "C" __global__ void layer_norm(
    const T* x, const T* weight, const T* bias, T* out, T* mean, T* rstd,
    long long rows, long long columns, A eps) {
    __shared__ A cache[256];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* line = x + r * columns;
        A middle = 0, var = 0;
        for (long long k = threadIdx.x; k < columns; k += blockDim.x) middle += line[k];
        REDUCE(middle, plus)
        middle /= columns;
        for (long long k = threadIdx.x; k < columns; k += blockDim.x)
            var += (line[k] - middle) * (line[k] - middle);
        REDUCE(var, plus)
        A scale = 1 / sqrt(var / columns + eps);
        for (long long k = threadIdx.x; k < columns; k += blockDim.x) {
            A v = (line[k] - middle) * scale;
            if (weight) v *= weight[k];
            if (bias) v += bias[k];
            out[r * columns + k] = v;
        }
        if (threadIdx.x == 0) { mean[r] = middle; rstd[r] = scale; }
    }
}

extern "C" __global__ void layer_norm_grad(
    const T* grad, const T* x, const T* weight, const T* mean, const T* rstd, T* out,
    long long rows, long long columns) {
    __shared__ A cache[256];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const long long at = r * columns;
        const A middle = mean[r], scale = rstd[r];
        A sum = 0, product = 0;
        for (long long k = threadIdx.x; k < columns; k += blockDim.x) {
            A d = grad[at + k] * (weight ? weight[k] : A(1));
            sum += d;
            product += d * ((x[at + k] - middle) * scale);
        }
        REDUCE(sum, plus)
        REDUCE(product, plus)
        for (long long k = threadIdx.x; k < columns; k += blockDim.x) {
            A d = grad[at + k] * (weight ? weight[k] : A(1));
            A normal = (x[at + k] - middle) * scale;
            out[at + k] = (d - sum / columns - normal * (product / columns)) * scale;
        }
    }
}

// Adds up what the threads of a block have of a column; those of the first row of threads get it.
#define OVER_LANES(value)                                                       \
    cache[threadIdx.x] = value;                                                 \
    __syncthreads();                                                            \
    if (threadIdx.x < 32)                                                       \
        for (int lane = 1; lane < 8; lane++) value += cache[threadIdx.x + 32 * lane]; \
    __syncthreads();

// One block for a tile of 32 columns and a chunk of rows: sums of x - shift, or of its square.
extern "C" __global__ void column_sums(
    const T* x, const T* shift, T* partial, long long rows, long long columns, long long chunk,
    long long tiles, long long chunks, int squares) {
    __shared__ A cache[256];
    for (long long b = blockIdx.x; b < tiles * chunks; b += gridDim.x) {
        long long c = b % tiles * 32 + threadIdx.x % 32, part = b / tiles;
        long long last = (part + 1) * chunk < rows ? (part + 1) * chunk : rows;
        A total = 0;
        if (c < columns)
            for (long long r = part * chunk + threadIdx.x / 32; r < last; r += 8) {
                A v = x[r * columns + c] - (shift ? shift[c] : A(0));
                total += squares ? v * v : v;
            }
        OVER_LANES(total)
        if (threadIdx.x < 32 && c < columns) partial[part * columns + c] = total;
    }
}

// Likewise: sums of grad and of grad times the normalised x. The facts are the rows' or the columns'.
extern "C" __global__ void column_products(
    const T* grad, const T* x, const T* mean, const T* rstd, T* products, T* sums,
    long long rows, long long columns, long long chunk, long long tiles, long long chunks,
    int by_row) {
    __shared__ A cache[256];
    for (long long b = blockIdx.x; b < tiles * chunks; b += gridDim.x) {
        long long c = b % tiles * 32 + threadIdx.x % 32, part = b / tiles;
        long long last = (part + 1) * chunk < rows ? (part + 1) * chunk : rows;
        A product = 0, sum = 0;
        if (c < columns)
            for (long long r = part * chunk + threadIdx.x / 32; r < last; r += 8) {
                long long fact = by_row ? r : c;
                A g = grad[r * columns + c];
                sum += g;
                product += g * ((x[r * columns + c] - mean[fact]) * rstd[fact]);
            }
        OVER_LANES(product)
        OVER_LANES(sum)
        if (threadIdx.x < 32 && c < columns) {
            products[part * columns + c] = product;
            sums[part * columns + c] = sum;
        }
    }
}

extern "C" __global__ void scale_columns(
    const T* x, const T* mean, const T* factor, const T* bias, T* out, long long count, int columns) {
    EACH(i, count) {
        int c = i % columns;
        A v = (x[i] - mean[c]) * factor[c];
        out[i] = bias ? v + bias[c] : v;
    }
}

extern "C" __global__ void batch_norm_grad(
    const T* grad, const T* x, const T* mean, const T* rstd, const T* factor, const T* products,
    const T* sums, T* out, long long count, int columns, A rows) {
    EACH(i, count) {
        int c = i % columns;
        A normal = (x[i] - mean[c]) * rstd[c];
        out[i] = (grad[i] - sums[c] / rows - normal * (products[c] / rows)) * factor[c];
    }
}
"""
)

FAMILY = Family("norms", _SOURCE, ("float32", "float64"))


def _whole(array: Any) -> Any:
    return None if array is None else namespace_of(array).ascontiguousarray(array)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """See `reference.layer_norm`."""
    xp, (rows, columns) = namespace_of(x), x.shape
    out, mean, rstd = xp.empty(x.shape, x.dtype), xp.empty(rows, x.dtype), xp.empty(rows, x.dtype)
    arrays = (_whole(x), _whole(weight), _whole(bias), out, mean, rstd)
    block = row_block(columns)
    FAMILY.launch(
        "layer_norm", x.dtype, rows, *arrays, rows, columns, eps, block=block, blocks=rows
    )
    return out, mean, rstd


def layer_norm_grad(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """See `reference.layer_norm_grad`."""
    xp, (rows, columns) = namespace_of(x), x.shape
    grad, x, mean, rstd = (_whole(a) for a in (grad, x, mean, rstd))
    out = xp.empty(x.shape, x.dtype)
    arrays = (grad, x, _whole(weight), mean, rstd, out)
    block = row_block(columns)
    FAMILY.launch(
        "layer_norm_grad", x.dtype, rows, *arrays, rows, columns, block=block, blocks=rows
    )
    return out, *_products(grad, x, mean, rstd, by_row=True)


def batch_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """See `reference.batch_norm`."""
    x, rows = _whole(x), max(len(x), 1)
    mean = _sums(x, None) / rows
    var = _sums(x, mean, squares=True) / rows
    rstd = 1 / np.sqrt(var + x.dtype.type(eps))
    factor = rstd if weight is None else rstd * weight
    out = namespace_of(x).empty(x.shape, x.dtype)
    arrays = (x, mean, factor, _whole(bias), out)
    FAMILY.launch("scale_columns", x.dtype, out.size, *arrays, out.size, x.shape[1])
    return out, mean, var, rstd


def batch_norm_grad(
    grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, cut: Any = None
) -> tuple[Any, Any, Any]:
    """See `reference.batch_norm_grad`."""
    if cut is not None:
        result = namespace_of(x).empty(x.shape, x.dtype)
        normalise(x, cut, result)
        grad = relu_grad(grad, result)
    grad, x, mean, rstd = (_whole(a) for a in (grad, x, mean, rstd))
    products, sums = _products(grad, x, mean, rstd, by_row=False)
    factor = rstd if weight is None else rstd * weight
    out = namespace_of(x).empty(x.shape, x.dtype)
    arrays = (grad, x, mean, rstd, factor, products, sums, out)
    rows = max(len(x), 1)
    FAMILY.launch("batch_norm_grad", x.dtype, out.size, *arrays, out.size, x.shape[1], rows)
    return out, products, sums


def _division(rows: int, columns: int) -> tuple[int, int, int]:
    """Rows of a chunk, tiles of columns, chunks of rows: enough blocks, and none with little to do."""
    tiles = max(-(-columns // _TILE), 1)
    chunks = max(min(-(-rows // _LEAST_ROWS), _WANTED_BLOCKS // tiles), 1)
    chunk = max(-(-rows // chunks), 1)
    return chunk, tiles, max(-(-rows // chunk), 1)


def _sums(x: Any, shift: Any, squares: bool = False) -> Any:
    """(C,): sums over the rows of x - shift, or of its square."""
    rows, columns = x.shape
    chunk, tiles, chunks = _division(rows, columns)
    partial = namespace_of(x).empty((chunks, columns), x.dtype)
    sizes = (rows, columns, chunk, tiles, chunks, squares)
    threads = tiles * chunks * BLOCK
    FAMILY.launch("column_sums", x.dtype, threads, x, shift, partial, *sizes, blocks=tiles * chunks)
    return partial.sum(axis=0)


def _products(grad: Any, x: Any, mean: Any, rstd: Any, by_row: bool) -> tuple[Any, Any]:
    """(C,) each: sums over the rows of grad times the normalised x, and of grad."""
    rows, columns = x.shape
    chunk, tiles, chunks = _division(rows, columns)
    xp = namespace_of(x)
    products, sums = (xp.empty((chunks, columns), x.dtype) for _ in range(2))
    arrays, sizes = (grad, x, mean, rstd, products, sums), (rows, columns, chunk, tiles, chunks)
    threads, blocks = tiles * chunks * BLOCK, tiles * chunks
    FAMILY.launch("column_products", x.dtype, threads, *arrays, *sizes, by_row, blocks=blocks)
    return products.sum(axis=0), sums.sum(axis=0)
