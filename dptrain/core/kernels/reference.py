"""The kernels in plain NumPy: the definition that the compiled ones are tested against.

Every function takes raw arrays. Images are channels-last: (N, H, W, C). `geometry` is the tuple
(kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dptrain.core.arrays import namespace_of
from dptrain.core.capturing import one_call
from dptrain.core.kernels import grouping
from dptrain.core.kernels.erf import erf as erf

Geometry = tuple[int, int, int, int, int, int, int, int]


def _taps(out_h: int, out_w: int, geometry: Geometry) -> Iterator[tuple[int, slice, slice]]:
    """For each kernel tap: its number and the rows and columns of the padded image it meets."""
    kh, kw, sh, sw, _, _, dh, dw = geometry
    for i in range(kh):
        rows = slice(i * dh, i * dh + (out_h - 1) * sh + 1, sh)
        for j in range(kw):
            yield i * kw + j, rows, slice(j * dw, j * dw + (out_w - 1) * sw + 1, sw)


def _padded(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry, fill: float) -> np.ndarray:
    """The image with its border, large enough for the last window (ceil_mode may overhang)."""
    kh, kw, sh, sw, ph, pw, dh, dw = geometry
    n, h, w, c = x.shape
    full_h = max(h + 2 * ph, (out_h - 1) * sh + (kh - 1) * dh + 1)
    full_w = max(w + 2 * pw, (out_w - 1) * sw + (kw - 1) * dw + 1)
    if (full_h, full_w) == (h, w):
        return x
    out = np.full((n, full_h, full_w, c), fill, dtype=x.dtype)
    out[:, ph : ph + h, pw : pw + w] = x
    return out


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The product, by NumPy's rules for vectors and batches; into `out` if it is given."""
    return np.matmul(a, b) if out is None else np.matmul(a, b, out=out)


#: Up to this many rows BLAS is faster with the (larger) weight as its first operand; the addition of
#: the bias then writes the result in row-major order. Measured on Zen 4 with OpenBLAS 0.3.
_FEW_ROWS = 128


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """x W^T + bias over the last dimension: (..., in) with (out, in) and (out,) -> (..., out)."""
    if bias is not None and x.ndim == 2 and len(x) <= _FEW_ROWS:
        return np.add(np.matmul(weight, x.T).T, bias, order="C")
    out = np.matmul(x, weight.T)
    if bias is not None:
        out += bias
    return out


def im2col(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry) -> np.ndarray:
    """Windows as rows: (N, H, W, C) -> (N * out_h * out_w, kernel_h * kernel_w * C)."""
    kh, kw, sh, sw, _, _, dh, dw = geometry
    p = _padded(x, out_h, out_w, geometry, 0)
    n, _, _, c = p.shape
    s0, s1, s2, s3 = p.strides
    windows = as_strided(
        p,
        (n, out_h, out_w, kh, kw, c),
        (s0, s1 * sh, s2 * sw, s1 * dh, s2 * dw, s3),
        writeable=False,
    )
    return windows.reshape(n * out_h * out_w, kh * kw * c)


def col2im(
    columns: np.ndarray,
    shape: tuple[int, int, int, int],
    out_h: int,
    out_w: int,
    geometry: Geometry,
) -> np.ndarray:
    """The transpose of `im2col`: windows added back to an image of `shape` (N, H, W, C)."""
    kh, kw, _, _, ph, pw, _, _ = geometry
    n, h, w, c = shape
    p = np.zeros_like(_padded(np.empty(shape, columns.dtype), out_h, out_w, geometry, 0))
    windows = columns.reshape(n, out_h, out_w, kh * kw, c)
    for tap, rows, cols in _taps(out_h, out_w, geometry):
        p[:, rows, cols] += windows[:, :, :, tap]
    return p[:, ph : ph + h, pw : pw + w]


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out_h: int,
    out_w: int,
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """Convolution as products of windows: (N, H, W, C) with (O, C/groups, kh, kw) -> (N, oh, ow, O).

    Source: Chellapilla et al., "High performance convolutional neural networks for document
    processing", 2006.
    """
    n, o = x.shape[0], weight.shape[0]
    columns = grouping.by_group(
        im2col(x, out_h, out_w, geometry), groups, geometry[0] * geometry[1]
    )
    out = np.matmul(columns, grouping.weight_matrix(weight, groups))
    out = out.transpose(1, 0, 2).reshape(n, out_h, out_w, o)
    return out if bias is None else out + bias


