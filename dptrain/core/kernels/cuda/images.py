"""The window kernels on the GPU: twins of `reference`'s, one thread for each element of the result.

The transposes (`col2im`, `max_pool_scatter`) gather instead of scattering: each thread adds up, tap by
tap, what the windows over its place hold. That needs no atomics, so that the result has the same bits
in every run, and those of the NumPy twin.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.half import computed_in
from dptrain.core.kernels.cuda.launch import PACKS, Family, pack_size, pack_threads
from dptrain.core.kernels.reference import Geometry

_GEOMETRY = """int h, int w, int c, int out_h, int out_w,
    int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw"""

_GIVEN = "h, w, c, out_h, out_w, kh, kw, sh, sw, ph, pw, dh, dw"

_SOURCE = (
    PACKS
    + r"""
struct alignas(16) Four { int at[4]; };
// i = ((b * rows + y) * columns + z) * depth + k, taken apart.
struct Place { I b; int y, z, k; };
__device__ Place place_of(I i, int rows, int columns, int depth) {
    Place p;
    p.k = i % depth; i /= depth;
    p.z = i % columns; i /= columns;
    p.y = i % rows;
    p.b = i / rows;
    return p;
}
// The window along one dimension whose tap `at` (dilated) meets position y, or -1.
__device__ int window_over(int y, int pad, int at, int step, int count) {
    int start = y + pad - at;
    if (start < 0 || start % step) return -1;
    return start / step < count ? start / step : -1;
}

extern "C" __global__ void im2col(const T* x, T* out, long long count, GEOMETRY) {
    EACH(i, count) {
        Place row = place_of(i / (kh * kw * c), out_h, out_w, 1);
        int rest = i % (kh * kw * c), k = rest % c, tap = rest / c;
        // Of depth 1: the row's number is ((b * out_h + oh) * out_w + ow).
        int y = row.y * sh - ph + tap / kw * dh, z = row.z * sw - pw + tap % kw * dw;
        bool inside = 0 <= y && y < h && 0 <= z && z < w;
        out[i] = inside ? x[((row.b * h + y) * w + z) * c + k] : T(A(0));
    }
}

extern "C" __global__ void col2im(const T* columns, T* out, long long count, GEOMETRY) {
    EACH(i, count) {
        Place p = place_of(i, h, w, c);
        A sum = 0;
        for (int a = 0; a < kh; a++) {
            int oh = window_over(p.y, ph, a * dh, sh, out_h);
            if (oh < 0) continue;
            for (int b = 0; b < kw; b++) {
                int ow = window_over(p.z, pw, b * dw, sw, out_w);
                if (ow < 0) continue;
                I row = (p.b * out_h + oh) * out_w + ow;
                sum += A(columns[(row * kh * kw + a * kw + b) * c + p.k]);
            }
        }
        out[i] = T(sum);
    }
}

template <int N> __device__ inline void load_words(const int* from, int* values) {
    if constexpr (N % 4) for (int j = 0; j < N; j++) values[j] = from[j];
    else for (int j = 0; j < N; j += 4) {
        const Four four = *(const Four*)(from + j);
        for (int k = 0; k < 4; k++) values[j + k] = four.at[k];
    }
}
template <int N> __device__ inline void store_words(int* to, const int* values) {
    if constexpr (N % 4) for (int j = 0; j < N; j++) to[j] = values[j];
    else for (int j = 0; j < N; j += 4) put(to + j, (const unsigned int*)(values + j));
}

template <int N> __device__ inline void max_pool_of(
    const T* x, T* best, int* where, long long count, GEOMETRY, int cut) {
    const int depth = c / N;
    EACH(i, count / N) {
        const Place p = place_of(i, out_h, out_w, depth);
        A top[N], v[N];
        int at[N];
        for (int j = 0; j < N; j++) { top[j] = lowest(); at[j] = -1; }
        for (int a = 0; a < kh; a++) {
            const int y = p.y * sh - ph + a * dh;
            if (y < 0 || y >= h) continue;
            for (int b = 0; b < kw; b++) {
                const int z = p.z * sw - pw + b * dw;
                if (z < 0 || z >= w) continue;
                load<N>(x + (((p.b * h + y) * w + z) * depth + p.k) * N, v);
                for (int j = 0; j < N; j++)
                    if (v[j] > top[j] || v[j] != v[j] || at[j] < 0) { top[j] = v[j]; at[j] = a * kw + b; }
            }
        }
        if (cut) for (int j = 0; j < N; j++) if (top[j] <= 0) { top[j] = 0; at[j] = -1; }
        store<N>(best + i * N, top);
        store_words<N>(where + i * N, at);
    }
}
extern "C" __global__ void max_pool(
    const T* x, T* best, int* where, long long count, GEOMETRY, int cut) {
    if (c % PACK == 0 && even(x) && even(best) && even(where))
        max_pool_of<PACK>(x, best, where, count, GIVEN, cut);
    else max_pool_of<1>(x, best, where, count, GIVEN, cut);
}

