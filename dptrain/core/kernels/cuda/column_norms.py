"""Normalisation over the columns of a matrix on the GPU: twins of `reference`'s batch norm, running averages.

A block takes a tile of columns and a chunk of rows and leaves what it found, which is combined in one order, so
that a result has the same bits in every run. Means and squared deviations are carried along together: a variance
as the difference of two large sums would be wrong. Elements may be of 16 bits; weights, statistics and their
gradients are of the type that is computed in.

Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dptrain.core.arrays import address, namespace_of
from dptrain.core.half import computed_in
from dptrain.core.kernels.cuda.launch import BLOCK, PACKS, Family, in_rows, pack_size
from dptrain.core.kernels.cuda.pointwise import relu_grad

#: Blocks that keep a GPU busy; rows of a chunk at least.
_WANTED_BLOCKS, _LEAST_ROWS = 1056, 64
#: Threads of a block that go over the columns, at most.
_MOST_ACROSS = 32

_SOURCE = (
    PACKS
    + r"""
// `across` threads of a block go over a tile of columns, N each, the others over the rows of a chunk.
#define TILING long long rows, long long columns, long long chunk, int tiles, int chunks, int across
struct Share { long long column, first, last; int lane, lanes; };
template <int N> __device__ inline Share share_of(long long b, TILING_) {
    Share s;
    const long long part = b / tiles;
    s.column = (b % tiles * across + threadIdx.x % across) * N;
    s.lane = threadIdx.x / across;
    s.lanes = blockDim.x / across;
    s.first = part * chunk;
    s.last = s.first + chunk < rows ? s.first + chunk : rows;
    return s;
}

template <int N> __device__ inline void load_each(const A* from, long long k, A other, A* values) {
    for (int j = 0; j < N; j++) values[j] = from ? from[k + j] : other;
}

// A count, a mean and the sum of squared deviations take in those of others.
__device__ inline void take_in(A& n, A& mean, A& squares, A more, A other, A their) {
    const A total = n + more;
    if (more == 0) return;
    const A d = other - mean, part = more / total;
    mean += d * part;
    squares += their + d * d * (n * part);
    n = total;
}

template <int N> __device__ inline void moments_of(
    const T* x, A* means, A* squares, TILING_, A* cache) {
    A *counts = cache, *middles = counts + 256, *sums = middles + 256;
    for (long long b = blockIdx.x; b < (long long)tiles * chunks; b += gridDim.x) {
        const Share s = share_of<N>(b, GIVEN);
        A n = 0, mean[N], square[N], v[N];
        for (int j = 0; j < N; j++) mean[j] = square[j] = 0;
        if (s.column < columns)
            for (long long r = s.first + s.lane; r < s.last; r += s.lanes) {
                load<N>(x + r * columns + s.column, v);
                n += 1;
                const A inverse = 1 / n;
                for (int j = 0; j < N; j++) {
                    const A d = v[j] - mean[j];
                    mean[j] += d * inverse;
                    square[j] += d * (v[j] - mean[j]);
                }
            }
        for (int j = 0; j < N; j++) {
            __syncthreads();
            counts[threadIdx.x] = n;
            middles[threadIdx.x] = mean[j];
            sums[threadIdx.x] = square[j];
            for (int half = s.lanes / 2; half > 0; half /= 2) {
                __syncthreads();
                if (s.lane < half) {
                    const int me = threadIdx.x, other = me + half * across;
                    take_in(counts[me], middles[me], sums[me], counts[other], middles[other], sums[other]);
                }
            }
            if (s.lane == 0 && s.column < columns) {
                const long long at = b / tiles * columns + s.column + j;
                means[at] = middles[threadIdx.x];
                squares[at] = sums[threadIdx.x];
            }
        }
    }
}
// Of each column in each chunk of rows: the mean and the sum of squared deviations from it.
extern "C" __global__ void moments(
    const T* x, A* means, A* squares, TILING, int packed) {
    __shared__ A cache[3 * 256];
    if (packed) moments_of<PACK>(x, means, squares, GIVEN, cache);
    else moments_of<1>(x, means, squares, GIVEN, cache);
}

// A block combines the chunks of 8 columns, 32 threads each.
extern "C" __global__ void statistics(
    const A* means, const A* squares, A* mean, A* var, A* rstd,
    long long rows, long long columns, long long chunk, int chunks, A eps) {
    __shared__ A counts[256];
    __shared__ A middles[256];
    __shared__ A sums[256];
    const int me = threadIdx.x;
    for (long long c = blockIdx.x * 8 + me % 8; c - me % 8 < columns; c += gridDim.x * 8) {
        A n = 0, middle = 0, square = 0;
        if (c < columns)
            for (int part = me / 8; part < chunks; part += 32) {
                const long long left = rows - part * chunk;
                take_in(n, middle, square, left < chunk ? left : chunk,
                        means[part * columns + c], squares[part * columns + c]);
            }
        __syncthreads();
        counts[me] = n;
        middles[me] = middle;
        sums[me] = square;
        for (int half = 16; half > 0; half /= 2) {
            __syncthreads();
            if (me / 8 < half) {
                const int other = me + half * 8;
                take_in(counts[me], middles[me], sums[me], counts[other], middles[other], sums[other]);
            }
        }
        if (me < 8 && c < columns) {
            const A variance = sums[me] / rows;
            mean[c] = middles[me];
            var[c] = variance;
            rstd[c] = 1 / sqrt(variance + eps);
        }
    }
}

