"""Attention by scaled dot products.

Source: Vaswani et al., "Attention is all you need", 2017.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any

import numpy as np

from dptrain.core.arrays import beside, namespace_of, on_gpu
from dptrain.core.export import FUNCTIONS
from dptrain.core.half import lift
from dptrain.core.ops.activation import Softmax
from dptrain.core.ops.attention import ScaledDotProductFlashAttentionForCpu, fused_attention
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.dropout import dropout

#: Whether `nn.attention.sdpa_kernel` lets this implementation run.
allowed: ContextVar[bool] = ContextVar("allowed", default=True)


def _additive(mask: np.ndarray, kind: np.dtype[Any]) -> Tensor:
    """True may attend: 0; False: minus infinity."""
    with beside(mask):
        return wrap(np.where(mask, 0, -np.inf).astype(kind))


def _repeat_heads(value: Tensor, count: int) -> Tensor:
    *lead, heads, length, size = value.shape
    wide = value.unsqueeze(-3).expand(*lead, heads, count, length, size)
    return wide.reshape(*lead, heads * count, length, size)


def attention_weights(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float
) -> Tensor:
    """softmax(query key^T * scale + mask): (..., L, E) with (..., S, E) -> (..., L, S)."""
    scores = (query * scale) @ key.transpose(-2, -1)
    kind, xp = scores._array.dtype, namespace_of(scores._array)
    if is_causal:
        scores = scores + _additive(xp.tri(*scores.shape[-2:], dtype=bool), kind)
    if attn_mask is None:
        return Softmax.apply(scores, -1)
    given, is_bool = attn_mask._array, attn_mask.dtype.name == "bool"
    scores = scores + (_additive(given, kind) if is_bool else attn_mask)
    with beside(given):
        open_ = given if is_bool else given != -np.inf
        nowhere = np.logical_not((open_ if open_.ndim else open_[None]).any(axis=-1, keepdims=True))
        if not nowhere.any():
            return Softmax.apply(scores, -1)
    # A query that may attend nowhere gets zeros rather than 0 / 0, and passes no gradient on.
    where, closed, zero = FUNCTIONS["where"], wrap(nowhere), wrap(xp.zeros((), kind))
    return where(closed, zero, Softmax.apply(where(closed, zero, scores), -1))


def _fused(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether one operation serves: batches of heads of equal number, as in PyTorch's fused kernel."""
    q, k, v = query._array.shape, key._array.shape, value._array.shape
    fits = q[-1] == k[-1] and k[-2] == v[-2] and k[-2] > 0
    return len(q) == 4 and q[:-2] == k[:-2] == v[:-2] and fits and query.dtype.is_floating_point


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query key^T * scale + mask) value.

    Args:
        query: (..., heads, L, E).
        key: (..., heads, S, E).
        value: (..., heads, S, Ev).
        attn_mask: (..., L, S) of bool (True may attend) or of numbers that are added.
        dropout_p: probability of a weight to be dropped, applied whenever it is positive.
        is_causal: position i may attend to 0..i only.
        scale: 1 / sqrt(E) by default.
        enable_gqa: key and value may have fewer heads, each serving several of the query's.

    Returns:
        (..., heads, L, Ev).

    Raises:
        RuntimeError: shapes or dtypes that do not fit, or a mask together with `is_causal`.
    """
    if not allowed.get():
        raise RuntimeError(
            "No viable backend for scaled_dot_product_attention was found: sdpa_kernel allows neither "
            "SDPBackend.MATH nor SDPBackend.FLASH_ATTENTION"
        )
    for part in (query, key, value):
        if not isinstance(part, Tensor):
            name = "query" if part is query else "key" if part is key else "value"
            raise TypeError(
                f"scaled_dot_product_attention(): argument {name!r} must be Tensor, not {type(part).__name__}"
            )
    q, k, v = query._array, key._array, value._array
    if not q.dtype == k.dtype == v.dtype:
        raise RuntimeError(
            f"Expected query, key, and value to have the same dtype, but got query.dtype: {query.dtype} "
            f"key.dtype: {key.dtype} and value.dtype: {value.dtype} instead."
        )
    if q.ndim < 2 or k.ndim < 2 or v.ndim < 2:
        raise RuntimeError(
            f"Expected query, key, and value to all be  at least 2 dimensional, but got query.dim: {query.ndim}, "
            f"key.dim: {key.ndim} and value.dim: {value.ndim} instead."
        )
    if not dropout_p <= 1:
        raise RuntimeError(
            f"scaled_dot_product_attention: dropout probability has to be between 0 and 1, but got {dropout_p}"
        )
    if attn_mask is not None:
        if is_causal:
            raise RuntimeError(
                "_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True"
            )
        if attn_mask.dtype.name != "bool" and attn_mask.dtype is not query.dtype:
            raise RuntimeError(
                f"Expected attn_mask dtype to be bool or float or to match query dtype, but got attn_mask.dtype: "
                f"{attn_mask.dtype} and  query.dtype: {query.dtype} instead."
            )
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    alike = q.shape[-3:-2] == k.shape[-3:-2]
    if on_gpu(q) and (alike or enable_gqa):
        fused = fused_attention(query, key, value, attn_mask, factor, is_causal, dropout_p)
        if fused is not None:
            return fused
    if enable_gqa and not alike:
        if query.shape[-3] % key.shape[-3] or query.shape[-3] % value.shape[-3]:
            raise RuntimeError(
                "scaled_dot_product_attention: number of heads in key and value must divide the number of heads "
                f"in query, got {query.shape[-3]}, {key.shape[-3]} and {value.shape[-3]}"
            )
        key = _repeat_heads(key, query.shape[-3] // key.shape[-3])
        value = _repeat_heads(value, query.shape[-3] // value.shape[-3])
    if attn_mask is None and dropout_p == 0 and _fused(query, key, value):
        return ScaledDotProductFlashAttentionForCpu.apply(query, key, value, factor, is_causal)
    # 16-bit operands: one rounding at the end.
    mask = None if attn_mask is None else lift(attn_mask)
    weights = attention_weights(lift(query), lift(key), mask, is_causal, factor)
    return (dropout(weights, dropout_p) @ lift(value)).to(query.dtype)
