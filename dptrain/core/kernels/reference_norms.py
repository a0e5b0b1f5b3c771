"""The definition of the norms and of their gradients in plain NumPy. Part of the definition in `reference`."""

from __future__ import annotations

import numpy as np

from dptrain.core.kernels.reference_activations import relu_grad


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
