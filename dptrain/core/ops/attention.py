"""Attention by scaled dot products as one operation, where nothing has to look at its weights."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.kernels import kernels_for
from dptrain.core.kernels.cuda import cudnn_attention
from dptrain.core.op import Op
from dptrain.core.ops.activation import Softmax
from dptrain.core.ops.matmul import Matmul
from dptrain.core.ops.shape import Transpose
from dptrain.core.random import DROPOUT, default_generator
from dptrain.core.tensor import Tensor, wrap


class ScaledDotProductFlashAttentionForCpu(Op):
    """softmax(query key^T * scale) value: (..., L, E), (..., S, E), (..., S, W) -> (..., L, W)."""

    name = "scaled_dot_product_attention"
    in_float32 = True
    halves_on_gpu = True
    num_tensors: ClassVar[int] = 3

    def forward(self, query: Any, key: Any, value: Any, scale: float, causal: bool) -> Any:
        self.scale, self.causal = scale, causal
        self.order_asked = True  # as in PyTorch, heads lie beside each other if the query's do
        out, self.kept = kernels_for(query).attention(query, key, value, scale, causal)
        return out

    def backward(self, grad: Any, query: Any, key: Any, value: Any, out: Any) -> Any:
        if not any(isinstance(v, Tensor) for v in (grad, query, key, value)):
            return kernels_for(query).attention_grad(
                grad, query, key, value, out, self.kept, self.scale, self.causal
            )
        scores = Matmul.call(query * self.scale, Transpose.call(key, -1, -2))
        if self.causal:
            xp, kind = namespace_of(scores._array), scores._array.dtype
            seen = xp.tri(*scores.shape[-2:], dtype=bool)
            scores = scores + wrap(xp.where(seen, 0, -np.inf).astype(kind))
        weights = Softmax.call(scores, -1)
        slopes = Matmul.call(grad, Transpose.call(value, -1, -2))
        slopes = (slopes - (slopes * weights).sum(-1, keepdim=True)) * weights * self.scale
        return (
            Matmul.call(slopes, key),
            Matmul.call(Transpose.call(slopes, -1, -2), query),
            Matmul.call(Transpose.call(weights, -1, -2), grad),
        )


class _UnservedError(Exception):
    """No kernel computes this; nothing was recorded."""


class FusedAttention(Op):
    """dropout(softmax(query key^T * scale + mask)) value by cuDNN."""

    name = "scaled_dot_product_attention"
    backward_name = "ScaledDotProductCudnnAttentionBackward0"
    num_tensors = 3

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        scale: float,
        causal: bool,
        dropout: float,
    ) -> Any:
        self.order_asked = True  # as in PyTorch, heads lie beside each other if the query's do
        recorded = self.edges.count(None) < len(self.edges)
        if mask is not None:
            lengths = query.shape[2], key.shape[2]
            mask = cudnn_attention.bias_of(mask, lengths, query.dtype)

        def draw() -> Any:
            drawn = default_generator().uniform_beside(query, (1,), DROPOUT, np.float64)
            return drawn.view(np.int64)

        found = cudnn_attention.forward(
            query, key, value, mask, scale, causal, recorded, dropout, draw
        )
        if found is None:
            raise _UnservedError
        out, self.told = found
        return out

    def backward(self, grad: Any, query: Any, key: Any, value: Any, out: Any) -> Any:
        if isinstance(grad, Tensor):
            raise RuntimeError(
                "scaled_dot_product_attention by cuDNN has no second derivative; for create_graph=True turn it off: "
                "dptrain.backends.cuda.enable_cudnn_sdp(False)"
            )
        return cudnn_attention.backward(self.told, (query, key, value, out, grad))


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    dropout: float,
) -> Tensor | None:
    """The attention of tensors on a GPU by one kernel; None where none serves it."""
    if (mask is not None and mask._requires_grad) or not 0 <= dropout < 1:
        return None
    given = None if mask is None else mask._array
    if not cudnn_attention.serves(query._array, key._array, value._array, given):
        return None
    try:
        out: Tensor = FusedAttention.apply(query, key, value, mask, scale, causal, dropout)
    except _UnservedError:
        return None
    return out
