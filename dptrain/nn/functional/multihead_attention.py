"""Attention of several heads with its projections.

Source: Vaswani et al., "Attention is all you need", 2017.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.callers import level_outside
from dptrain.core.creation import zeros
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.activation import Softmax
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn import functional  # its functions follow autocast, unlike those of its modules
from dptrain.nn.functional.attention import scaled_dot_product_attention
from dptrain.nn.functional.dropout import dropout
from dptrain.nn.functional.padding import pad


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of the queries over the keys and values; `MultiheadAttention` with its weights.

    Args:
        query: (L, N, E), or (L, E) without a batch.
        key: (S, N, kdim).
        value: (S, N, vdim).
        embed_dim_to_check: E.
        num_heads: heads.
        in_proj_weight, in_proj_bias: of the three projections, (3 E, E) and (3 E,).
        bias_k, bias_v: (1, 1, E), added to each sequence as a key and value.
        add_zero_attn: whether a key and value of zeros are added.
        dropout_p: probability of a weight to be dropped, if `training`.
        out_proj_weight, out_proj_bias: of the projection of the result.
        training: whether to drop.
        key_padding_mask: (N, S); True (or minus infinity) positions get no attention.
        need_weights: whether the weights are returned.
        attn_mask: (L, S) or (N * heads, L, S); True positions get no attention, numbers are added.
        use_separate_proj_weight: project with the next three instead of `in_proj_weight`.
        q_proj_weight, k_proj_weight, v_proj_weight: (E, E), (E, kdim), (E, vdim).
        static_k, static_v: (N * heads, S, E / heads), in the place of the projections.
        average_attn_weights: whether the weights are averaged over the heads.
        is_causal: `attn_mask` is the causal mask.

    Returns:
        (L, N, E), and the weights (N, L, S) or (N, heads, L, S), or None.

    Raises:
        AssertionError: sizes that do not fit.
        RuntimeError: masks that do not fit.
    """
    _check_dims(query, key, value, key_padding_mask, attn_mask, num_heads)
    batched = query.ndim == 3
    if not batched:
        query, key, value = of_each(lambda t: t.unsqueeze(1), query, key, value)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    length, n, embed_dim = (int(s) for s in query.shape)
    source, head_dim = int(key.shape[0]), embed_dim // num_heads
    _check_sizes(query, key, value, embed_dim_to_check, num_heads, use_separate_proj_weight)
    if is_causal and attn_mask is None:
        raise RuntimeError(
            "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
            "`generate_square_subsequent_mask` to create this mask."
        )
    causal = is_causal and key_padding_mask is None and not need_weights
    weights: tuple[Any, ...] = (q_proj_weight, k_proj_weight, v_proj_weight)
    if use_separate_proj_weight:
        _check_given(True, ("q_proj_weight", "k_proj_weight", "v_proj_weight"), weights)
        q, k, v = _project(query, key, value, weights, in_proj_bias)
    else:
        _check_given(False, ("in_proj_weight",), (in_proj_weight,))
        assert in_proj_weight is not None
        q, k, v = _project_packed(query, key, value, in_proj_weight, in_proj_bias)
    k, v = _with_bias(k, v, bias_k, bias_v, static_k, static_v)
    k, v = (
        _heads(part, num_heads) if static is None else _static(name, static, n, num_heads, head_dim)
        for name, part, static in (("static_k", k, static_k), ("static_v", v, static_v))
    )
    if add_zero_attn:
        k, v = (
            FUNCTIONS["cat"](
                [t, zeros(n, num_heads, 1, head_dim, dtype=t.dtype, device=t.device)], -2
            )
            for t in (k, v)
        )
    sizes = (n, num_heads, length, source)
    added = int(bias_k is not None) + int(add_zero_attn)
    masks = (None if causal else attn_mask, key_padding_mask)
    mask = _mask(*masks, sizes, added, q._array.dtype)
    p = dropout_p if training else 0.0
    shares = None
    if need_weights:
        scores = (_heads(q, num_heads) * math.sqrt(1.0 / head_dim)) @ k.transpose(-2, -1)
        shares = dropout(Softmax.apply(scores if mask is None else scores + mask, -1), p)
        out = shares @ v
    else:
        out = scaled_dot_product_attention(_heads(q, num_heads), k, v, mask, p, causal)
    joined = out.permute(2, 0, 1, 3).reshape(length, n, embed_dim)
    result = functional.linear(joined, out_proj_weight, out_proj_bias)
    if shares is not None:
        shares = shares.mean(1) if average_attn_weights else shares
        shares = shares if batched else shares.squeeze(0)
    return (result if batched else result.squeeze(1)), shares


def of_each(function: Callable[[Tensor], Tensor], *values: Tensor) -> tuple[Tensor, ...]:
    """The function of each value; values that are one and the same stay so."""
    done: dict[int, Tensor] = {}
    for value in values:
        if id(value) not in done:
            done[id(value)] = function(value)
    return tuple(done[id(value)] for value in values)