def conv_input_grad(
    grad: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
) -> np.ndarray:
    """The gradient of `conv`'s input, of that shape (also a transposed convolution, with its bias)."""
    _, out_h, out_w, _ = grad.shape
    products = np.matmul(
        grouping.channel_rows(grad, groups),
        grouping.weight_matrix(weight, groups).transpose(0, 2, 1),
    )
    taps, c = geometry[0] * geometry[1], shape[3]
    count = grad.shape[0] * out_h * out_w
    split = products.reshape(groups, count, taps, c // groups)
    columns = split.transpose(1, 2, 0, 3).reshape(count, taps * c)
    out = col2im(columns, shape, out_h, out_w, geometry)
    return out if bias is None else out + bias


def conv_weight_grad(
    x: np.ndarray,
    grad: np.ndarray,
    w_shape: tuple[int, int, int, int],
    geometry: Geometry,
    groups: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of `conv`'s weight and bias."""
    o, c, kh, kw = w_shape
    _, out_h, out_w, _ = grad.shape
    columns = grouping.by_group(im2col(x, out_h, out_w, geometry), groups, kh * kw)
    out = np.matmul(columns.transpose(0, 2, 1), grouping.channel_rows(grad, groups))
    taps = out.reshape(groups, kh * kw, c, o // groups).transpose(0, 3, 2, 1)
    return taps.reshape(w_shape), grad.sum(axis=(0, 1, 2))


def channels_last(x: np.ndarray) -> np.ndarray:
    """(N, C, *sizes) -> (N, *sizes, C), contiguous; a view where it can be one."""
    return namespace_of(x).ascontiguousarray(np.moveaxis(x, 1, -1))


def max_pool(
    x: np.ndarray, out_h: int, out_w: int, geometry: Geometry, rectified: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Largest value of each window and the tap (row-major number in the window) where it stands.

    The first of equal values counts; NaN counts as larger than everything, as in PyTorch. If
    `rectified`, values up to 0 become 0 and their taps -1.
    """
    p = _padded(x, out_h, out_w, geometry, -np.inf)
    best = np.full((x.shape[0], out_h, out_w, x.shape[3]), -np.inf, dtype=x.dtype)
    where = np.full(best.shape, -1, dtype=np.int32)
    inside = _padded(np.ones((1, *x.shape[1:3], 1), bool), out_h, out_w, geometry, 0)
    for tap, rows, cols in _taps(out_h, out_w, geometry):
        value = p[:, rows, cols]
        # A window that holds nothing but -inf still points at one of its own elements.
        better = (
            (value > best)
            | (np.isnan(value) & ~np.isnan(best))
            | ((where < 0) & inside[:, rows, cols])
        )
        np.copyto(best, value, where=better)
        where[better] = tap
    if rectified:
        where[best <= 0] = -1
        best = relu(best)
    return best, where


def max_pool_scatter(
    grad: np.ndarray, where: np.ndarray, shape: tuple[int, int, int, int], geometry: Geometry
) -> np.ndarray:
    """Each window's value added at the place where its maximum stood."""
    _, out_h, out_w, _ = grad.shape
    _, h, w, _ = shape
    ph, pw = geometry[4:6]
    p = np.zeros_like(_padded(np.empty(shape, grad.dtype), out_h, out_w, geometry, 0))
    for tap, rows, cols in _taps(out_h, out_w, geometry):
        p[:, rows, cols] += np.where(where == tap, grad, 0)
    return p[:, ph : ph + h, pw : pw + w]


def sum_pool(x: np.ndarray, out_h: int, out_w: int, geometry: Geometry) -> np.ndarray:
    """The sum of each window (of dilation 1)."""
    p = _padded(x, out_h, out_w, geometry, 0)
    out = np.zeros((x.shape[0], out_h, out_w, x.shape[3]), dtype=x.dtype)
    for _, rows, cols in _taps(out_h, out_w, geometry):
        out += p[:, rows, cols]
    return out


def sum_pool_scatter(
    grad: np.ndarray, shape: tuple[int, int, int, int], geometry: Geometry
) -> np.ndarray:
    """Each window's value added to all its elements: the transpose of `sum_pool`."""
    _, out_h, out_w, _ = grad.shape
    _, h, w, _ = shape
    ph, pw = geometry[4:6]
    p = np.zeros_like(_padded(np.empty(shape, grad.dtype), out_h, out_w, geometry, 0))
    for _, rows, cols in _taps(out_h, out_w, geometry):
        p[:, rows, cols] += grad
    return p[:, ph : ph + h, pw : pw + w]


def max_pool_gather(x: np.ndarray, where: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The value of each window at the place that `where` names: the transpose of the scatter."""
    _, out_h, out_w, _ = where.shape
    p = _padded(x, out_h, out_w, geometry, 0)
    out = np.zeros(where.shape, dtype=x.dtype)
    for tap, rows, cols in _taps(out_h, out_w, geometry):
        np.copyto(out, p[:, rows, cols], where=where == tap)
    return out


@one_call
def add_rows(rows: np.ndarray, index: np.ndarray, size: int) -> np.ndarray:
    """Zeros (size, D) to which row i is added at index[i]; equal indices sum in order."""
    out = namespace_of(rows).zeros((size, *rows.shape[1:]), rows.dtype)
    if len(index):
        order = np.argsort(index, kind="stable")
        found, starts = np.unique(index[order], return_index=True)
        out[found] = np.add.reduceat(rows[order], starts, axis=0)
    return out


def softmax(x: np.ndarray) -> np.ndarray:
    """exp(x) / sum(exp(x)) over each row of (R, C)."""
    out = np.exp(x - x.max(axis=1, keepdims=True)) if x.size else x.copy()
    out /= out.sum(axis=1, keepdims=True)
    return out


def softmax_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The gradient of `softmax`'s input."""
    return (grad - (grad * out).sum(axis=1, keepdims=True)) * out


def log_softmax(x: np.ndarray) -> np.ndarray:
    """log(softmax(x)) over each row of (R, C), without overflow."""
    out = x - x.max(axis=1, keepdims=True) if x.size else x.copy()
    return out - np.log(np.exp(out).sum(axis=1, keepdims=True))


def log_softmax_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The gradient of `log_softmax`'s input."""
    return grad - np.exp(out) * grad.sum(axis=1, keepdims=True)


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-row loss -log softmax(logits)[target] and the softmax itself: (N, C), (N,) -> (N,), (N, C)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    rows = np.arange(len(target))
    return np.log(total[:, 0]) - shifted[rows, target], p


def _seen(scores: np.ndarray) -> np.ndarray:
    """Which scores count where query i may attend to keys 0..i only."""
    rows, columns = scores.shape[-2:]
    return namespace_of(scores).tri(rows, columns, dtype=bool)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, causal: bool
) -> tuple[np.ndarray, Any]:
    """softmax(q k^T scale) v over the last two dimensions: (..., L, E), (..., S, E), (..., S, W).

    Args:
        q: queries.
        k: keys.
        v: values.
        scale: factor of the scores.
        causal: query i attends to keys 0..i only.

    Returns:
        (..., L, W), and what `attention_grad` of the same provider wants to have kept.
    """
    scores = np.matmul(q, k.swapaxes(-1, -2)) * q.dtype.type(scale)
    if causal:
        scores[..., ~_seen(scores)] = -np.inf
    if scores.size:
        scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.matmul(weights, v), weights


def attention_grad(
    grad: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    kept: Any,
    scale: float,
    causal: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of `attention`'s queries, keys and values."""
    slopes = np.matmul(grad, v.swapaxes(-1, -2)) - (grad * out).sum(axis=-1, keepdims=True)
    slopes *= kept * q.dtype.type(scale)
    turned = slopes.swapaxes(-1, -2)
    return np.matmul(slopes, k), np.matmul(turned, q), np.matmul(kept.swapaxes(-1, -2), grad)


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
