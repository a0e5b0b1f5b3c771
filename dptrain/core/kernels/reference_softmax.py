"""Softmax, its losses and attention in plain NumPy. Part of the definition in `reference`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of


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


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, Any]:
    """Per-row loss -log softmax(logits)[target], (N, C) with (N,) -> (N,), and what the gradient wants kept."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    rows = np.arange(len(target))
    return np.log(total[:, 0]) - shifted[rows, target], p


def cross_entropy_grad(
    grad: np.ndarray, logits: np.ndarray, kept: Any, target: np.ndarray, scale: float
) -> np.ndarray:
    """The gradient of the logits of `cross_entropy`, from that of the sum of its losses times `scale`, ().

    Args:
        grad: that gradient.
        logits, target: those of the forward pass.
        kept: what `cross_entropy` of the same provider wanted kept; here the softmax itself.
        scale: as said.
    """
    p = kept
    factor = grad * p.dtype.type(scale)
    out = p * factor
    out[namespace_of(p).arange(len(target)), target] -= factor
    return out


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
