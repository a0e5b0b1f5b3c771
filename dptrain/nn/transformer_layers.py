"""Encoder and decoder layers of a transformer; their stacks are in `transformer.py`.

Source: Vaswani et al., "Attention is all you need", 2017; `norm_first`: Xiong et al., "On layer
normalization in the transformer architecture", 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

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
    """Attentions and a feed-forward block, each with a residual and a norm.

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

    #: The names of the attentions, in the order in which they run.
    attentions: ClassVar[tuple[str, ...]]

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
        options: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        for name in self.attentions:
            made = MultiheadAttention(
                d_model, nhead, dropout=dropout, batch_first=batch_first, **options
            )
            setattr(self, name, made)
        self.linear1 = Linear(d_model, dim_feedforward, **options)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, **options)
        self.norm_first = norm_first
        blocks = range(1, len(self.attentions) + 2)
        for i in blocks:
            setattr(self, f"norm{i}", LayerNorm(d_model, eps=layer_norm_eps, **options))
        for i in blocks:
            setattr(self, f"dropout{i}", Dropout(dropout))
        self.activation = _activation(activation)

    def _run(self, x: Tensor, *blocks: Callable[[Tensor], Tensor]) -> Tensor:
        """The blocks and at last the feed-forward block, with their residuals, dropouts and norms."""
        for i, block in enumerate((*blocks, self._feed_forward), start=1):
            norm, drop = getattr(self, f"norm{i}"), getattr(self, f"dropout{i}")
            x = x + drop(block(norm(x))) if self.norm_first else norm(x + drop(block(x)))
        return x

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class TransformerEncoderLayer(_Layer):
    __doc__ = f"A layer of an encoder, with self-attention. {_Layer.__doc__}"
    attentions = ("self_attn",)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(S, N, E) -> the same; the masks are those of `MultiheadAttention`."""

        def attend(x: Tensor) -> Tensor:
            return _attend(self.self_attn, x, x, src_mask, src_key_padding_mask, is_causal)

        return self._run(src, attend)


class TransformerDecoderLayer(_Layer):
    __doc__ = f"A layer of a decoder: self-attention, then attention over the encoder's result. {_Layer.__doc__}"
    attentions = ("self_attn", "multihead_attn")

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
            return _attend(self.self_attn, x, x, tgt_mask, tgt_key_padding_mask, tgt_is_causal)

        def recall(x: Tensor) -> Tensor:
            masks = (memory_mask, memory_key_padding_mask, memory_is_causal)
            return _attend(self.multihead_attn, x, memory, *masks)

        return self._run(tgt, attend, recall)


def _attend(
    attention: Module,
    x: Tensor,
    memory: Tensor,
    mask: Tensor | None,
    padding: Tensor | None,
    is_causal: bool,
) -> Tensor:
    result: Tensor = attention(
        x,
        memory,
        memory,
        key_padding_mask=padding,
        need_weights=False,
        attn_mask=mask,
        is_causal=is_causal,
    )[0]
    return result
