"""Attention as one operation, where a fused kernel serves it."""

from __future__ import annotations

from typing import Any

from dptrain.core.kernels.cuda import attention as fused
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor


class _UnservedError(Exception):
    """No kernel computes this; nothing was recorded."""


class FusedAttention(Op):
    """softmax(query key^T * scale + causal mask) value by cuDNN."""

    name = "scaled_dot_product_attention"
    backward_name = "ScaledDotProductCudnnAttentionBackward0"
    num_tensors = 3

    def forward(self, query: Any, key: Any, value: Any, *, described: Any) -> Any:
        found = fused.forward(described, query, key, value)
        if found is None:
            raise _UnservedError
        self.described = described
        self.out, self.stats = found
        return self.out

    def backward(self, grad: Any, query: Any, key: Any, value: Any) -> Any:
        if isinstance(grad, Tensor):
            raise RuntimeError(
                "scaled_dot_product_attention by cuDNN has no second derivative; for create_graph=True turn it off: "
                "dptrain.backends.cuda.enable_cudnn_sdp(False)"
            )
        return fused.backward(self.described, (query, key, value, self.out, grad, self.stats))


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
) -> Tensor | None:
    """The attention of tensors on a GPU by one kernel; None where none serves it."""
    described = fused.describe(query._array, key._array, value._array, scale, causal)
    if described is None:
        return None
    try:
        out: Tensor = FusedAttention.apply(query, key, value, described=described)
    except _UnservedError:
        return None
    return out
