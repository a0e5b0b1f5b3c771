"""Passes element by element on the GPU: ReLU, sums, products, conversions, dropout. Several elements a thread.

Arrays that lie alike in memory, in whichever order and without gaps, are read as they lie: images with the
channels last among them, over which CuPy's own functions would jump. 16-bit types are computed in float32
and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.half import computed_in
from dptrain.core.kernels import reference_pointwise as defined
from dptrain.core.kernels.cuda.launch import (
    PACKS,
    Family,
    empty_beside,
    in_rows,
    pack_threads,
)
from dptrain.core.kernels.dense import alike, dense

#: Over the packs of one array, of two: `f` of one element each, or of the elements and their place.
OVER_PACKS = (
    PACKS
    + r"""
template <class F> __device__ inline void over(const T* x, T* out, long long count, F f) {
    const long long me = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long step = (long long)gridDim.x * blockDim.x;
    const long long packs = even(x) && even(out) ? count / PACK : 0;
    for (long long i = me; i < packs; i += step) {
        A a[PACK];
        load<PACK>(x + i * PACK, a);
        for (int j = 0; j < PACK; j++) a[j] = f(a[j]);
        store<PACK>(out + i * PACK, a);
    }
    for (long long i = packs * PACK + me; i < count; i += step) out[i] = T(f(A(x[i])));
}
template <class F> __device__ inline void over(
    const T* x, const T* y, T* out, long long count, F f) {
    const long long me = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long step = (long long)gridDim.x * blockDim.x;
    const long long packs = even(x) && even(y) && even(out) ? count / PACK : 0;
    for (long long i = me; i < packs; i += step) {
        A a[PACK], b[PACK];
        load<PACK>(x + i * PACK, a);
        load<PACK>(y + i * PACK, b);
        for (int j = 0; j < PACK; j++) a[j] = f(a[j], b[j]);
        store<PACK>(out + i * PACK, a);
    }
    for (long long i = packs * PACK + me; i < count; i += step) out[i] = T(f(A(x[i]), A(y[i])));
}
"""
)

_SOURCE = (
    OVER_PACKS
    + r"""
extern "C" __global__ void relu(const T* x, T* out, long long count) {
    over(x, out, count, [](A a) { return a <= 0 ? A(0) : a; });  // what is no number stays
}
extern "C" __global__ void assign(const T* x, T* out, long long count) {
    over(x, out, count, [](A a) { return a; });
}
extern "C" __global__ void relu_grad(const T* grad, const T* kept, T* out, long long count) {
    over(grad, kept, out, count, [](A g, A y) { return y <= 0 ? A(0) : g; });
}
extern "C" __global__ void add(const T* x, const T* y, T* out, long long count, A alpha) {
    if (alpha == 1) over(x, y, out, count, [](A a, A b) { return a + b; });
    else over(x, y, out, count, [=](A a, A b) { return a + alpha * b; });
}
// The second operand is of the narrower type; what is computed in is the type of the others.
extern "C" __global__ void add_narrow(const A* x, const T* y, A* out, long long count, A alpha) {
    const long long me = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long step = (long long)gridDim.x * blockDim.x;
    const long long packs = even(x) && even(y) && even(out) ? count / PACK : 0;
    for (long long i = me; i < packs; i += step) {
        Words all;
        A b[PACK];
        all.wide = *(const Wide*)(x + i * PACK);
        load<PACK>(y + i * PACK, b);
        for (int j = 0; j < PACK; j++) all.wide.at[j] += alpha * b[j];
        for (int j = 0; j < (int)sizeof(Wide) / 16; j++)
            put((char*)(out + i * PACK) + 16 * j, all.word + 4 * j);
    }
    for (long long i = packs * PACK + me; i < count; i += step) out[i] = x[i] + alpha * A(y[i]);
}
extern "C" __global__ void multiply(const T* x, const T* y, T* out, long long count) {
    over(x, y, out, count, [](A a, A b) { return a * b; });
}

// Between T and what it is computed in.
extern "C" __global__ void widen(const T* x, A* out, long long count) {
    const long long me = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long step = (long long)gridDim.x * blockDim.x;
    const long long packs = even(x) && even(out) ? count / PACK : 0;
    for (long long i = me; i < packs; i += step) {
        Words all;
        load<PACK>(x + i * PACK, all.wide.at);
        for (int j = 0; j < (int)sizeof(Wide) / 16; j++)
            put((char*)(out + i * PACK) + 16 * j, all.word + 4 * j);
    }
    for (long long i = packs * PACK + me; i < count; i += step) out[i] = A(x[i]);
}
extern "C" __global__ void narrow(const A* x, T* out, long long count) {
    const long long me = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long step = (long long)gridDim.x * blockDim.x;
    const long long packs = even(x) && even(out) ? count / PACK : 0;
    for (long long i = me; i < packs; i += step) {
        const Wide wide = *(const Wide*)(x + i * PACK);
        store<PACK>(out + i * PACK, wide.at);
    }
    for (long long i = packs * PACK + me; i < count; i += step) out[i] = T(x[i]);
}

