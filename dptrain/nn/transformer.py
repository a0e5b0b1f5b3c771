"""Stacks of encoder and decoder layers, and the whole transformer.

Source: Vaswani et al., "Attention is all you need", 2017.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from dptrain.core.device import as_device
from dptrain.core.dtypes import as_dtype, get_default_dtype
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.container import ModuleList
from dptrain.nn.module import Module
from dptrain.nn.normalization import LayerNorm
from dptrain.nn.transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer


def _causal(size: int, kind: Any) -> Tensor:
    return wrap(np.triu(np.full((size, size), -np.inf, dtype=kind), k=1))


def _is_causal(mask: Tensor | None, given: bool | None, size: int) -> bool:
    """What was said; or, if nothing was, whether the mask is the causal one."""
    if given is not None or mask is None:
        return bool(given)
    if not mask.is_floating_point() or tuple(mask.shape) != (size, size):
        return False
    return bool(mask.eq(_causal(size, mask._array.dtype).to(mask.device)).all())


def _length(value: Tensor, layers: ModuleList) -> int:
    first = layers[0].self_attn.batch_first
    return int(value.shape[1 if value.ndim == 3 and first else 0])


class TransformerEncoder(Module):
    """A stack of encoder layers.

    Args:
        encoder_layer: the layer, which is copied.
        num_layers: how many of them.
        norm: applied to the result.
        enable_nested_tensor, mask_check: accepted for PyTorch's sake; there is one implementation.
    """

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm
        self.enable_nested_tensor, self.mask_check = enable_nested_tensor, mask_check

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """(S, N, E) -> the same."""
        causal = _is_causal(mask, is_causal, _length(src, self.layers))
        out = src
        for layer in self.layers:
            out = layer(
                out,
                src_mask=mask,
                src_key_padding_mask=src_key_padding_mask,
                is_causal=causal,
            )
        return out if self.norm is None else self.norm(out)


class TransformerDecoder(Module):
    """A stack of decoder layers.

    Args:
        decoder_layer: the layer, which is copied.
        num_layers: how many of them.
        norm: applied to the result.
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(decoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """(T, N, E) over a memory (S, N, E) -> (T, N, E)."""
        causal = _is_causal(tgt_mask, tgt_is_causal, _length(tgt, self.layers))
        out = tgt
        for layer in self.layers:
            out = layer(
                out,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=causal,
                memory_is_causal=memory_is_causal,
            )
        return out if self.norm is None else self.norm(out)


class Transformer(Module):
    """An encoder and a decoder.

    Args:
        d_model: size of each element of the sequences.
        nhead: heads of the attentions.
        num_encoder_layers, num_decoder_layers: how many layers.
        dim_feedforward: size of the hidden layers.
        dropout: probability of an element to be dropped.
        activation: of the hidden layers: "relu", "gelu" or a function.
        custom_encoder, custom_decoder: modules in their places.
        layer_norm_eps: added to the variance in the norms.
        batch_first: sequences are (N, S, E), not (S, N, E).
        norm_first: normalise before each block, not after it.
        bias: whether the layers have one.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Any = F.relu,
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        sizes = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps)
        rest = (batch_first, norm_first, bias, device, dtype)

        def norm() -> LayerNorm:
            return LayerNorm(d_model, eps=layer_norm_eps, bias=bias, **options)

        self.encoder: Module
        if custom_encoder is not None:
            self.encoder = custom_encoder
        else:
            encoding = TransformerEncoderLayer(*sizes, *rest)
            self.encoder = TransformerEncoder(encoding, num_encoder_layers, norm())
        self.decoder: Module
        if custom_decoder is not None:
            self.decoder = custom_decoder
        else:
            decoding = TransformerDecoderLayer(*sizes, *rest)
            self.decoder = TransformerDecoder(decoding, num_decoder_layers, norm())
        for parameter in self.parameters():
            if parameter.ndim > 1:
                init.xavier_uniform_(parameter)
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """(S, N, E) and (T, N, E) -> (T, N, E).

        Raises:
            RuntimeError: batches or features that do not fit.
        """
        batch = 0 if self.batch_first else 1
        if src.ndim == 3 and src.shape[batch] != tgt.shape[batch]:
            raise RuntimeError("the batch number of src and tgt must be equal")
        if src.shape[-1] != self.d_model or tgt.shape[-1] != self.d_model:
            raise RuntimeError("the feature number of src and tgt must be equal to d_model")
        memory = self.encoder(
            src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
        )
        return self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Tensor:
        """The causal mask: (sz, sz), minus infinity above the diagonal and 0 elsewhere."""
        kind = get_default_dtype() if dtype is None else as_dtype(dtype)
        return _causal(sz, kind.numpy).to(as_device(device))
