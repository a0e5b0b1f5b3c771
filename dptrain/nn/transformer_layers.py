"""Encoder and decoder layers of a transformer; their stacks are in `transformer.py`.

Source: Vaswani et al., "Attention is all you need", 2017; `norm_first`: Xiong et al., "On layer
normalization in the transformer architecture", 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn.dropout import Dropout
from dptrain.nn.linear import Linear
from dptrain.nn.module import Module
from dptrain.nn.multihead_attention import MultiheadAttention
from dptrain.nn.normalization import LayerNorm


def _activation(activation: Any) -> Callable[[Tensor], Tensor]:
    if not isinstance(activation, str):
        return activation
    if activation not in ("relu", "gelu"):
        raise RuntimeError(f"activation should be relu/gelu, not {activation}")
    return getattr(F, activation)


class _Layer(Module):
    """The feed-forward block that both kinds of layers end with."""

    def _build(
        self,
        d_model: int,
        dim_feedforward: int,
        dropout: float,
        activation: Any,
        eps: float,
        norm_first: bool,
        bias: bool,
        options: dict[str, Any],
        count: int,
    ) -> None:
        self.linear1 = Linear(d_model, dim_feedforward, bias=bias, **options)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias=bias, **options)
        self.norm_first = norm_first
        for i in range(1, count + 1):
            setattr(self, f"norm{i}", LayerNorm(d_model, eps=eps, bias=bias, **options))
        for i in range(1, count + 1):
            setattr(self, f"dropout{i}", Dropout(dropout))
        self.activation = _activation(activation)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward block, each with a residual and a norm.

    Args:
        d_model: size of each element of the sequence.
        nhead: heads of the attention.
        dim_feedforward: size of the hidden layer.
        dropout: probability of an element to be dropped.
        activation: of the hidden layer: "relu", "gelu" or a function.
        layer_norm_eps: added to the variance in the norms.
        batch_first: sequences are (N, S, E), not (S, N, E).
        norm_first: normalise before each block, not after it.
        bias: whether the layers have one.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout=dropout, bias=bias, batch_first=batch_first, **options
        )
        self._build(
            d_model,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            norm_first,
            bias,
            options,
            2,
        )

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(S, N, E) -> the same; the masks are those of `MultiheadAttention`."""

        def attend(x: Tensor) -> Tensor:
            found = self.self_attn(
                x,
                x,
                x,
                attn_mask=src_mask,
                key_padding_mask=src_key_padding_mask,
                need_weights=False,
                is_causal=is_causal,
            )
            return self.dropout1(found[0])

        if self.norm_first:
            x = src + attend(self.norm1(src))
            return x + self.dropout2(self._feed_forward(self.norm2(x)))
        x = self.norm1(src + attend(src))
        return self.norm2(x + self.dropout2(self._feed_forward(x)))


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention over the encoder's result, and a feed-forward block.

    Args:
        d_model: size of each element of the sequence.
        nhead: heads of the attentions.
        dim_feedforward: size of the hidden layer.
        dropout: probability of an element to be dropped.
        activation: of the hidden layer: "relu", "gelu" or a function.
        layer_norm_eps: added to the variance in the norms.
        batch_first: sequences are (N, S, E), not (S, N, E).
        norm_first: normalise before each block, not after it.
        bias: whether the layers have one.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        for name in ("self_attn", "multihead_attn"):
            made = MultiheadAttention(
                d_model, nhead, dropout=dropout, batch_first=batch_first, bias=bias, **options
            )
            setattr(self, name, made)
        self._build(
            d_model,
            dim_feedforward,
            dropout,
            activation,
            layer_norm_eps,
            norm_first,
            bias,
            options,
            3,
        )

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """(T, N, E) over a memory (S, N, E) -> (T, N, E); the masks are those of `MultiheadAttention`."""

        def attend(x: Tensor) -> Tensor:
            found = self.self_attn(
                x,
                x,
                x,
                attn_mask=tgt_mask,
                key_padding_mask=tgt_key_padding_mask,
                is_causal=tgt_is_causal,
                need_weights=False,
            )
            return self.dropout1(found[0])

        def recall(x: Tensor) -> Tensor:
            found = self.multihead_attn(
                x,
                memory,
                memory,
                attn_mask=memory_mask,
                key_padding_mask=memory_key_padding_mask,
                is_causal=memory_is_causal,
                need_weights=False,
            )
            return self.dropout2(found[0])

        if self.norm_first:
            x = tgt + attend(self.norm1(tgt))
            x = x + recall(self.norm2(x))
            return x + self.dropout3(self._feed_forward(self.norm3(x)))
        x = self.norm1(tgt + attend(tgt))
        x = self.norm2(x + recall(x))
        return self.norm3(x + self.dropout3(self._feed_forward(x)))