template <int N, bool BY_ROW> __device__ inline void products_of(
    const T* grad, const T* x, const A* mean, const A* rstd, A* products, A* sums, TILING_,
    A* cache) {
    A *first = cache, *second = cache + 256;
    for (long long b = blockIdx.x; b < (long long)tiles * chunks; b += gridDim.x) {
        const Share s = share_of<N>(b, GIVEN);
        A product[N], sum[N], g[N], v[N], middle[N], scale[N];
        for (int j = 0; j < N; j++) product[j] = sum[j] = 0;
        if (s.column < columns) {
            if (!BY_ROW) { load_each<N>(mean, s.column, 0, middle); load_each<N>(rstd, s.column, 1, scale); }
            for (long long r = s.first + s.lane; r < s.last; r += s.lanes) {
                load<N>(grad + r * columns + s.column, g);
                load<N>(x + r * columns + s.column, v);
                if (BY_ROW) { middle[0] = mean ? mean[r] : A(0); scale[0] = rstd[r]; }
                for (int j = 0; j < N; j++) {
                    sum[j] += g[j];
                    product[j] += g[j] * ((v[j] - middle[BY_ROW ? 0 : j]) * scale[BY_ROW ? 0 : j]);
                }
            }
        }
        for (int j = 0; j < N; j++) {
            __syncthreads();
            first[threadIdx.x] = product[j];
            second[threadIdx.x] = sum[j];
            for (int half = s.lanes / 2; half > 0; half /= 2) {
                __syncthreads();
                if (s.lane < half) {
                    first[threadIdx.x] += first[threadIdx.x + half * across];
                    second[threadIdx.x] += second[threadIdx.x + half * across];
                }
            }
            if (s.lane == 0 && s.column < columns) {
                const long long at = b / tiles * columns + s.column + j;
                products[at] = first[threadIdx.x];
                sums[at] = second[threadIdx.x];
            }
        }
    }
}
// Of each column in each chunk of rows: the sums of grad times the normalised x, and of grad. The facts are
// the rows' or the columns'.
extern "C" __global__ void column_products(
    const T* grad, const T* x, const A* mean, const A* rstd, A* products, A* sums, TILING, int packed,
    int by_row) {
    __shared__ A cache[2 * 256];
    if (packed) {
        if (by_row) products_of<PACK, true>(grad, x, mean, rstd, products, sums, GIVEN, cache);
        else products_of<PACK, false>(grad, x, mean, rstd, products, sums, GIVEN, cache);
    } else {
        if (by_row) products_of<1, true>(grad, x, mean, rstd, products, sums, GIVEN, cache);
        else products_of<1, false>(grad, x, mean, rstd, products, sums, GIVEN, cache);
    }
}

// A block adds up the chunks of 8 columns, 32 threads each.
extern "C" __global__ void add_chunks(
    const A* products, const A* sums, A* product, A* sum, long long columns, int chunks) {
    __shared__ A first[256];
    __shared__ A second[256];
    const int me = threadIdx.x;
    for (long long c = blockIdx.x * 8 + me % 8; c - me % 8 < columns; c += gridDim.x * 8) {
        A a = 0, b = 0;
        if (c < columns)
            for (int part = me / 8; part < chunks; part += 32) {
                a += products[part * columns + c];
                b += sums[part * columns + c];
            }
        __syncthreads();
        first[me] = a;
        second[me] = b;
        for (int half = 16; half > 0; half /= 2) {
            __syncthreads();
            if (me / 8 < half) {
                first[me] += first[me + half * 8];
                second[me] += second[me + half * 8];
            }
        }
        if (me < 8 && c < columns) { product[c] = first[me]; sum[c] = second[me]; }
    }
}

