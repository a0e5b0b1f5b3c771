"""The kernels in plain NumPy: the definition that the compiled ones are tested against.

Every function takes raw arrays. Those over windows of images are in `reference_windows`, norms in
`reference_norms`, softmax and what is built on it in `reference_softmax`; this module, a provider (see the
package), has all their names.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of, on_gpu
from dptrain.core.capturing import one_call
from dptrain.core.kernels import few_rows
from dptrain.core.kernels.erf import erf
from dptrain.core.kernels.reference_activations import (
    activation,
    activation_grad,
    clip,
    pass_where,
    prelu,
    prelu_grad,
    relu,
    relu_grad,
)
from dptrain.core.kernels.reference_norms import (
    batch_norm,
    batch_norm_grad,
    batch_statistics,
    batch_vectors,
    group_norm,
    group_norm_grad,
    layer_norm,
    layer_norm_grad,
    normalise,
    rms_norm,
    rms_norm_grad,
)
from dptrain.core.kernels.reference_pointwise import (
    add,
    assign,
    convert,
    dropout,
    follow,
    keep,
    multiply,
)
from dptrain.core.kernels.reference_recurrent import recurrent, recurrent_grad
from dptrain.core.kernels.reference_softmax import (
    attention,
    attention_grad,
    cross_entropy,
    cross_entropy_grad,
    log_softmax,
    log_softmax_grad,
    softmax,
    softmax_grad,
)
from dptrain.core.kernels.reference_volumes import (
    Windows,
    conv_volume,
    conv_volume_input_grad,
    conv_volume_weight_grad,
)
from dptrain.core.kernels.reference_windows import (
    Geometry,
    col2im,
    conv,
    conv_input_grad,
    conv_weight_grad,
    im2col,
    max_pool,
    max_pool_gather,
    max_pool_scatter,
    sum_pool,
    sum_pool_scatter,
    weighted_sums,
)

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
    "dropout",
    "erf",
    "follow",
    "gelu",
    "gelu_grad",
    "Geometry",
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
    "Windows",
    "weighted_sums",
]


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The product, by NumPy's rules for vectors and batches; into `out` if it is given."""
    return np.matmul(a, b) if out is None else np.matmul(a, b, out=out)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x W^T + bias over the last dimension: (..., in) with (out, in) and (out,) -> (..., out)."""
    if bias is not None and not on_gpu(x) and few_rows.turns(x, weight):
        return np.add(np.matmul(weight, x.T).T, bias, order="C")
    out = np.matmul(x, weight.T)
    if bias is not None:
        out += bias
    return out


def channels_last(x: np.ndarray) -> np.ndarray:
    """(N, C, *sizes) -> (N, *sizes, C), contiguous; a view where it can be one."""
    return namespace_of(x).ascontiguousarray(x.transpose(0, *range(2, x.ndim), 1))


def row_major(x: np.ndarray) -> np.ndarray:
    """The elements in row-major order: the array itself where they are, else a copy."""
    return namespace_of(x).ascontiguousarray(x)


def column_sums(rows: np.ndarray) -> np.ndarray:
    """The sum of all rows: (R, D) -> (D,)."""
    return rows.sum(axis=0)


def add_at(out: np.ndarray, index: tuple[Any, ...], values: np.ndarray) -> None:
    """out[index] += values at an advanced index; what comes to one place is added in order."""
    namespace_of(out).add.at(out, index, values)


@one_call
def add_rows(
    rows: np.ndarray, index: np.ndarray, size: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Zeros (size, D), perhaps in `out`, to which row i is added at index[i]; equal indices sum in order."""
    if out is None:
        out = namespace_of(rows).zeros((size, *rows.shape[1:]), rows.dtype)
    else:
        out[...] = 0
    if len(index):
        order = np.argsort(index, kind="stable")
        found, starts = np.unique(index[order], return_index=True)
        out[found] = np.add.reduceat(rows[order], starts, axis=0)
    return out


def sgd(
    param: np.ndarray,
    grad: np.ndarray,
    buf: np.ndarray | None,
    lr: Any,
    momentum: Any,
    dampening: Any,
    weight_decay: Any,
    nesterov: bool,
    maximize: bool,
    first: bool,
) -> None:
    """One SGD update in place over flat arrays; `first` starts the momentum buffer from the gradient."""
    d = -grad if maximize else grad
    if weight_decay != 0:
        d = d + weight_decay * param
    if buf is not None:
        if first:
            buf[...] = d
        else:
            buf *= momentum
            buf += (1 - dampening) * d
        d = d + momentum * buf if nesterov else buf
    param -= lr * d


def adam(
    param: np.ndarray,
    grad: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    max_exp_avg_sq: np.ndarray | None,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    step_size: Any,
    root_correction: Any,
    decoupled: bool,
    maximize: bool,
) -> None:
    """One Adam (or AdamW: `decoupled`) update in place over flat arrays.

    `step_size` is lr / (1 - beta1^t) and `root_correction` is sqrt(1 - beta2^t).
    """
    d = -grad if maximize else grad
    if weight_decay != 0:
        if decoupled:
            param *= 1 - lr * weight_decay
        else:
            d = d + weight_decay * param
    exp_avg += (d - exp_avg) * (1 - beta1)
    exp_avg_sq *= beta2
    exp_avg_sq += (1 - beta2) * d * d
    second = exp_avg_sq
    if max_exp_avg_sq is not None:
        np.maximum(max_exp_avg_sq, exp_avg_sq, out=max_exp_avg_sq)
        second = max_exp_avg_sq
    param -= step_size * (exp_avg / (np.sqrt(second) / root_correction + eps))


def unscale(grad: np.ndarray, inverse: float) -> bool:
    """Multiply gradients by a float32 number, in place.

    Args:
        grad: one-dimensional; 16-bit types are computed in float32.
        inverse: one over the scale.

    Returns:
        Whether one of them was infinite or no number before.
    """
    found = not np.isfinite(grad).all()
    if inverse != 1:
        wide = np.result_type(grad.dtype, np.float32)
        np.multiply(grad.astype(wide, copy=False), wide.type(inverse), out=grad, casting="unsafe")
    return found


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return erf(x * x.dtype.type(math.sqrt(0.5))) * x.dtype.type(0.5) + x.dtype.type(0.5)


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the distribution function of the normal distribution.

    Source: Hendrycks & Gimpel, "Gaussian error linear units", 2016.
    """
    return x * _normal_cdf(x)


def gelu_grad(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The gradient of `gelu`'s input."""
    density = np.exp(x * x * x.dtype.type(-0.5)) * x.dtype.type(1 / math.sqrt(2 * math.pi))
    return grad * (_normal_cdf(x) + x * density)
