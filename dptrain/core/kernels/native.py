"""The compiled kernels, with the results of `reference`: those written here, and those of their families.

The ones of this file take every operation in the order and with the rounding of the NumPy twin; the others
state their bounds. A family is imported when something of it is first used. Compiled code is kept on disk; the
first call ever takes about a second.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_name

from dptrain.core import heap
from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.deferred import njit_for_arrays
from dptrain.core.kernels.memory import address, array_at
from dptrain.core.kernels.reference import Geometry

_FAMILIES = {
    "activations": ("activation", "activation_grad", "gelu", "gelu_grad"),
    "attention": ("attention", "attention_grad"),
    "convolution": ("conv", "conv_input_grad", "conv_weight_grad"),
    "elementwise": ("add", "clip", "pass_where", "relu", "relu_grad"),
    "gemm": ("linear", "matmul"),
    "group_norm": ("group_norm", "group_norm_grad"),
    "lookup": ("add_at", "add_rows", "column_sums"),
    "normalisation": (
        *("batch_norm", "batch_norm_grad", "batch_statistics", "batch_vectors"),
        *("layer_norm", "layer_norm_grad", "normalise"),
    ),
    "pooling": ("max_pool", "max_pool_scatter", "sum_pool", "sum_pool_scatter"),
    "prelu": ("prelu", "prelu_grad"),
    "recurrent": ("recurrent", "recurrent_grad"),
    "reference": ("max_pool_gather", "rms_norm", "rms_norm_grad"),
    "reference_pointwise": ("assign", "convert", "dropout", "follow", "keep", "multiply"),
    "reorder": ("channels_last", "row_major"),
    "softmax": (
        *("cross_entropy", "cross_entropy_grad"),
        *("log_softmax", "log_softmax_grad", "softmax", "softmax_grad"),
    ),
    "updates": ("adam", "sgd"),
    "volume": ("conv_volume", "conv_volume_input_grad", "conv_volume_weight_grad"),
    "weighing": ("weighted_sums",),
}
_HOMES = {name: family for family, names in _FAMILIES.items() for name in names}

__all__ = ["col2im", "describe", "erf", "im2col", "unscale"]
__all__ += _HOMES


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"dptrain.core.kernels.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


heap.prepare()

real: Any = None  # each compiled copy has its own

_jit = njit_for_arrays(cache=True, nogil=True, error_model="numpy")


def describe() -> str:
    """Provider, versions and processor: what the bits of a result may depend on."""
    version = import_module("importlib.metadata").version  # takes longer to import than this module
    versions = (f"{name}-{version(name)}" for name in ("numba", "llvmlite"))
    return " ".join((*versions, get_host_cpu_name()))


@_jit
def _im2col(x, out, n, h, w, c, out_h, out_w, kh, kw, sh, sw, ph, pw, dh, dw):
    # Both arrays are flat: views of rows would cost more than what they hold. Places are unsigned,
    # which spares the check for an index that counts from the end.
    run = kw * c
    width = kh * run
    numbers, depth = np.uint64(run), np.uint64(c)
    # From window `inner` to `outer` a whole kernel row lies inside the image, as one run of numbers.
    inner = min(out_w, (pw + sw - 1) // sw) if dw == 1 else out_w
    outer = min(out_w, max(inner, (w - kw + pw) // sw + 1)) if dw == 1 and w >= kw - pw else inner
    for b in range(n):
        for oh in range(out_h):
            for i in range(kh):
                y = oh * sh - ph + i * dh
                line = (b * h + y) * w * c
                target = (b * out_h + oh) * out_w * width + i * run
                if not 0 <= y < h:
                    for ow in range(out_w):
                        place = np.uint64(target + ow * width)
                        for k in range(numbers):
                            out[place + k] = 0
                    continue
                for ow in range(inner, outer):
                    source = np.uint64(line + (ow * sw - pw) * c)
                    place = np.uint64(target + ow * width)
                    for k in range(numbers):
                        out[place + k] = x[source + k]
                for border in range(out_w - (outer - inner)):
                    ow = border if border < inner else border + outer - inner
                    for j in range(kw):
                        z = ow * sw - pw + j * dw
                        place = np.uint64(target + ow * width + j * c)
                        inside = 0 <= z < w
                        source = np.uint64(line + z * c) if inside else np.uint64(0)
                        for k in range(depth):
                            out[place + k] = x[source + k] if inside else 0


def im2col(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry) -> np.ndarray:
    """See `reference.im2col`."""
    n, h, w, c = x.shape
    out = np.empty((n * out_h * out_w, geometry[0] * geometry[1] * c), x.dtype)
    flat = np.ascontiguousarray(x).reshape(-1)
    _im2col(flat, out.reshape(-1), n, h, w, c, out_h, out_w, *geometry)
    return out


@_jit
def _col2im(cols, out, out_h, out_w, kh, kw, sh, sw, ph, pw, dh, dw):
    n, h, w, c = out.shape
    for b in range(n):
        # Tap by tap, as the NumPy twin adds them.
        for i in range(kh):
            for j in range(kw):
                at = (i * kw + j) * c
                for oh in range(out_h):
                    y = oh * sh - ph + i * dh
                    if not 0 <= y < h:
                        continue
                    for ow in range(out_w):
                        z = ow * sw - pw + j * dw
                        if 0 <= z < w:
                            row = (b * out_h + oh) * out_w + ow
                            for k in range(c):
                                out[b, y, z, k] += cols[row, at + k]


def col2im(
    columns: np.ndarray,
    shape: tuple[int, int, int, int],
    out_h: int,
    out_w: int,
    geometry: Geometry,
) -> np.ndarray:
    """See `reference.col2im`."""
    out = np.zeros(shape, columns.dtype)
    _col2im(np.ascontiguousarray(columns), out, out_h, out_w, *geometry)
    return out


@kernel
def _unscale(args, share, shares, worker):
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    grad = array_at(args[2] + share * args[0] // shares * args[1], (size,), real)
    inverse = array_at(args[3], (1,), real)[0]
    # x - x is zero for finite numbers only. Without a branch, so that the loop becomes vector instructions.
    bad = 0
    for i in range(size):
        bad |= int(grad[i] - grad[i] != 0)
        grad[i] = grad[i] * inverse
    array_at(args[4], (shares,), np.int64)[share] = bad


def unscale(grad: np.ndarray, inverse: float) -> bool:
    """See `reference.unscale`."""
    if not grad.flags.c_contiguous:
        return reference.unscale(grad, inverse)
    shares = pool.shares(grad.size, 2 * grad.nbytes)
    factor, bad = np.array([inverse], grad.dtype), np.zeros(max(shares, 1), np.int64)
    args = (grad.size, grad.itemsize, *map(address, (grad, factor, bad)))
    pool.run(_unscale.address(grad.dtype.type), args, shares)
    return bool(bad.any())


@kernel
def _erf(args, share, shares, worker):
    first = share * args[0] // shares
    size = (share + 1) * args[0] // shares - first
    x = array_at(args[2] + first * args[1], (size,), real)
    out = array_at(args[3] + first * args[1], (size,), real)
    for i in range(size):
        out[i] = math.erf(x[i])


def erf(x: np.ndarray) -> np.ndarray:
    """See `reference.erf`."""
    out, x = np.empty(x.shape, x.dtype), np.ascontiguousarray(x)
    args = (x.size, x.itemsize, address(x), address(out))
    pool.run(_erf.address(x.dtype.type), args, pool.shares(x.size, 16 * x.nbytes))
    return out
