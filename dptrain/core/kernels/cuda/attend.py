"""Attention on the GPU by products and a softmax, where cuDNN's fused graphs do not serve: twins of `reference`'s.

The products run in the type of the queries with sums in float32; scores and their gradients stay in the type of the
sums, and what is multiplied again (weights, slopes) is rounded once.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels.cuda.gemm import matmul, unrounded
from dptrain.core.kernels.cuda.launch import REDUCTION, Family, row_block

_SOURCE = (
    REDUCTION
    + r"""
// The softmax of scaled scores; row r of each `length` sees columns 0..r only, if causal.
extern "C" __global__ void attend(
    const A* scores, T* weights, long long rows, long long columns, long long length, A scale,
    int causal) {
    __shared__ A cache[32];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const A* line = scores + r * columns;
        T* out = weights + r * columns;
        const long long seen = causal && r % length + 1 < columns ? r % length + 1 : columns;
        A top = lowest(), total = 0;
        for (long long k = threadIdx.x; k < seen; k += blockDim.x) top = larger(top, line[k] * scale);
        REDUCE(top, larger)
        for (long long k = threadIdx.x; k < seen; k += blockDim.x) total += exp(line[k] * scale - top);
        REDUCE(total, plus)
        for (long long k = threadIdx.x; k < columns; k += blockDim.x)
            out[k] = T(k < seen ? exp(line[k] * scale - top) / total : A(0));
    }
}

// The gradient of the scores before they were scaled, from that of the weights.
extern "C" __global__ void attend_grad(
    const A* grad, const T* weights, T* slopes, long long rows, long long columns, A scale) {
    __shared__ A cache[32];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const A* line = grad + r * columns;
        const T* w = weights + r * columns;
        A inner = 0;
        for (long long k = threadIdx.x; k < columns; k += blockDim.x) inner += line[k] * A(w[k]);
        REDUCE(inner, plus)
        for (long long k = threadIdx.x; k < columns; k += blockDim.x)
            slopes[r * columns + k] = T((line[k] - inner) * A(w[k]) * scale);
    }
}
"""
)

FAMILY = Family("attend", _SOURCE)


def attention(q: Any, k: Any, v: Any, scale: float, causal: bool) -> tuple[Any, Any]:
    """See `reference.attention`."""
    scores = unrounded(q, k.swapaxes(-1, -2))
    weights = namespace_of(q).empty(scores.shape, q.dtype)
    length, columns = scores.shape[-2:]
    rows = scores.size // max(columns, 1)
    sizes = (rows, columns, length, scale, causal)
    block = row_block(columns, scores.dtype)
    FAMILY.launch("attend", q.dtype, rows, scores, weights, *sizes, block=block, blocks=rows)
    return matmul(weights, v), weights


def attention_grad(
    grad: Any, q: Any, k: Any, v: Any, out: Any, kept: Any, scale: float, causal: bool
) -> tuple[Any, Any, Any]:
    """See `reference.attention_grad`."""
    slopes = namespace_of(q).empty(kept.shape, q.dtype)
    columns = kept.shape[-1]
    rows = kept.size // max(columns, 1)
    arrays = unrounded(grad, v.swapaxes(-1, -2)), kept, slopes
    block = row_block(columns, arrays[0].dtype)
    FAMILY.launch(
        "attend_grad", q.dtype, rows, *arrays, rows, columns, scale, block=block, blocks=rows
    )
    turned, weights = slopes.swapaxes(-1, -2), kept.swapaxes(-1, -2)
    return matmul(slopes, k), matmul(turned, q), matmul(weights, grad)
