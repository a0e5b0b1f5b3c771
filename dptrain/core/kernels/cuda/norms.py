"""Normalisation over the rows of a matrix on the GPU: twins of `reference`'s layer and RMS norm.

A block of threads shares a row. Elements may be of 16 bits; weights, statistics and their gradients are of the
type that is computed in.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.half import computed_in
from dptrain.core.kernels.cuda.column_norms import column_products, vector
from dptrain.core.kernels.cuda.launch import PACKS, REDUCTION, Family, in_rows, row_block

_SOURCE = (
    PACKS
    + REDUCTION
    + r"""
template <int N> __device__ inline void layer_norm_of(
    const T* x, const A* weight, const A* bias, T* out, A* mean, A* rstd,
    long long rows, long long columns, A eps, A* cache) {
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* line = x + r * columns;
        A middle = 0, var = 0, v[N], w[N], b[N];
        if (mean) {
            for (long long k = threadIdx.x * N; k < columns; k += blockDim.x * N) {
                load<N>(line + k, v);
                for (int j = 0; j < N; j++) middle += v[j];
            }
            REDUCE(middle, plus)
            middle /= columns;
        }
        for (long long k = threadIdx.x * N; k < columns; k += blockDim.x * N) {
            load<N>(line + k, v);
            for (int j = 0; j < N; j++) var += (v[j] - middle) * (v[j] - middle);
        }
        REDUCE(var, plus)
        const A scale = 1 / sqrt(var / columns + eps);
        for (long long k = threadIdx.x * N; k < columns; k += blockDim.x * N) {
            load<N>(line + k, v);
            load_wide<N>(weight, k, 1, w);
            load_wide<N>(bias, k, 0, b);
            for (int j = 0; j < N; j++) v[j] = (v[j] - middle) * scale * w[j] + b[j];
            store<N>(out + r * columns + k, v);
        }
        if (threadIdx.x == 0) {
            if (mean) mean[r] = middle;
            rstd[r] = scale;
        }
    }
}
// Without a mean: by the root of the mean square alone.
extern "C" __global__ void layer_norm(
    const T* x, const A* weight, const A* bias, T* out, A* mean, A* rstd,
    long long rows, long long columns, A eps) {
    __shared__ A cache[32];
    if (columns % PACK == 0 && even(x) && even(weight) && even(bias) && even(out))
        layer_norm_of<PACK>(x, weight, bias, out, mean, rstd, rows, columns, eps, cache);
    else layer_norm_of<1>(x, weight, bias, out, mean, rstd, rows, columns, eps, cache);
}

template <int N> __device__ inline void layer_norm_grad_of(
    const T* grad, const T* x, const A* weight, const A* mean, const A* rstd, T* out,
    long long rows, long long columns, A* cache) {
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const long long at = r * columns;
        const A middle = mean ? mean[r] : A(0), scale = rstd[r];
        A sum = 0, product = 0, g[N], v[N], w[N];
        for (long long k = threadIdx.x * N; k < columns; k += blockDim.x * N) {
            load<N>(grad + at + k, g);
            load<N>(x + at + k, v);
            load_wide<N>(weight, k, 1, w);
            for (int j = 0; j < N; j++) {
                const A d = g[j] * w[j];
                sum += d;
                product += d * ((v[j] - middle) * scale);
            }
        }
        REDUCE(sum, plus)
        REDUCE(product, plus)
        sum = mean ? sum / columns : A(0);
        product /= columns;
        for (long long k = threadIdx.x * N; k < columns; k += blockDim.x * N) {
            load<N>(grad + at + k, g);
            load<N>(x + at + k, v);
            load_wide<N>(weight, k, 1, w);
            for (int j = 0; j < N; j++)
                v[j] = (g[j] * w[j] - sum - (v[j] - middle) * scale * product) * scale;
            store<N>(out + at + k, v);
        }
    }
}
extern "C" __global__ void layer_norm_grad(
    const T* grad, const T* x, const A* weight, const A* mean, const A* rstd, T* out,
    long long rows, long long columns) {
    __shared__ A cache[32];
    if (columns % PACK == 0 && even(grad) && even(x) && even(weight) && even(out))
        layer_norm_grad_of<PACK>(grad, x, weight, mean, rstd, out, rows, columns, cache);
    else layer_norm_grad_of<1>(grad, x, weight, mean, rstd, out, rows, columns, cache);
}
"""
)

FAMILY = Family("norms", _SOURCE)


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """See `reference.layer_norm`; mean and 1 / std of 16-bit rows are float32."""
    return _layer_norm(x, weight, bias, eps, namespace_of(x).empty(len(x), computed_in(x.dtype)))


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float, mean: Any) -> tuple[Any, Any, Any]:
    xp, (rows, columns) = namespace_of(x), x.shape
    out, rstd = xp.empty(x.shape, x.dtype), xp.empty(rows, computed_in(x.dtype))
    arrays = (in_rows(x), vector(weight, x.dtype), vector(bias, x.dtype), out, mean, rstd)
    block = row_block(columns, x.dtype)
    FAMILY.launch(
        "layer_norm", x.dtype, rows, *arrays, rows, columns, eps, block=block, blocks=rows
    )
    return out, mean, rstd


def layer_norm_grad(grad: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """See `reference.layer_norm_grad`; the gradients of weight and bias are of the type of `rstd`."""
    xp, (rows, columns) = namespace_of(x), x.shape
    grad, x = in_rows(grad.astype(x.dtype, copy=False)), in_rows(x)
    out = xp.empty(x.shape, x.dtype)
    arrays = (grad, x, vector(weight, x.dtype), mean, rstd, out)
    block = row_block(columns, x.dtype)
    FAMILY.launch(
        "layer_norm_grad", x.dtype, rows, *arrays, rows, columns, block=block, blocks=rows
    )
    return out, *column_products(grad, x, mean, rstd, by_row=True)


def rms_norm(x: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """See `reference.rms_norm`."""
    out, _, rstd = _layer_norm(x, weight, None, eps, None)
    return out, rstd


def rms_norm_grad(grad: Any, x: Any, weight: Any, rstd: Any) -> tuple[Any, Any]:
    """See `reference.rms_norm_grad`."""
    return layer_norm_grad(grad, x, weight, None, rstd)[:2]
