"""Multi-head attention.

Source: Vaswani et al., "Attention is all you need", 2017.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.creation import empty, zeros
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.activation import Softmax
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.linear import Linear
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter


class NonDynamicallyQuantizableLinear(Linear):
    """`Linear` under the name by which PyTorch prints the projection of attention."""


class MultiheadAttention(Module):
    """Attention of several heads at once: queries (L, N, E) over keys and values (S, N, E).

    Args:
        embed_dim: E, divided among the heads.
        num_heads: heads.
        dropout: probability of a weight to be dropped in training.
        bias: whether the projections have one.
        add_bias_kv: whether a learned key and value are added to each sequence.
        add_zero_attn: whether a key and value of zeros are added to each sequence.
        kdim: size of the keys; E by default.
        vdim: size of the values; E by default.
        batch_first: inputs and results are (N, L, E).
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.

    Raises:
        ValueError: sizes that are not positive.
        AssertionError: the heads do not divide E.
    """

    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(
                f"embed_dim and num_heads must be greater than 0, got embed_dim={embed_dim} and "
                f"num_heads={num_heads} instead"
            )
        super().__init__()
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout, self.batch_first = dropout, batch_first
        self.add_zero_attn = add_zero_attn
        self.head_dim = embed_dim // num_heads
        if self.head_dim * num_heads != embed_dim:
            raise AssertionError("embed_dim must be divisible by num_heads")
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        options = {"device": device, "dtype": dtype}
        same = self._qkv_same_embed_dim
        shapes = {
            "q_proj_weight": None if same else (embed_dim, embed_dim),
            "k_proj_weight": None if same else (embed_dim, self.kdim),
            "v_proj_weight": None if same else (embed_dim, self.vdim),
            "in_proj_weight": (3 * embed_dim, embed_dim) if same else None,
            "in_proj_bias": (3 * embed_dim,) if bias else None,
        }
        self._register(shapes, options)
        self.out_proj = NonDynamicallyQuantizableLinear(embed_dim, embed_dim, bias=bias, **options)
        added = (1, 1, embed_dim) if add_bias_kv else None
        self._register({"bias_k": added, "bias_v": added}, options)
        self._reset_parameters()

    def _register(self, shapes: dict[str, Any], options: dict[str, Any]) -> None:
        for name, shape in shapes.items():
            value = None if shape is None else Parameter(empty(shape, **options))
            self.register_parameter(name, value)

    def _reset_parameters(self) -> None:
        for weight in (
            self.in_proj_weight,
            self.q_proj_weight,
            self.k_proj_weight,
            self.v_proj_weight,
        ):
            if weight is not None:
                init.xavier_uniform_(weight)
        if self.in_proj_bias is not None and self.out_proj.bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        for added in (self.bias_k, self.bias_v):
            if added is not None:
                init.xavier_normal_(added)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of the queries over the keys and values.

        Args:
            query: (L, N, E), or (L, E) without a batch; (N, L, E) with `batch_first`.
            key: (S, N, kdim).
            value: (S, N, vdim).
            key_padding_mask: (N, S); True (or minus infinity) positions get no attention.
            need_weights: whether the weights are returned.
            attn_mask: (L, S) or (N * heads, L, S); True positions get no attention, numbers are added.
            average_attn_weights: whether they are averaged over the heads.
            is_causal: `attn_mask` is the causal mask.

        Returns:
            (L, N, E), and the weights (N, L, S) or (N, heads, L, S), or None.

        Raises:
            AssertionError: sizes that do not fit.
            RuntimeError: masks that do not fit.
        """
        self._check(query, key, value, key_padding_mask, attn_mask, is_causal)
        batched = query.ndim == 3
        if not batched:
            query, key, value = (t.unsqueeze(1) for t in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif self.batch_first:
            query, key, value = _all(lambda t: t.transpose(0, 1), query, key, value)
        mask, causal = attn_mask, False
        if is_causal and key_padding_mask is None and not need_weights:
            mask, causal = None, True
        out, weights = self._attend(query, key, value, mask, key_padding_mask, need_weights, causal)
        if weights is not None:
            if average_attn_weights:
                weights = weights.mean(1)
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return out.squeeze(1), weights
        return (out.transpose(0, 1) if self.batch_first else out), weights

    def _check(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        mask: Tensor | None,
        is_causal: bool,
    ) -> None:
        if query.ndim not in (2, 3):
            raise AssertionError(
                f"query should be unbatched 2D or batched 3D tensor but received {query.ndim}-D query tensor"
            )
        kind = "batched" if query.ndim == 3 else "unbatched"
        if not query.ndim == key.ndim == value.ndim:
            raise AssertionError(
                f"For {kind} (query {query.ndim}-D) attention, expected key and value to be {query.ndim}-D but found "
                f"{key.ndim}-D and {value.ndim}-D tensors respectively"
            )
        if padding is not None and padding.ndim != query.ndim - 1:
            raise AssertionError(
                f"For {kind} attention, expected key_padding_mask to be None or {query.ndim - 1}-D but found "
                f"{padding.ndim}-D tensor instead"
            )
        if query.shape[-1] != self.embed_dim:
            raise AssertionError(
                f"was expecting embedding dimension of {self.embed_dim}, but got {query.shape[-1]}"
            )
        if self._qkv_same_embed_dim and key.shape != value.shape:
            raise AssertionError(f"key shape {key.shape} does not match value shape {value.shape}")
        if key.shape[:-1] != value.shape[:-1]:
            raise AssertionError(
                f"key's sequence and batch dims {key.shape[:-1]} do not match value's {value.shape[:-1]}"
            )
        if is_causal and mask is None:
            raise RuntimeError(
                "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
                "`generate_square_subsequent_mask` to create this mask."
            )

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        biases: Any = (None, None, None)
        if self.in_proj_weight is not None:
            if query is key and key is value:
                return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_bias is not None:
            biases = self.in_proj_bias.chunk(3)
        parts = zip((query, key, value), weights, biases, strict=True)
        return tuple(F.linear(*part) for part in parts)

    def _heads(self, value: Tensor) -> Tensor:
        """(S, N, E) -> (N, heads, S, E / heads)."""
        length, n, _ = value.shape
        return value.reshape(length, n, self.num_heads, self.head_dim).permute(1, 2, 0, 3)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        padding: Tensor | None,
        need_weights: bool,
        causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        length, n, _ = query.shape
        q, k, v = self._project(query, key, value)
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = FUNCTIONS["cat"]([k, self.bias_k.expand(1, n, self.embed_dim)])
            v = FUNCTIONS["cat"]([v, self.bias_v.expand(1, n, self.embed_dim)])
            added += 1
        if self.add_zero_attn:
            zero = zeros(1, n, self.embed_dim, dtype=k.dtype)
            k, v = FUNCTIONS["cat"]([k, zero]), FUNCTIONS["cat"]([v, zero])
            added += 1
        total = self._mask(mask, padding, (length, key.shape[0], n), added, q._array.dtype)
        q, k, v = _all(self._heads, q, k, v)
        p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = Softmax.apply(scores if total is None else scores + total, -1)
            weights = F.dropout(weights, p)
            out = weights @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, total, p, causal)
        joined = out.permute(2, 0, 1, 3).reshape(length, n, self.embed_dim)
        return self.out_proj(joined), weights

    def _mask(
        self,
        mask: Tensor | None,
        padding: Tensor | None,
        sizes: tuple[int, int, int],
        added: int,
        kind: np.dtype[Any],
    ) -> Tensor | None:
        """Both masks as numbers to add, over (N, heads, L, S + added)."""
        length, source, n = sizes
        total = None
        if mask is not None:
            if mask.ndim not in (2, 3):
                raise RuntimeError(f"attn_mask's dimension {mask.ndim} is not supported")
            wanted = (length, source) if mask.ndim == 2 else (n * self.num_heads, length, source)
            if tuple(mask.shape) != wanted:
                raise RuntimeError(
                    f"The shape of the {mask.ndim}D attn_mask is {mask.shape}, but should be {wanted}."
                )
            total = F.pad(_as_numbers("attn_mask", mask, kind), (0, added))
            if mask.ndim == 3:
                total = total.reshape(n, self.num_heads, length, source + added)
        if padding is not None:
            if tuple(padding.shape) != (n, source):
                raise AssertionError(
                    f"Expected key_padded_mask.shape equal to {(n, source)}, but got {tuple(padding.shape)}"
                )
            numbers = F.pad(_as_numbers("key_padding_mask", padding, kind), (0, added))
            numbers = numbers.reshape(n, 1, 1, source + added)
            total = numbers if total is None else total + numbers
        return total


def _all(function: Any, *values: Tensor) -> tuple[Tensor, ...]:
    """The function of each value; values that are one and the same stay so."""
    done: dict[int, Tensor] = {}
    for value in values:
        if id(value) not in done:
            done[id(value)] = function(value)
    return tuple(done[id(value)] for value in values)


def _as_numbers(name: str, mask: Tensor, kind: np.dtype[Any]) -> Tensor:
    """A mask as numbers to add: True becomes minus infinity."""
    if mask.dtype.name == "bool":
        return wrap(np.where(mask._array, -np.inf, 0).astype(kind))
    if not mask.is_floating_point():
        raise AssertionError(
            f"only bool and floating types of {name} are supported, got {mask.dtype}"
        )
    return mask if mask._array.dtype == kind else mask.to(kind)