// The windows along one dimension that reach over position y, from first to last.
struct Reach { int first, last; };
__device__ inline Reach reach_of(int y, int pad, int kernel, int gap, int step, int count) {
    const int start = y + pad - (kernel - 1) * gap, end = (y + pad) / step;
    return {start <= 0 ? 0 : (start + step - 1) / step, end < count ? end : count - 1};
}
// The tap by which one of them does, or -1.
__device__ inline int tap_at(int y, int pad, int window, int gap, int step) {
    const int from = y + pad - window * step;
    return gap == 1 ? from : from % gap ? -1 : from / gap;
}

// f(values, place of a window, number of its tap) for each window over an element, taps in rising order.
template <class F> __device__ inline void over_windows(const Place& p, GEOMETRY, F f) {
    const Reach rows = reach_of(p.y, ph, kh, dh, sh, out_h), columns = reach_of(p.z, pw, kw, dw, sw, out_w);
    for (int oh = rows.last; oh >= rows.first; oh--) {
        const int a = tap_at(p.y, ph, oh, dh, sh);
        if (a < 0) continue;
        for (int ow = columns.last; ow >= columns.first; ow--) {
            const int b = tap_at(p.z, pw, ow, dw, sw);
            if (b >= 0) f((p.b * out_h + oh) * out_w + ow, a * kw + b);
        }
    }
}
template <int N> __device__ inline void max_pool_scatter_of(
    const T* grad, const int* where, T* out, long long count, GEOMETRY) {
    const int depth = c / N;
    EACH(i, count / N) {
        const Place p = place_of(i, h, w, depth);
        A sum[N], g[N];
        int at[N];
        for (int j = 0; j < N; j++) sum[j] = 0;
        over_windows(p, GIVEN, [&](I window, int tap) {
            const I from = (window * depth + p.k) * N;
            load<N>(grad + from, g);
            load_words<N>(where + from, at);
            for (int j = 0; j < N; j++) if (at[j] == tap) sum[j] += g[j];
        });
        store<N>(out + i * N, sum);
    }
}
extern "C" __global__ void max_pool_scatter(
    const T* grad, const int* where, T* out, long long count, GEOMETRY) {
    if (c % PACK == 0 && even(grad) && even(where) && even(out))
        max_pool_scatter_of<PACK>(grad, where, out, count, GIVEN);
    else max_pool_scatter_of<1>(grad, where, out, count, GIVEN);
}

// Sums of windows, of dilation 1, and their transpose.
template <int N> __device__ inline void sum_pool_of(
    const T* x, A* out, long long count, GEOMETRY) {
    const int depth = c / N;
    EACH(i, count / N) {
        const Place p = place_of(i, out_h, out_w, depth);
        A sum[N], v[N];
        for (int j = 0; j < N; j++) sum[j] = 0;
        for (int a = 0; a < kh; a++) {
            const int y = p.y * sh - ph + a;
            if (y < 0 || y >= h) continue;
            for (int b = 0; b < kw; b++) {
                const int z = p.z * sw - pw + b;
                if (z < 0 || z >= w) continue;
                load<N>(x + (((p.b * h + y) * w + z) * depth + p.k) * N, v);
                for (int j = 0; j < N; j++) sum[j] += v[j];
            }
        }
        for (int j = 0; j < N; j++) out[i * N + j] = sum[j];
    }
}
extern "C" __global__ void sum_pool(const T* x, A* out, long long count, GEOMETRY) {
    if (c % PACK == 0 && even(x)) sum_pool_of<PACK>(x, out, count, GIVEN);
    else sum_pool_of<1>(x, out, count, GIVEN);
}
template <int N> __device__ inline void sum_pool_scatter_of(
    const T* grad, T* out, long long count, GEOMETRY) {
    const int depth = c / N;
    EACH(i, count / N) {
        const Place p = place_of(i, h, w, depth);
        A sum[N], g[N];
        for (int j = 0; j < N; j++) sum[j] = 0;
        over_windows(p, GIVEN, [&](I window, int tap) {
            load<N>(grad + (window * depth + p.k) * N, g);
            for (int j = 0; j < N; j++) sum[j] += g[j];
        });
        store<N>(out + i * N, sum);
    }
}
extern "C" __global__ void sum_pool_scatter(const T* grad, T* out, long long count, GEOMETRY) {
    if (c % PACK == 0 && even(grad) && even(out)) sum_pool_scatter_of<PACK>(grad, out, count, GIVEN);
    else sum_pool_scatter_of<1>(grad, out, count, GIVEN);
}