// Keeps an element where the number drawn for it is not below `p`, and notes it.
extern "C" __global__ void dropout(
    const T* x, const float* draws, unsigned char* kept, T* out, long long count, A p, A scale) {
    EACH(i, count) {
        bool keep = A(draws[i]) >= p;
        kept[i] = keep;
        out[i] = T(A(x[i]) * (keep ? scale : A(0)));
    }
}
extern "C" __global__ void keep(
    const T* x, const unsigned char* kept, T* out, long long count, A scale) {
    EACH(i, count) out[i] = T(A(x[i]) * (kept[i] ? scale : A(0)));
}
"""
)

FAMILY = Family("pointwise", _SOURCE)


def same_order(x: Any, beside: Any) -> Any:
    """`x`, or a copy of it that lies in memory as `beside` does."""
    if alike(x, beside):
        return x
    copy = empty_beside(beside, x.dtype)
    copy[...] = x
    return copy


def whole(x: Any) -> Any:
    """`x`, or a copy without gaps."""
    return x if dense(x) else in_rows(x)


def mapped(family: Family, kernel: str, x: Any, *more: Any) -> Any:
    """A kernel (x, out, count, *more) over all elements."""
    x = whole(x)
    out = empty_beside(x)
    family.launch(kernel, x.dtype, pack_threads(x.size, x.dtype), x, out, x.size, *more)
    return out


def paired(family: Family, kernel: str, x: Any, y: Any, *more: Any) -> Any:
    """A kernel (x, y, out, count, *more) over all elements; the result lies as `y` does."""
    y = whole(y)
    x = same_order(x, y)
    out = empty_beside(y)
    family.launch(kernel, y.dtype, pack_threads(y.size, y.dtype), x, y, out, y.size, *more)
    return out


def relu(x: Any) -> Any:
    """See `reference.relu`."""
    return mapped(FAMILY, "relu", x) if FAMILY.serves(x.dtype) else np.maximum(x, 0)


def relu_grad(grad: Any, out: Any) -> Any:
    """See `reference.relu_grad`."""
    return paired(FAMILY, "relu_grad", grad, out)


def _serves(x: Any, y: Any) -> bool:
    return x.dtype == y.dtype and FAMILY.serves(x.dtype) and x.shape == y.shape


def add(x: Any, y: Any, alpha: float = 1) -> Any:
    """See `reference.add`."""
    if not _serves(x, y):
        return _add_mixed(x, y, alpha)
    return paired(FAMILY, "add", x, y, alpha)


def _add_mixed(x: Any, y: Any, alpha: float) -> Any:
    if x.dtype == y.dtype or computed_in(x.dtype) != computed_in(y.dtype):
        return defined.add(x, y, alpha)
    if alpha == 1 and y.dtype == np.float32:
        x, y = y, x
    in_order = x.shape == y.shape and x.flags.c_contiguous and y.flags.c_contiguous
    if x.dtype != np.float32 or not in_order:
        kind = np.dtype(np.float32)
        x, y = (a if a.dtype == kind else convert(a, kind) for a in (x, y))
        return add(x, y, alpha)
    out = empty_beside(x)
    threads = pack_threads(x.size, y.dtype)
    FAMILY.launch("add_narrow", y.dtype, threads, x, y, out, x.size, alpha)
    return out


def multiply(x: Any, y: Any) -> Any:
    """See `reference.multiply`."""
    return paired(FAMILY, "multiply", x, y) if _serves(x, y) else x * y


def assign(out: Any, x: Any) -> None:
    """See `reference.assign`."""
    if _serves(x, out) and alike(x, out):
        FAMILY.launch("assign", x.dtype, pack_threads(x.size, x.dtype), x, out, x.size)
    else:
        out[...] = x


def convert(x: Any, kind: np.dtype[Any], out: Any = None) -> Any:
    """See `reference.convert`."""
    narrow, wide = (x.dtype, kind) if x.dtype.itemsize < kind.itemsize else (kind, x.dtype)
    if narrow.itemsize != 2 or not FAMILY.serves(narrow) or wide != np.float32:
        return defined.convert(x, kind, out)
    if out is None or not dense(out):
        x = whole(x)
        made = empty_beside(x, kind)
    else:
        x, made = same_order(x, out), out
    kernel = "widen" if x.dtype == narrow else "narrow"
    FAMILY.launch(kernel, narrow, pack_threads(x.size, narrow), x, made, x.size)
    if out is not None and made is not out:
        out[...] = made
        return out
    return made


def dropout(x: Any, draws: Any, p: float) -> tuple[Any, Any]:
    """See `reference.dropout`."""
    xp, x = namespace_of(x), in_rows(x)
    kept, out = xp.empty(x.shape, np.uint8), xp.empty(x.shape, x.dtype)
    bounds = float(np.float32(p)), 1 / (1 - p)  # the numbers are float32, and so is what they meet
    FAMILY.launch("dropout", x.dtype, x.size, x, draws, kept, out, x.size, *bounds)
    return out, kept


def keep(x: Any, kept: Any, scale: float) -> Any:
    """See `reference.keep`."""
    xp, x = namespace_of(x), in_rows(x)
    out = xp.empty(x.shape, x.dtype)
    FAMILY.launch("keep", x.dtype, x.size, x, kept, out, x.size, scale)
    return out
