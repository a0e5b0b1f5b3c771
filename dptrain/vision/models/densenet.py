"""DenseNet. Source: G. Huang et al., "Densely connected convolutional networks", 2016."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import dptrain
from dptrain import nn
from dptrain.core.recompute import checkpoint
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.vision.models.registry import register_model
from dptrain.vision.models.weights import published

__all__ = [
    "DenseNet",
    "DenseNet121_Weights",
    "DenseNet161_Weights",
    "DenseNet169_Weights",
    "DenseNet201_Weights",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
]

DenseNet121_Weights = published("DenseNet121_Weights", 7_978_856, "densenet121-a639ec97.pth")
DenseNet161_Weights = published("DenseNet161_Weights", 28_681_000, "densenet161-8d451a50.pth")
DenseNet169_Weights = published("DenseNet169_Weights", 14_149_480, "densenet169-b2777c0a.pth")
DenseNet201_Weights = published("DenseNet201_Weights", 20_013_928, "densenet201-c1103571.pth")


class _DenseLayer(nn.Module):
    """New features from all that came before: a list of (N, C_i, H, W) -> (N, growth_rate, H, W)."""

    def __init__(
        self,
        num_input_features: int,
        growth_rate: int,
        bn_size: int,
        drop_rate: float,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(num_input_features)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(num_input_features, bn_size * growth_rate, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bn_size * growth_rate)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bn_size * growth_rate, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = float(drop_rate)
        self.memory_efficient = memory_efficient

    def _bottleneck(self, *features: Tensor) -> Tensor:
        return self.conv1(self.relu1(self.norm1(dptrain.cat(features, 1))))

    def forward(self, input: Tensor | Sequence[Tensor]) -> Tensor:
        """Features so far, in one tensor or several -> (N, growth_rate, H, W)."""
        features = [input] if isinstance(input, Tensor) else list(input)
        if self.memory_efficient and any(feature.requires_grad for feature in features):
            narrow = checkpoint(self._bottleneck, *features, use_reentrant=False)
        else:
            narrow = self._bottleneck(*features)
        new = self.conv2(self.relu2(self.norm2(narrow)))
        return F.dropout(new, self.drop_rate, self.training) if self.drop_rate > 0 else new


class _DenseBlock(nn.ModuleDict):
    """Dense layers one after the other: (N, C, H, W) -> (N, C + layers * growth_rate, H, W)."""

    def __init__(
        self,
        num_layers: int,
        num_input_features: int,
        bn_size: int,
        growth_rate: int,
        drop_rate: float,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        for position in range(num_layers):
            channels = num_input_features + position * growth_rate
            layer = _DenseLayer(channels, growth_rate, bn_size, drop_rate, memory_efficient)
            self.add_module(f"denselayer{position + 1}", layer)

    def forward(self, init_features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + layers * growth_rate, H, W)."""
        features = [init_features]
        for layer in self.values():
            features.append(layer(features))
        return dptrain.cat(features, 1)


class _Transition(nn.Sequential):
    """Fewer channels, half the size: (N, C, H, W) -> (N, num_output_features, H/2, W/2)."""

    def __init__(self, num_input_features: int, num_output_features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_input_features)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(num_input_features, num_output_features, 1, bias=False)
        self.pool = nn.AvgPool2d(kernel_size=2, stride=2)


class DenseNet(nn.Module):
    """Dense blocks with transitions between them: (N, 3, H, W) -> (N, num_classes), H, W from 32.

    Args:
        growth_rate: channels that a layer adds.
        block_config: layers of each block.
        num_init_features: channels of the first convolution.
        bn_size: channels of a layer's bottleneck, in growth rates.
        drop_rate: probability of dropout after each layer.
        num_classes: outputs.
        memory_efficient: compute the bottlenecks again in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
        num_init_features: int = 64,
        bn_size: int = 4,
        drop_rate: float = 0,
        num_classes: int = 1000,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        add = self.features.add_module
        add("conv0", nn.Conv2d(3, num_init_features, 7, stride=2, padding=3, bias=False))
        add("norm0", nn.BatchNorm2d(num_init_features))
        add("relu0", nn.ReLU(inplace=True))
        add("pool0", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        channels = num_init_features
        for position, layers in enumerate(block_config, 1):
            block = _DenseBlock(layers, channels, bn_size, growth_rate, drop_rate, memory_efficient)
            add(f"denseblock{position}", block)
            channels += layers * growth_rate
            if position < len(block_config):
                add(f"transition{position}", _Transition(channels, channels // 2))
                channels //= 2
        add("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        self._draw()

    def _draw(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                init.zeros_(module.bias)  # type: ignore[arg-type]  # it has one
            # Batch normalisations start from 1 and 0 by themselves.

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        out = F.relu(self.features(x), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(out, (1, 1)).flatten(1))


def _today(key: str) -> str:
    """The files were written when a dense layer was a Sequential with names such as "norm.1"."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)


@register_model(DenseNet121_Weights, rename=_today)
def densenet121(**kwargs: Any) -> DenseNet:
    """DenseNet of 121 layers; `kwargs` are the class's arguments."""
    return DenseNet(32, (6, 12, 24, 16), 64, **kwargs)


@register_model(DenseNet161_Weights, rename=_today)
def densenet161(**kwargs: Any) -> DenseNet:
    """DenseNet of 161 layers; `kwargs` are the class's arguments."""
    return DenseNet(48, (6, 12, 36, 24), 96, **kwargs)


@register_model(DenseNet169_Weights, rename=_today)
def densenet169(**kwargs: Any) -> DenseNet:
    """DenseNet of 169 layers; `kwargs` are the class's arguments."""
    return DenseNet(32, (6, 12, 32, 32), 64, **kwargs)


@register_model(DenseNet201_Weights, rename=_today)
def densenet201(**kwargs: Any) -> DenseNet:
    """DenseNet of 201 layers; `kwargs` are the class's arguments."""
    return DenseNet(32, (6, 12, 48, 32), 64, **kwargs)
