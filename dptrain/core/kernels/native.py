"""The compiled kernels, with the results of `reference`: those written here, and those of their families.

The ones of this file are serial (`nogil`, so that the communication thread goes on meanwhile) and take
every operation in the order and with the rounding of the NumPy twin. The others state their bounds and
run on the threads of `pool`. Compiled code is kept on disk; the first call ever takes about a second.
"""

from __future__ import annotations

import math

import llvmlite
import numba
import numpy as np

from dptrain.core import heap
from dptrain.core.kernels.activations import activation, activation_grad, gelu, gelu_grad
from dptrain.core.kernels.attention import attention, attention_grad
from dptrain.core.kernels.convolution import conv, conv_input_grad, conv_weight_grad
from dptrain.core.kernels.elementwise import add, clip, pass_where, relu, relu_grad
from dptrain.core.kernels.gemm import linear, matmul
from dptrain.core.kernels.group_norm import group_norm, group_norm_grad
from dptrain.core.kernels.lookup import add_at, add_rows, column_sums
from dptrain.core.kernels.normalisation import (
    batch_norm,
    batch_norm_grad,
    batch_statistics,
    batch_vectors,
    layer_norm,
    layer_norm_grad,
    normalise,
)
from dptrain.core.kernels.pooling import (
    max_pool,
    max_pool_scatter,
    sum_pool,
    sum_pool_scatter,
)
from dptrain.core.kernels.prelu import prelu, prelu_grad
from dptrain.core.kernels.recurrent import recurrent, recurrent_grad
from dptrain.core.kernels.reference import Geometry, max_pool_gather, rms_norm, rms_norm_grad
from dptrain.core.kernels.reference_pointwise import (
    assign,
    convert,
    dropout,
    follow,
    keep,
    multiply,
)
from dptrain.core.kernels.reorder import channels_last, row_major
from dptrain.core.kernels.softmax import (
    cross_entropy,
    cross_entropy_grad,
    log_softmax,
    log_softmax_grad,
    softmax,
    softmax_grad,
)
from dptrain.core.kernels.updates import adam, sgd
from dptrain.core.kernels.volume import (
    conv_volume,
    conv_volume_input_grad,
    conv_volume_weight_grad,
)
from dptrain.core.kernels.weighing import weighted_sums

__all__ = [
    "activation",
    "activation_grad",
    "adam",
    "add",
    "add_at",
    "add_rows",
    "assign",
    "attention",
    "attention_grad",
    "batch_norm",
    "batch_norm_grad",
    "batch_statistics",
    "batch_vectors",
    "channels_last",
    "clip",
    "col2im",
    "column_sums",
    "conv",
    "conv_input_grad",
    "conv_volume",
    "conv_volume_input_grad",
    "conv_volume_weight_grad",
    "conv_weight_grad",
    "convert",
    "cross_entropy",
    "cross_entropy_grad",
    "describe",
    "dropout",
    "erf",
    "follow",
    "gelu",
    "gelu_grad",
    "group_norm",
    "group_norm_grad",
    "im2col",
    "keep",
    "layer_norm",
    "layer_norm_grad",
    "linear",
    "log_softmax",
    "log_softmax_grad",
    "matmul",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
    "multiply",
    "normalise",
    "pass_where",
    "prelu",
    "prelu_grad",
    "recurrent",
    "recurrent_grad",
    "relu",
    "relu_grad",
    "rms_norm",
    "rms_norm_grad",
    "row_major",
    "sgd",
    "softmax",
    "softmax_grad",
    "sum_pool",
    "sum_pool_scatter",
    "unscale",
    "weighted_sums",
]

heap.prepare()

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


def describe() -> str:
    """Provider, versions and processor: what the bits of a result may depend on."""
    return f"numba-{numba.__version__} llvmlite-{llvmlite.__version__} {llvmlite.binding.get_host_cpu_name()}"


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


@_jit
def _unscale(grad, inverse):
    # x - x is zero for finite numbers only. Without a branch, so that the loop becomes vector instructions.
    bad = 0
    for i in range(grad.size):
        bad |= int(grad[i] - grad[i] != 0)
        grad[i] = grad[i] * inverse
    return bad


def unscale(grad: np.ndarray, inverse: float) -> bool:
    """See `reference.unscale`."""
    return bool(_unscale(grad, grad.dtype.type(inverse)))


@_jit
def _erf(x, out):
    for i in range(x.size):
        out[i] = math.erf(x[i])


def erf(x: np.ndarray) -> np.ndarray:
    """See `reference.erf`."""
    out = np.empty(x.shape, x.dtype)
    _erf(np.ascontiguousarray(x).reshape(-1), out.reshape(-1))
    return out