extern "C" __global__ void max_pool_gather(
    const T* x, const int* where, T* out, long long count, GEOMETRY) {
    EACH(i, count) {
        Place p = place_of(i, out_h, out_w, c);
        int tap = where[i];
        int y = p.y * sh - ph + tap / kw * dh, z = p.z * sw - pw + tap % kw * dw;
        bool inside = tap >= 0 && 0 <= y && y < h && 0 <= z && z < w;
        out[i] = inside ? x[((p.b * h + y) * w + z) * c + p.k] : T(A(0));
    }
}
"""
)

FAMILY = Family("images", _SOURCE.replace("GEOMETRY", _GEOMETRY).replace("GIVEN", _GIVEN))


def _run(
    kernel: str,
    out: Any,
    arrays: tuple[Any, ...],
    image: Any,
    window: Any,
    geometry: Geometry,
    *more: int,
    packed: bool = False,
) -> None:
    count, kind = out.size, arrays[0].dtype
    # Where packs do not fit, threads take several elements one by one.
    threads = pack_threads(count, kind) if packed and image[2] % pack_size(kind) == 0 else count
    FAMILY.launch(kernel, kind, threads, *arrays, count, *image, *window, *geometry, *more)


def im2col(x: Any, out_h: int, out_w: int, geometry: Geometry) -> Any:
    """See `reference.im2col`."""
    xp = namespace_of(x)
    n, h, w, c = x.shape
    out = xp.empty((n * out_h * out_w, geometry[0] * geometry[1] * c), x.dtype)
    _run("im2col", out, (xp.ascontiguousarray(x), out), (h, w, c), (out_h, out_w), geometry)
    return out


def col2im(
    columns: Any, shape: tuple[int, int, int, int], out_h: int, out_w: int, geometry: Geometry
) -> Any:
    """See `reference.col2im`."""
    xp = namespace_of(columns)
    out = xp.empty(shape, columns.dtype)
    _run("col2im", out, (xp.ascontiguousarray(columns), out), shape[1:], (out_h, out_w), geometry)
    return out


def max_pool(
    x: Any, out_h: int, out_w: int, geometry: Geometry, rectified: bool = False
) -> tuple[Any, Any]:
    """See `reference.max_pool`."""
    xp = namespace_of(x)
    n, h, w, c = x.shape
    best = xp.empty((n, out_h, out_w, c), x.dtype)
    where = xp.empty(best.shape, "int32")
    arrays = (xp.ascontiguousarray(x), best, where)
    sizes = (h, w, c), (out_h, out_w), geometry
    _run("max_pool", best, arrays, *sizes, rectified, packed=True)
    return best, where


def max_pool_scatter(
    grad: Any, where: Any, shape: tuple[int, int, int, int], geometry: Geometry
) -> Any:
    """See `reference.max_pool_scatter`."""
    xp = namespace_of(grad)
    out = xp.empty(shape, grad.dtype)
    arrays = (xp.ascontiguousarray(grad), xp.ascontiguousarray(where), out)
    _run("max_pool_scatter", out, arrays, shape[1:], grad.shape[1:3], geometry, packed=True)
    return out


def max_pool_gather(x: Any, where: Any, geometry: Geometry) -> Any:
    """See `reference.max_pool_gather`."""
    xp = namespace_of(x)
    out = xp.empty(where.shape, x.dtype)
    arrays = (xp.ascontiguousarray(x), xp.ascontiguousarray(where), out)
    _run("max_pool_gather", out, arrays, x.shape[1:], where.shape[1:3], geometry)
    return out


def sum_pool(x: Any, out_h: int, out_w: int, geometry: Geometry) -> Any:
    """See `reference.sum_pool`; sums of 16-bit values are float32."""
    xp = namespace_of(x)
    n, h, w, c = x.shape
    out = xp.empty((n, out_h, out_w, c), computed_in(x.dtype))
    sizes = (h, w, c), (out_h, out_w), geometry
    _run("sum_pool", out, (xp.ascontiguousarray(x), out), *sizes, packed=True)
    return out


def sum_pool_scatter(grad: Any, shape: tuple[int, int, int, int], geometry: Geometry) -> Any:
    """See `reference.sum_pool_scatter`."""
    xp = namespace_of(grad)
    out = xp.empty(shape, grad.dtype)
    sizes = shape[1:], grad.shape[1:3], geometry
    _run("sum_pool_scatter", out, (xp.ascontiguousarray(grad), out), *sizes, packed=True)
    return out
