"""The window kernels on the GPU: twins of `reference`'s, one thread for each element of the result.

The transposes (`col2im`, `max_pool_scatter`) gather instead of scattering: each thread adds up, tap by
tap, what the windows over its place hold. That needs no atomics, so that the result has the same bits
in every run, and those of the NumPy twin.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels.cuda.launch import Family
from dptrain.core.kernels.reference import Geometry, relu

_GEOMETRY = """int h, int w, int c, int out_h, int out_w,
    int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw"""

_SOURCE = r"""
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

extern "C" __global__ void max_pool(const T* x, T* best, int* where, long long count, GEOMETRY) {
    EACH(i, count) {
        Place p = place_of(i, out_h, out_w, c);
        A top = lowest();
        int at = -1;
        for (int a = 0; a < kh; a++) {
            int y = p.y * sh - ph + a * dh;
            if (y < 0 || y >= h) continue;
            for (int b = 0; b < kw; b++) {
                int z = p.z * sw - pw + b * dw;
                if (z < 0 || z >= w) continue;
                A v = A(x[((p.b * h + y) * w + z) * c + p.k]);
                if (v > top || v != v || at < 0) { top = v; at = a * kw + b; }
            }
        }
        best[i] = T(top);
        where[i] = at;
    }
}

extern "C" __global__ void max_pool_scatter(
    const T* grad, const int* where, T* out, long long count, GEOMETRY) {
    EACH(i, count) {
        Place p = place_of(i, h, w, c);
        A sum = 0;
        for (int a = 0; a < kh; a++) {
            int oh = window_over(p.y, ph, a * dh, sh, out_h);
            if (oh < 0) continue;
            for (int b = 0; b < kw; b++) {
                int ow = window_over(p.z, pw, b * dw, sw, out_w);
                if (ow < 0) continue;
                I from = ((p.b * out_h + oh) * out_w + ow) * c + p.k;
                if (where[from] == a * kw + b) sum += A(grad[from]);
            }
        }
        out[i] = T(sum);
    }
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

FAMILY = Family("images", _SOURCE.replace("GEOMETRY", _GEOMETRY))


def _run(
    kernel: str, out: Any, arrays: tuple[Any, ...], image: Any, window: Any, geometry: Geometry
) -> None:
    count = out.size
    FAMILY.launch(kernel, arrays[0].dtype, count, *arrays, count, *image, *window, *geometry)


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
    _run("max_pool", best, arrays, (h, w, c), (out_h, out_w), geometry)
    if rectified:
        where[best <= 0] = -1
        best = relu(best)
    return best, where


def max_pool_scatter(
    grad: Any, where: Any, shape: tuple[int, int, int, int], geometry: Geometry
) -> Any:
    """See `reference.max_pool_scatter`."""
    xp = namespace_of(grad)
    out = xp.empty(shape, grad.dtype)
    arrays = (xp.ascontiguousarray(grad), xp.ascontiguousarray(where), out)
    _run("max_pool_scatter", out, arrays, shape[1:], grad.shape[1:3], geometry)
    return out


def max_pool_gather(x: Any, where: Any, geometry: Geometry) -> Any:
    """See `reference.max_pool_gather`."""
    xp = namespace_of(x)
    out = xp.empty(where.shape, x.dtype)
    arrays = (xp.ascontiguousarray(x), xp.ascontiguousarray(where), out)
    _run("max_pool_gather", out, arrays, x.shape[1:], where.shape[1:3], geometry)
    return out
