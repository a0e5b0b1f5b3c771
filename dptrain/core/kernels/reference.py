"""The kernels in plain NumPy: the definition that the compiled ones are tested against.

Every function takes raw arrays. Those over windows of images are in `reference_windows`, softmax and what is
built on it in `reference_softmax`; this module, a provider (see the package), has all their names.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of, on_gpu
from dptrain.core.capturing import one_call
from dptrain.core.kernels.erf import erf
from dptrain.core.kernels.reference_activations import (
    activation,
    activation_grad,
    clip,
    pass_where,
    prelu,
    prelu_grad,
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
    "sgd",
    "softmax",
    "softmax_grad",
    "sum_pool",
    "sum_pool_scatter",
    "unscale",
    "weighted_sums",
]


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The product, by NumPy's rules for vectors and batches; into `out` if it is given."""
    return np.matmul(a, b) if out is None else np.matmul(a, b, out=out)


#: Up to this many rows BLAS is faster with the (larger) weight as its first operand; the addition of
#: the bias then writes the result in row-major order. Measured on Zen 4 with OpenBLAS 0.3.
_FEW_ROWS = 128


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x W^T + bias over the last dimension: (..., in) with (out, in) and (out,) -> (..., out)."""
    if bias is not None and x.ndim == 2 and len(x) <= _FEW_ROWS and not on_gpu(x):
        return np.add(np.matmul(weight, x.T).T, bias, order="C")
    out = np.matmul(x, weight.T)
    if bias is not None:
        out += bias
    return out


def channels_last(x: np.ndarray) -> np.ndarray:
    """(N, C, *sizes) -> (N, *sizes, C), contiguous; a view where it can be one."""
    return namespace_of(x).ascontiguousarray(x.transpose(0, *range(2, x.ndim), 1))


def column_sums(rows: np.ndarray) -> np.ndarray:
    """The sum of all rows: (R, D) -> (D,)."""
    return rows.sum(axis=0)


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


def batch_statistics(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each column of (R, C): mean, variance, 1 / sqrt(variance + eps); and the vectors for `normalise`."""
    rows = max(len(x), 1)
    mean = x.sum(axis=0) / rows
    centred = x - mean
    var = (centred * centred).sum(axis=0) / rows
    rstd = 1 / np.sqrt(var + x.dtype.type(eps))
    return mean, var, rstd, batch_vectors(x, mean, rstd, weight, bias)


def batch_vectors(
    x: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
) -> np.ndarray:
    """The vectors for `normalise` of (R, C) from given statistics."""
    shift = np.zeros_like(mean) if bias is None else bias
    return np.stack([mean, rstd if weight is None else rstd * weight, shift])


def normalise(
    x: np.ndarray,
    vectors: np.ndarray,
    out: np.ndarray,
    cut: bool = False,
    more: np.ndarray | None = None,
) -> None:
    """Write batch norm's result: (x - mean) * scale + shift, column by column.

    Args:
        x: (R, C).
        vectors: those of the provider's `batch_statistics` of this `x`.
        out: of the shape of `x`, contiguous.
        cut: write `relu` of it.
        more: of the shape of `x`, contiguous; added to it.
    """
    mean, scale, shift = vectors
    np.subtract(x, mean, out=out)
    out *= scale
    out += shift
    if cut:
        np.maximum(out, 0, out=out)
    elif more is not None:
        out += more


def batch_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each column of (R, C) normalised over the rows: result, mean, variance, 1 / sqrt(variance + eps)."""
    mean, var, rstd, vectors = batch_statistics(x, weight, bias, eps)
    out = np.empty_like(x)
    normalise(x, vectors, out)
    return out, mean, var, rstd


def batch_norm_grad(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    cut: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of `batch_norm`'s input, weight and bias.

    Source: Ioffe & Szegedy, "Batch normalization", 2015, section 3.

    Args:
        grad: that of the result, or of its `relu` if `cut` is given.
        x, weight: those of the forward pass.
        mean, rstd: of its statistics.
        cut: the vectors of `normalise`.
    """
    if cut is not None:
        result = np.empty_like(x)
        normalise(x, cut, result)
        grad = relu_grad(grad, result)
    rows = max(len(x), 1)
    normal = (x - mean) * rstd
    sums, products = grad.sum(axis=0), (grad * normal).sum(axis=0)
    out = grad - sums / rows - normal * (products / rows)
    return out * (rstd if weight is None else rstd * weight), products, sums


