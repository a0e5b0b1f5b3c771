"""Vision Transformer. Source: A. Dosovitskiy et al., "An image is worth 16x16 words", 2020."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import dptrain
from dptrain import nn
from dptrain.core.tensor import Tensor
from dptrain.nn import init
from dptrain.vision.models.registry import register_model
from dptrain.vision.models.weights import published
from dptrain.vision.ops import MLP

__all__ = [
    "ViT_B_16_Weights",
    "ViT_B_32_Weights",
    "ViT_L_16_Weights",
    "ViT_L_32_Weights",
    "VisionTransformer",
    "vit_b_16",
    "vit_b_32",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
]

ViT_B_16_Weights = published("ViT_B_16_Weights", 86_567_656, "vit_b_16-c867db91.pth")
ViT_B_32_Weights = published("ViT_B_32_Weights", 88_224_232, "vit_b_32-d86f8d99.pth")
ViT_L_16_Weights = published(
    "ViT_L_16_Weights", 304_326_632, "vit_l_16-852ce7e3.pth", resize_size=242
)
ViT_L_32_Weights = published("ViT_L_32_Weights", 306_535_400, "vit_l_32-c7638314.pth")

_Norm = Callable[[int], nn.Module]
_LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)


class MLPBlock(MLP):
    """The two linear layers of an encoder block: (N, S, in_dim) -> (N, S, in_dim)."""

    def __init__(self, in_dim: int, mlp_dim: int, dropout: float) -> None:
        super().__init__(in_dim, [mlp_dim, in_dim], activation_layer=nn.GELU, dropout=dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.xavier_uniform_(module.weight)
                init.normal_(module.bias, std=1e-6)  # type: ignore[arg-type]  # it has one


class EncoderBlock(nn.Module):
    """Attention and an MLP, each after a normalisation and around a shortcut: (N, S, hidden_dim)."""

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float,
        attention_dropout: float,
        norm_layer: _Norm,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ln_1 = norm_layer(hidden_dim)
        self.self_attention = nn.MultiheadAttention(
            hidden_dim, num_heads, dropout=attention_dropout, batch_first=True
        )
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = norm_layer(hidden_dim)
        self.mlp = MLPBlock(hidden_dim, mlp_dim, dropout)

    def forward(self, input: Tensor) -> Tensor:
        """(N, S, hidden_dim) -> (N, S, hidden_dim)."""
        if input.dim() != 3:
            raise RuntimeError(
                f"Expected (batch_size, seq_length, hidden_dim) got {tuple(input.shape)}"
            )
        normed = self.ln_1(input)
        attended, _ = self.self_attention(normed, normed, normed, need_weights=False)
        x = self.dropout(attended) + input
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Positions are added, then come the blocks and a normalisation: (N, seq_length, hidden_dim)."""

    def __init__(
        self,
        seq_length: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float,
        attention_dropout: float,
        norm_layer: _Norm,
    ) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(dptrain.empty(1, seq_length, hidden_dim))
        init.normal_(self.pos_embedding, std=0.02)
        self.dropout = nn.Dropout(dropout)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for position in range(num_layers):
            layers[f"encoder_layer_{position}"] = EncoderBlock(
                num_heads, hidden_dim, mlp_dim, dropout, attention_dropout, norm_layer
            )
        self.layers = nn.Sequential(layers)
        self.ln = norm_layer(hidden_dim)

    def forward(self, input: Tensor) -> Tensor:
        """(N, seq_length, hidden_dim) -> (N, seq_length, hidden_dim)."""
        if input.dim() != 3:
            raise RuntimeError(
                f"Expected (batch_size, seq_length, hidden_dim) got {tuple(input.shape)}"
            )
        return self.ln(self.layers(self.dropout(input + self.pos_embedding)))


