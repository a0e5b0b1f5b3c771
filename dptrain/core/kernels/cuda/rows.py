"""Softmax and its losses over the rows of a matrix on the GPU, and the error function: twins of `reference`'s.

A block of threads shares a row and reads it once for the maximum and the sum of the exponentials together.
Source: Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.half import computed_in
from dptrain.core.kernels.cuda.launch import PACKS, REDUCTION, Family, in_rows, row_block

_SOURCE = (
    PACKS
    + REDUCTION
    + r"""
// Elements before the first that a pack can begin with; rows need not begin evenly.
__device__ inline long long lead(const T* line, long long count) {
    const long long odd = (16 - (long long)((unsigned long long)line % 16)) % 16 / (int)sizeof(T);
    return odd < count ? odd : count;
}
__device__ inline bool in_step(const void* a, const void* b) {
    return ((unsigned long long)a ^ (unsigned long long)b) % 16 == 0;
}
// f(values, place of the first) for one element or a pack of them, over what the thread has of a line.
template <class One, class Many> __device__ inline void along(
    const T* line, long long count, bool packed, One one, Many many) {
    const long long head = packed ? lead(line, count) : count;
    const long long packs = (count - head) / PACK, rest = head + packs * PACK;
    for (long long k = threadIdx.x; k < head; k += blockDim.x) one(k);
    for (long long i = threadIdx.x; i < packs; i += blockDim.x) many(head + i * PACK);
    for (long long k = rest + threadIdx.x; k < count; k += blockDim.x) one(k);
}

// The largest of some numbers and the sum of exp(number - largest); -inf and 0 of none, NaN in the sum.
struct Online {
    A top, sum;
    template <int N> __device__ inline void take(const A* values) {
        A most = top;
        for (int j = 0; j < N; j++) most = values[j] > most ? values[j] : most;
        if (most == A(lowest())) {  // nothing to subtract
            for (int j = 0; j < N; j++) sum += values[j] != values[j] ? values[j] : A(0);
            return;
        }
        if (most > top) { sum *= exp(top - most); top = most; }
        for (int j = 0; j < N; j++) sum += exp(values[j] - most);
    }
};
__device__ inline Online of_row(const T* line, long long columns, A* cache) {
    Online mine = {A(lowest()), 0};
    along(line, columns, true,
        [&](long long k) { A v[1]; load<1>(line + k, v); mine.take<1>(v); },
        [&](long long k) { A v[PACK]; load<PACK>(line + k, v); mine.take<PACK>(v); });
    Online all = mine;
    REDUCE(all.top, larger)
    all.sum = mine.top == A(lowest()) ? mine.sum : mine.sum * exp(mine.top - all.top);
    REDUCE(all.sum, plus)
    return all;
}
// out = f(x) of each element of a line; f(x, y).
template <class F> __device__ inline void rewrite(
    const T* x, T* out, long long count, F f) {
    along(x, count, in_step(x, out),
        [&](long long k) { out[k] = T(f(A(x[k]), k)); },
        [&](long long k) {
            A v[PACK];
            load<PACK>(x + k, v);
            for (int j = 0; j < PACK; j++) v[j] = f(v[j], k + j);
            store<PACK>(out + k, v);
        });
}
template <class F> __device__ inline void rewrite(
    const T* x, const T* y, T* out, long long count, F f) {
    along(x, count, in_step(x, y) && in_step(x, out),
        [&](long long k) { out[k] = T(f(A(x[k]), A(y[k]))); },
        [&](long long k) {
            A v[PACK], w[PACK];
            load<PACK>(x + k, v);
            load<PACK>(y + k, w);
            for (int j = 0; j < PACK; j++) v[j] = f(v[j], w[j]);
            store<PACK>(out + k, v);
        });
}

extern "C" __global__ void softmax(const T* x, T* out, long long rows, long long columns) {
    __shared__ A cache[32];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* line = x + r * columns;
        const Online all = of_row(line, columns, cache);
        const A inverse = 1 / all.sum;
        rewrite(line, out + r * columns, columns,
            [=](A v, long long) { return exp(v - all.top) * inverse; });
    }
}

extern "C" __global__ void log_softmax(const T* x, T* out, long long rows, long long columns) {
    __shared__ A cache[32];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* line = x + r * columns;
        const Online all = of_row(line, columns, cache);
        const A less = log(all.sum);
        rewrite(line, out + r * columns, columns,
            [=](A v, long long) { return v - all.top - less; });
    }
}

extern "C" __global__ void softmax_grad(
    const T* grad, const T* kept, T* out, long long rows, long long columns) {
    __shared__ A cache[32];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T *g = grad + r * columns, *y = kept + r * columns;
        A sum = 0;
        along(g, columns, in_step(g, y),
            [&](long long k) { sum += A(g[k]) * A(y[k]); },
            [&](long long k) {
                A v[PACK], w[PACK];
                load<PACK>(g + k, v);
                load<PACK>(y + k, w);
                for (int j = 0; j < PACK; j++) sum += v[j] * w[j];
            });
        REDUCE(sum, plus)
        rewrite(g, y, out + r * columns, columns, [=](A v, A w) { return (v - sum) * w; });
    }
}

