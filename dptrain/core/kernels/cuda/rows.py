"""Kernels in which a block of threads shares a row, and the error function: twins of `reference`'s."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels.cuda.launch import REDUCTION, Family, row_block

_SOURCE = (
    REDUCTION
    + r"""
extern "C" __global__ void cross_entropy(
    const T* logits, const long long* target, T* loss, T* p, long long rows, int classes) {
    __shared__ A cache[256];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* line = logits + r * classes;
        A top = lowest(), total = 0;
        for (int k = threadIdx.x; k < classes; k += blockDim.x) top = larger(top, A(line[k]));
        REDUCE(top, larger)
        for (int k = threadIdx.x; k < classes; k += blockDim.x) total += exp(A(line[k]) - top);
        REDUCE(total, plus)
        for (int k = threadIdx.x; k < classes; k += blockDim.x)
            p[r * classes + k] = T(exp(A(line[k]) - top) / total);
        if (threadIdx.x == 0) {
            long long t = target[r];  // not checked while a graph is captured
            bool known = 0 <= t && t < classes;
            loss[r] = T(known ? log(total) - (A(line[t]) - top) : A(lowest()) - A(lowest()));
        }
    }
}

extern "C" __global__ void erf_of(const T* x, T* out, long long count) {
    EACH(i, count) out[i] = T(erf(A(x[i])));
}
"""
)

FAMILY = Family("rows", _SOURCE)


def cross_entropy(logits: Any, target: Any) -> tuple[Any, Any]:
    """See `reference.cross_entropy`."""
    xp = namespace_of(logits)
    rows, classes = logits.shape
    loss, p = xp.empty(rows, logits.dtype), xp.empty(logits.shape, logits.dtype)
    FAMILY.launch(
        "cross_entropy",
        logits.dtype,
        rows,
        xp.ascontiguousarray(logits),
        xp.ascontiguousarray(target.astype(np.int64, copy=False)),
        loss,
        p,
        rows,
        classes,
        block=row_block(classes),
        blocks=rows,
    )
    return loss, p


def erf(x: Any) -> Any:
    """See `reference.erf`."""
    xp = namespace_of(x)
    out = xp.empty(x.shape, x.dtype)
    FAMILY.launch("erf_of", x.dtype, out.size, xp.ascontiguousarray(x), out, out.size)
    return out