def group_norm(
    x: np.ndarray, groups: int, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Groups of the channels of each image normalised over the group's channels and all places.

    Source: Wu & He, "Group normalization", 2018.

    Args:
        x: (N, places, C).
        groups: of channels, which divide C.
        weight, bias: (C,) factor and summand.
        eps: added to the variance.

    Returns:
        The result, and (N, groups) each: mean, variance, 1 / sqrt(variance + eps).
    """
    n, places, c = x.shape
    split = x.reshape(n, places, groups, c // groups)
    mean = split.mean(axis=(1, 3), keepdims=True)
    centred = split - mean
    var = (centred * centred).mean(axis=(1, 3), keepdims=True)
    rstd = 1 / np.sqrt(var + x.dtype.type(eps))
    out = (centred * rstd).reshape(x.shape)
    if weight is not None:
        out *= weight
    if bias is not None:
        out += bias
    return out, mean[:, 0, :, 0], var[:, 0, :, 0], rstd[:, 0, :, 0]


def group_norm_grad(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of `group_norm`'s input, weight and bias; `grad` and `x` are contiguous."""
    n, places, c = x.shape
    groups = mean.shape[1]
    scale = rstd[:, None, :, None]
    normal = (x.reshape(n, places, groups, c // groups) - mean[:, None, :, None]) * scale
    d = (grad if weight is None else grad * weight).reshape(normal.shape)
    products = (d * normal).mean(axis=(1, 3), keepdims=True)
    out = (d - d.mean(axis=(1, 3), keepdims=True) - normal * products) * scale
    d_weight = (grad * normal.reshape(x.shape)).sum(axis=(0, 1))
    return out.reshape(x.shape), d_weight, grad.sum(axis=(0, 1))


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0); NaN stays NaN."""
    return np.maximum(x, 0)


def relu_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`grad` where the result of the ReLU is not (below or equal to) 0; there, 0 whatever it is."""
    return np.where(out <= 0, grad.dtype.type(0), grad)


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


def layer_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row of (R, C) normalised over the columns: result, mean, 1 / sqrt(variance + eps)."""
    columns = max(x.shape[1], 1)
    mean = x.sum(axis=1, keepdims=True) / columns
    out = x - mean
    var = (out * out).sum(axis=1, keepdims=True) / columns
    rstd = 1 / np.sqrt(var + x.dtype.type(eps))
    out *= rstd
    if weight is not None:
        out *= weight
    if bias is not None:
        out += bias
    return out, mean[:, 0], rstd[:, 0]


def layer_norm_grad(
    grad: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of `layer_norm`'s input, weight and bias."""
    columns = max(x.shape[1], 1)
    normal = (x - mean[:, None]) * rstd[:, None]
    d = grad if weight is None else grad * weight
    products = (d * normal).sum(axis=1, keepdims=True) / columns
    out = (d - d.sum(axis=1, keepdims=True) / columns - normal * products) * rstd[:, None]
    return out, (grad * normal).sum(axis=0), grad.sum(axis=0)


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Each row of (R, C) over the root of its mean square: result, 1 / sqrt(mean square + eps).

    Source: Zhang & Sennrich, "Root mean square layer normalization", 2019.
    """
    columns = max(x.shape[1], 1)
    rstd = 1 / np.sqrt((x * x).sum(axis=1) / columns + x.dtype.type(eps))
    out = x * rstd[:, None]
    return out if weight is None else out * weight, rstd


def rms_norm_grad(
    grad: np.ndarray, x: np.ndarray, weight: np.ndarray | None, rstd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of `rms_norm`'s input and weight."""
    columns = max(x.shape[1], 1)
    normal = x * rstd[:, None]
    d = grad if weight is None else grad * weight
    products = (d * normal).sum(axis=1, keepdims=True) / columns
    return (d - normal * products) * rstd[:, None], (grad * normal).sum(axis=0)