extern "C" __global__ void log_softmax_grad(
    const T* grad, const T* kept, T* out, long long rows, long long columns) {
    __shared__ A cache[32];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T *g = grad + r * columns, *y = kept + r * columns;
        A sum = 0;
        along(g, columns, true,
            [&](long long k) { sum += A(g[k]); },
            [&](long long k) {
                A v[PACK];
                load<PACK>(g + k, v);
                for (int j = 0; j < PACK; j++) sum += v[j];
            });
        REDUCE(sum, plus)
        rewrite(g, y, out + r * columns, columns, [=](A v, A w) { return v - exp(w) * sum; });
    }
}

// facts: for each row the largest logit, then for each row the sum of exp(logit - largest).
extern "C" __global__ void cross_entropy(
    const T* logits, const long long* target, A* loss, A* facts, long long rows, long long classes) {
    __shared__ A cache[32];
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const T* line = logits + r * classes;
        const Online all = of_row(line, classes, cache);
        if (threadIdx.x == 0) {
            const long long t = target[r];  // not checked while a graph is captured
            const bool known = 0 <= t && t < classes;
            loss[r] = known ? log(all.sum) - (A(line[t]) - all.top) : A(lowest()) - A(lowest());
            facts[r] = all.top;
            facts[rows + r] = all.sum;
        }
    }
}

extern "C" __global__ void cross_entropy_grad(
    const T* logits, const long long* target, const A* facts, const A* grad, T* out,
    long long rows, long long classes, A scale) {
    const A factor = *grad * scale;
    for (long long r = blockIdx.x; r < rows; r += gridDim.x) {
        const A top = facts[r], share = factor / facts[rows + r];
        const long long t = target[r];
        rewrite(logits + r * classes, out + r * classes, classes, [=](A v, long long k) {
            const A p = exp(v - top) * share;
            return k == t ? p - factor : p;
        });
    }
}

extern "C" __global__ void erf_of(const T* x, T* out, long long count) {
    EACH(i, count) out[i] = T(erf(A(x[i])));
}
"""
)

FAMILY = Family("rows", _SOURCE)


def _run(kernel: str, *arrays: Any) -> Any:
    """A kernel (arrays, out, rows, columns)."""
    first = arrays[-1]
    rows, columns = first.shape
    held = [in_rows(a) for a in arrays]
    out = namespace_of(first).empty(first.shape, first.dtype)
    block = row_block(columns, first.dtype)
    sizes = (rows, columns)
    FAMILY.launch(kernel, first.dtype, out.size, *held, out, *sizes, block=block, blocks=rows)
    return out


def softmax(x: Any) -> Any:
    """See `reference.softmax`."""
    return _run("softmax", x)


def log_softmax(x: Any) -> Any:
    """See `reference.log_softmax`."""
    return _run("log_softmax", x)


def softmax_grad(grad: Any, out: Any) -> Any:
    """See `reference.softmax_grad`."""
    return _run("softmax_grad", grad.astype(out.dtype, copy=False), out)


def log_softmax_grad(grad: Any, out: Any) -> Any:
    """See `reference.log_softmax_grad`."""
    return _run("log_softmax_grad", grad.astype(out.dtype, copy=False), out)


def cross_entropy(logits: Any, target: Any) -> tuple[Any, Any]:
    """See `reference.cross_entropy`; what is kept are two numbers a row. Losses of 16-bit logits are float32."""
    xp, (rows, classes) = namespace_of(logits), logits.shape
    kind = computed_in(logits.dtype)
    loss, facts = xp.empty(rows, kind), xp.empty((2, rows), kind)
    FAMILY.launch(
        "cross_entropy",
        logits.dtype,
        rows,
        in_rows(logits),
        in_rows(target.astype(np.int64, copy=False)),
        loss,
        facts,
        rows,
        classes,
        block=row_block(classes, logits.dtype),
        blocks=rows,
    )
    return loss, facts


def cross_entropy_grad(grad: Any, logits: Any, kept: Any, target: Any, scale: float) -> Any:
    """See `reference.cross_entropy_grad`."""
    xp, (rows, classes) = namespace_of(logits), logits.shape
    out = xp.empty(logits.shape, logits.dtype)
    FAMILY.launch(
        "cross_entropy_grad",
        logits.dtype,
        out.size,
        in_rows(logits),
        in_rows(target.astype(np.int64, copy=False)),
        kept,
        grad.astype(kept.dtype, copy=False),
        out,
        rows,
        classes,
        scale,
        block=row_block(classes, logits.dtype),
        blocks=rows,
    )
    return out


def erf(x: Any) -> Any:
    """See `reference.erf`."""
    xp = namespace_of(x)
    out = xp.empty(x.shape, x.dtype)
    FAMILY.launch("erf_of", x.dtype, out.size, in_rows(x), out, out.size)
    return out