template <int N> __device__ inline void scale_columns_of(
    const T* x, const A* mean, const A* rstd, const A* weight, const A* bias, const T* more, T* out,
    TILING_, int cut) {
    for (long long b = blockIdx.x; b < (long long)tiles * chunks; b += gridDim.x) {
        const Share s = share_of<N>(b, GIVEN);
        if (s.column >= columns) continue;
        A middle[N], factor[N], shift[N], v[N], w[N];
        load_each<N>(mean, s.column, 0, middle);
        load_each<N>(rstd, s.column, 1, factor);
        load_each<N>(weight, s.column, 1, w);
        load_each<N>(bias, s.column, 0, shift);
        for (int j = 0; j < N; j++) factor[j] *= w[j];
        for (long long r = s.first + s.lane; r < s.last; r += s.lanes) {
            const long long at = r * columns + s.column;
            load<N>(x + at, v);
            for (int j = 0; j < N; j++) v[j] = (v[j] - middle[j]) * factor[j] + shift[j];
            if (cut) for (int j = 0; j < N; j++) v[j] = v[j] < 0 ? A(0) : v[j];
            if (more) {
                load<N>(more + at, w);
                for (int j = 0; j < N; j++) v[j] += w[j];
            }
            store<N>(out + at, v);
        }
    }
}
extern "C" __global__ void scale_columns(
    const T* x, const A* mean, const A* rstd, const A* weight, const A* bias, const T* more, T* out,
    TILING, int packed, int cut) {
    if (packed) scale_columns_of<PACK>(x, mean, rstd, weight, bias, more, out, GIVEN, cut);
    else scale_columns_of<1>(x, mean, rstd, weight, bias, more, out, GIVEN, cut);
}

template <int N> __device__ inline void batch_norm_grad_of(
    const T* grad, const T* x, const A* mean, const A* rstd, const A* weight, const A* products,
    const A* sums, T* out, TILING_) {
    for (long long b = blockIdx.x; b < (long long)tiles * chunks; b += gridDim.x) {
        const Share s = share_of<N>(b, GIVEN);
        if (s.column >= columns) continue;
        A middle[N], factor[N], less[N], slope[N], g[N], v[N];
        load_each<N>(mean, s.column, 0, middle);
        load_each<N>(rstd, s.column, 1, factor);
        load_each<N>(products, s.column, 0, slope);
        load_each<N>(sums, s.column, 0, less);
        load_each<N>(weight, s.column, 1, v);
        for (int j = 0; j < N; j++) {
            slope[j] = factor[j] * (slope[j] / rows);
            less[j] /= rows;
            factor[j] *= v[j];
        }
        for (long long r = s.first + s.lane; r < s.last; r += s.lanes) {
            const long long at = r * columns + s.column;
            load<N>(grad + at, g);
            load<N>(x + at, v);
            for (int j = 0; j < N; j++)
                v[j] = (g[j] - less[j] - (v[j] - middle[j]) * slope[j]) * factor[j];
            store<N>(out + at, v);
        }
    }
}
extern "C" __global__ void batch_norm_grad(
    const T* grad, const T* x, const A* mean, const A* rstd, const A* weight, const A* products,
    const A* sums, T* out, TILING, int packed) {
    if (packed) batch_norm_grad_of<PACK>(grad, x, mean, rstd, weight, products, sums, out, GIVEN);
    else batch_norm_grad_of<1>(grad, x, mean, rstd, weight, products, sums, out, GIVEN);
}

