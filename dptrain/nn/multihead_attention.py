"""Multi-head attention.

Source: Vaswani et al., "Attention is all you need", 2017.
"""

from __future__ import annotations

from typing import Any

from dptrain.core.creation import empty
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.functional.multihead_attention import of_each
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
        batched = query.ndim == 3
        if self.batch_first and batched:
            query, key, value = of_each(lambda t: t.transpose(0, 1), query, key, value)
        out, weights = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return (out.transpose(0, 1) if self.batch_first and batched else out), weights