def _check_dims(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    mask: Tensor | None,
    num_heads: int,
) -> None:
    dims = query.ndim
    if dims not in (2, 3):
        raise AssertionError(
            f"query should be unbatched 2D or batched 3D tensor but received {dims}-D query tensor"
        )
    kind = f"For {'batched' if dims == 3 else 'unbatched'} ({dims}-D) `query`, expected"
    if not key.ndim == value.ndim == dims:
        raise AssertionError(
            f"{kind} `key` and `value` to be {dims}-D but found {key.ndim}-D and {value.ndim}-D tensors respectively"
        )
    if padding is not None and padding.ndim != dims - 1:
        raise AssertionError(
            f"{kind} `key_padding_mask` to be `None` or {dims - 1}-D but found {padding.ndim}-D tensor instead"
        )
    if mask is not None:
        if mask.ndim not in (2, 3):
            raise AssertionError(
                f"{kind} `attn_mask` to be `None`, 2-D or 3-D but found {mask.ndim}-D tensor instead"
            )
        wanted = (num_heads, query.shape[0], key.shape[0])
        if dims == 2 and mask.ndim == 3 and tuple(mask.shape) != wanted:
            raise AssertionError(f"Expected `attn_mask` shape to be {wanted} but got {mask.shape}")


def _check_sizes(
    query: Tensor, key: Tensor, value: Tensor, wanted: int, num_heads: int, separate: bool
) -> None:
    embed_dim = query.shape[-1]
    if embed_dim != wanted:
        raise AssertionError(f"was expecting embedding dimension of {wanted}, but got {embed_dim}")
    if embed_dim % num_heads:
        raise AssertionError(f"embed_dim {embed_dim} not divisible by num_heads {num_heads}")
    if separate and key.shape[:2] != value.shape[:2]:
        raise AssertionError(
            f"key's sequence and batch dims {key.shape[:2]} do not match value's {value.shape[:2]}"
        )
    if not separate and key.shape != value.shape:
        raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")


def _check_given(separate: bool, names: tuple[str, ...], weights: tuple[Any, ...]) -> None:
    for name, weight in zip(names, weights, strict=True):
        if weight is None:
            raise AssertionError(f"use_separate_proj_weight is {separate} but {name} is None")


def _project_packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, ...]:
    if query is key and key is value:
        packed: tuple[Tensor, ...] = functional.linear(query, weight, bias).chunk(3, -1)
        return packed
    return _project(query, key, value, weight.chunk(3), bias)


def _project(
    query: Tensor, key: Tensor, value: Tensor, weights: tuple[Tensor, ...], bias: Tensor | None
) -> tuple[Tensor, ...]:
    biases: Any = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(
        functional.linear(*part) for part in zip((query, key, value), weights, biases, strict=True)
    )


def _with_bias(
    k: Tensor,
    v: Tensor,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    static_k: Tensor | None,
    static_v: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Keys and values with the learned ones at the end: (S + 1, N, E)."""
    if bias_k is None or bias_v is None:
        if bias_k is not None:
            raise AssertionError("bias_k is set but bias_v is None")
        if bias_v is not None:
            raise AssertionError("bias_v is set but bias_k is None")
        return k, v
    for name, static in (("key", static_k), ("value", static_v)):
        if static is not None:
            raise AssertionError(f"bias cannot be added to static {name}.")
    _, n, size = k.shape
    return (
        FUNCTIONS["cat"]([k, bias_k.expand(1, n, size)]),
        FUNCTIONS["cat"]([v, bias_v.expand(1, n, size)]),
    )


def _heads(value: Tensor, num_heads: int) -> Tensor:
    """(S, N, E) -> (N, heads, S, E / heads)."""
    length, n, size = value.shape
    return value.reshape(length, n, num_heads, size // num_heads).permute(1, 2, 0, 3)


def _static(name: str, static: Tensor, n: int, num_heads: int, head_dim: int) -> Tensor:
    """(N * heads, S, E / heads) -> (N, heads, S, E / heads)."""
    for dim, wanted in ((0, n * num_heads), (2, head_dim)):
        if static.shape[dim] != wanted:
            raise AssertionError(
                f"expecting {name}.size({dim}) of {wanted}, but got {static.shape[dim]}"
            )
    return static.reshape(n, num_heads, static.shape[1], head_dim)


def _mask(
    mask: Tensor | None,
    padding: Tensor | None,
    sizes: tuple[int, int, int, int],
    added: int,
    kind: np.dtype[Any],
) -> Tensor | None:
    """Both masks as numbers to add, over (N, heads, L, S + added)."""
    n, heads, length, source = sizes
    total = None
    if mask is not None and padding is not None and mask.dtype is not padding.dtype:
        warnings.warn(
            "Support for mismatched key_padding_mask and attn_mask is deprecated. Use same type for both instead.",
            stacklevel=level_outside(),
        )
    if mask is not None:
        wanted = (length, source) if mask.ndim == 2 else (n * heads, length, source)
        if tuple(mask.shape) != wanted:
            raise RuntimeError(
                f"The shape of the {mask.ndim}D attn_mask is {mask.shape}, but should be {wanted}."
            )
        total = pad(_as_numbers("attn_mask", mask, kind), (0, added))
        if mask.ndim == 3:
            total = total.reshape(n, heads, length, source + added)
    if padding is not None:
        if tuple(padding.shape) != (n, source):
            raise AssertionError(
                f"Expected key_padded_mask.shape equal to {(n, source)}, but got {tuple(padding.shape)}"
            )
        numbers = pad(_as_numbers("key_padding_mask", padding, kind), (0, added))
        numbers = numbers.reshape(n, 1, 1, source + added)
        total = numbers if total is None else total + numbers
    return total


def _as_numbers(name: str, mask: Tensor, kind: np.dtype[Any]) -> Tensor:
    """A mask as numbers to add: True becomes minus infinity."""
    if mask.dtype.name == "bool":
        return wrap(np.where(mask._array, -np.inf, 0).astype(kind))
    if not mask.is_floating_point():
        raise AssertionError(
            f"only bool and floating types of {name} are supported, got {mask.dtype}"
        )
    return mask if mask._array.dtype == kind else mask.to(kind)