// Running averages follow the statistics of a batch.
extern "C" __global__ void follow(
    T* running_mean, T* running_var, const A* mean, const A* var, long long count, A momentum,
    A correction) {
    EACH(i, count) {
        running_mean[i] = T((1 - momentum) * A(running_mean[i]) + momentum * mean[i]);
        running_var[i] = T((1 - momentum) * A(running_var[i]) + momentum * (var[i] * correction));
    }
}
"""
)

_TILING = "long long rows, long long columns, long long chunk, int tiles, int chunks, int across"
_GIVEN = "rows, columns, chunk, tiles, chunks, across"


def _spelled(source: str) -> str:
    """The source with its parameter lists written out, as `launch` reads them."""
    source = source.replace(f"#define TILING {_TILING}\n", "")
    return source.replace("TILING_", _TILING).replace("TILING", _TILING).replace("GIVEN", _GIVEN)


FAMILY = Family("column_norms", _spelled(_SOURCE))


class _Division(NamedTuple):
    """How column kernels divide a matrix: rows of a chunk, tiles of columns, chunks of rows, threads across, packs?"""

    chunk: int
    tiles: int
    chunks: int
    across: int
    packed: bool

    @property
    def blocks(self) -> int:
        return self.tiles * self.chunks


def _divided(kind: np.dtype[Any], *arrays: Any) -> _Division:
    """Enough blocks, and none with little to do. The arrays are those whose packs are read, (R, C) each."""
    rows, columns = arrays[0].shape
    width = pack_size(kind)
    packed = columns % width == 0 and not any(address(a) % 16 for a in arrays)
    threads = -(-columns // width) if packed else columns
    across = min(_MOST_ACROSS, 1 << max(threads - 1, 0).bit_length())
    tiles = max(-(-threads // across), 1)
    chunks = max(min(-(-rows // _LEAST_ROWS), _WANTED_BLOCKS // tiles), 1)
    chunk = max(-(-rows // chunks), 1)
    return _Division(chunk, tiles, max(-(-rows // chunk), 1), across, packed)


def vector(array: Any, kind: np.dtype[Any]) -> Any:
    """A weight, a bias or a statistic in the type that is computed in."""
    return None if array is None else in_rows(array.astype(computed_in(kind), copy=False))


def batch_statistics(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """See `reference.batch_statistics`; of 16-bit columns they are float32."""
    xp, x, (rows, columns) = namespace_of(x), in_rows(x), x.shape
    d, kind = _divided(x.dtype, x), computed_in(x.dtype)
    means, squares = (xp.empty((d.chunks, columns), kind) for _ in range(2))
    sizes, threads = (rows, columns, *d), d.blocks * BLOCK
    FAMILY.launch("moments", x.dtype, threads, x, means, squares, *sizes, blocks=d.blocks)
    mean, var, rstd = (xp.empty(columns, kind) for _ in range(3))
    parts = (means, squares, mean, var, rstd, rows, columns, d.chunk, d.chunks, eps)
    FAMILY.launch("statistics", x.dtype, columns, *parts, blocks=-(-columns // 8))
    return mean, var, rstd, batch_vectors(x, mean, rstd, weight, bias)


def batch_vectors(x: Any, mean: Any, rstd: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
    """See `reference.batch_vectors`."""
    return tuple(vector(v, x.dtype) for v in (mean, rstd, weight, bias))


def normalise(x: Any, vectors: Any, out: Any, cut: bool = False, more: Any = None) -> None:
    """See `reference.normalise`."""
    x = in_rows(x)
    d = _divided(x.dtype, x, out, *(() if more is None else (more,)))
    threads = d.blocks * BLOCK if x.size else 0
    arrays, sizes = (x, *vectors, more, out), (*x.shape, *d)
    FAMILY.launch("scale_columns", x.dtype, threads, *arrays, *sizes, cut, blocks=d.blocks)


def batch_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any, Any]:
    """See `reference.batch_norm`."""
    mean, var, rstd, vectors = batch_statistics(x, weight, bias, eps)
    out = namespace_of(x).empty(x.shape, x.dtype)
    normalise(x, vectors, out)
    return out, mean, var, rstd


def batch_norm_grad(
    grad: Any, x: Any, weight: Any, mean: Any, rstd: Any, cut: Any = None
) -> tuple[Any, Any, Any]:
    """See `reference.batch_norm_grad`."""
    if cut is not None:
        result = namespace_of(x).empty(x.shape, x.dtype)
        normalise(x, cut, result)
        grad = relu_grad(grad, result)
    grad, x = in_rows(grad.astype(x.dtype, copy=False)), in_rows(x)
    mean, rstd = vector(mean, x.dtype), vector(rstd, x.dtype)
    products, sums = column_products(grad, x, mean, rstd, by_row=False)
    out = namespace_of(x).empty(x.shape, x.dtype)
    d = _divided(x.dtype, x, grad)
    arrays = (grad, x, mean, rstd, vector(weight, x.dtype), products, sums, out)
    threads = d.blocks * BLOCK if x.size else 0
    FAMILY.launch("batch_norm_grad", x.dtype, threads, *arrays, *x.shape, *d, blocks=d.blocks)
    return out, products, sums


def column_products(grad: Any, x: Any, mean: Any, rstd: Any, by_row: bool) -> tuple[Any, Any]:
    """(C,) each: sums over the rows of grad times the normalised x, and of grad."""
    xp, columns = namespace_of(x), x.shape[1]
    d, kind = _divided(x.dtype, x, grad), computed_in(x.dtype)
    parts = [xp.empty((d.chunks, columns), kind) for _ in range(2)]
    arrays, sizes = (grad, x, mean, rstd, *parts), (*x.shape, *d, by_row)
    threads = d.blocks * BLOCK
    FAMILY.launch("column_products", x.dtype, threads, *arrays, *sizes, blocks=d.blocks)
    product, total = xp.empty(columns, kind), xp.empty(columns, kind)
    blocks = -(-columns // 8)
    FAMILY.launch(
        "add_chunks", x.dtype, columns, *parts, product, total, columns, d.chunks, blocks=blocks
    )
    return product, total


def follow(
    running_mean: Any, running_var: Any, mean: Any, var: Any, momentum: float, correction: float
) -> None:
    """See `reference.follow`."""
    kind = running_mean.dtype
    batch = (vector(v.reshape(-1), kind) for v in (mean, var))
    count, factors = running_mean.size, (momentum, correction)
    FAMILY.launch("follow", kind, count, running_mean, running_var, *batch, count, *factors)