class VisionTransformer(nn.Module):
    """Patches, a class token and a transformer: (N, 3, image_size, image_size) -> (N, num_classes).

    Args:
        image_size: height and width of the images.
        patch_size: height and width of a patch; divides `image_size`.
        num_layers: encoder blocks.
        num_heads: attention heads of each.
        hidden_dim: features of a patch.
        mlp_dim: features in the middle of a block's MLP.
        dropout: probability after the positions, the attention and the linear layers.
        attention_dropout: probability on the attention's weights.
        num_classes: outputs.
        representation_size: features of a layer before the last one; None for no such layer.
        norm_layer: makes the normalisations.

    Raises:
        ValueError: patches that do not tile the image.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        mlp_dim: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        num_classes: int = 1000,
        representation_size: int | None = None,
        norm_layer: _Norm = _LAYER_NORM,
    ) -> None:
        super().__init__()
        if image_size % patch_size != 0:
            raise ValueError(
                f"Input shape indivisible by patch size! image_size={image_size}, patch_size={patch_size}"
            )
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_dim = hidden_dim
        self.mlp_dim = mlp_dim
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.num_classes = num_classes
        self.representation_size = representation_size
        self.norm_layer = norm_layer
        self.conv_proj = nn.Conv2d(3, hidden_dim, kernel_size=patch_size, stride=patch_size)
        self.seq_length = (image_size // patch_size) ** 2 + 1
        self.class_token = nn.Parameter(dptrain.zeros(1, 1, hidden_dim))
        self.encoder = Encoder(
            self.seq_length,
            num_layers,
            num_heads,
            hidden_dim,
            mlp_dim,
            dropout,
            attention_dropout,
            norm_layer,
        )
        heads: OrderedDict[str, nn.Module] = OrderedDict()
        features = hidden_dim
        if representation_size is not None:
            pre_logits = nn.Linear(hidden_dim, representation_size)
            init.trunc_normal_(pre_logits.weight, std=math.sqrt(1 / hidden_dim))
            init.zeros_(pre_logits.bias)  # type: ignore[arg-type]  # it has one
            heads["pre_logits"], heads["act"] = pre_logits, nn.Tanh()
            features = representation_size
        head = heads["head"] = nn.Linear(features, num_classes)
        self.heads = nn.Sequential(heads)
        fan_in = 3 * patch_size**2
        init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / fan_in))
        for start_at_zero in (self.conv_proj.bias, head.weight, head.bias):
            init.zeros_(start_at_zero)  # type: ignore[arg-type]  # there are biases

    def _process_input(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) -> (N, patches, hidden_dim)."""
        height, width = x.shape[-2:]
        for name, found in (("height", height), ("width", width)):
            if found != self.image_size:
                raise RuntimeError(
                    f"Wrong image {name}! Expected {self.image_size} but got {found}!"
                )
        return self.conv_proj(x).flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, image_size, image_size) -> (N, num_classes)."""
        x = self._process_input(x)
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = self.encoder(dptrain.cat([token, x], 1))
        return self.heads(x[:, 0])


def _vit(sizes: tuple[int, int, int, int, int], kwargs: dict[str, Any]) -> VisionTransformer:
    return VisionTransformer(kwargs.pop("image_size", 224), *sizes, **kwargs)


@register_model(ViT_B_16_Weights)
def vit_b_16(**kwargs: Any) -> VisionTransformer:
    """Base Vision Transformer on patches of 16; `kwargs` are the class's arguments (`image_size` is 224)."""
    return _vit((16, 12, 12, 768, 3072), kwargs)


@register_model(ViT_B_32_Weights)
def vit_b_32(**kwargs: Any) -> VisionTransformer:
    """Base Vision Transformer on patches of 32; `kwargs` are the class's arguments (`image_size` is 224)."""
    return _vit((32, 12, 12, 768, 3072), kwargs)


@register_model(ViT_L_16_Weights)
def vit_l_16(**kwargs: Any) -> VisionTransformer:
    """Large Vision Transformer on patches of 16; `kwargs` are the class's arguments (`image_size` is 224)."""
    return _vit((16, 24, 16, 1024, 4096), kwargs)


@register_model(ViT_L_32_Weights)
def vit_l_32(**kwargs: Any) -> VisionTransformer:
    """Large Vision Transformer on patches of 32; `kwargs` are the class's arguments (`image_size` is 224)."""
    return _vit((32, 24, 16, 1024, 4096), kwargs)


@register_model()
def vit_h_14(**kwargs: Any) -> VisionTransformer:
    """Huge Vision Transformer on patches of 14; `kwargs` are the class's arguments (`image_size` is 224)."""
    return _vit((14, 32, 16, 1280, 5120), kwargs)
