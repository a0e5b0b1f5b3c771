"""VGG. Source: K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014."""

from __future__ import annotations

from typing import Any

from dptrain import nn
from dptrain.core.tensor import Tensor
from dptrain.vision.models.initial import he_normal
from dptrain.vision.models.registry import register_model
from dptrain.vision.models.weights import published

__all__ = [
    "VGG",
    "VGG11_BN_Weights",
    "VGG11_Weights",
    "VGG13_BN_Weights",
    "VGG13_Weights",
    "VGG16_BN_Weights",
    "VGG16_Weights",
    "VGG19_BN_Weights",
    "VGG19_Weights",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]

VGG11_Weights = published("VGG11_Weights", 132_863_336, "vgg11-8a719046.pth")
VGG11_BN_Weights = published("VGG11_BN_Weights", 132_868_840, "vgg11_bn-6002323d.pth")
VGG13_Weights = published("VGG13_Weights", 133_047_848, "vgg13-19584684.pth")
VGG13_BN_Weights = published("VGG13_BN_Weights", 133_053_736, "vgg13_bn-abd245e5.pth")
VGG16_Weights = published("VGG16_Weights", 138_357_544, "vgg16-397923af.pth")
VGG16_BN_Weights = published("VGG16_BN_Weights", 138_365_992, "vgg16_bn-6c64b313.pth")
VGG19_Weights = published("VGG19_Weights", 143_667_240, "vgg19-dcbb9e9d.pth")
VGG19_BN_Weights = published("VGG19_BN_Weights", 143_678_248, "vgg19_bn-c79401a0.pth")

_WIDTHS = (64, 128, 256, 512, 512)
#: Convolutions of each of the five stages; a stage ends with a pooling that halves the size.
_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Stages of 3x3 convolutions and three linear layers: (N, 3, H, W) -> (N, num_classes), H, W from 32.

    Args:
        features: the convolutions, ending with 512 channels.
        num_classes: outputs.
        init_weights: draw the values by the architecture's own rule, else keep the layers'.
        dropout: probability after the first two linear layers.
    """

    def __init__(
        self,
        features: nn.Module,
        num_classes: int = 1000,
        init_weights: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(True),
            nn.Dropout(p=dropout),
            nn.Linear(4096, num_classes),
        )
        if init_weights:
            he_normal(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _vgg(depth: int, batch_norm: bool, **kwargs: Any) -> VGG:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in zip(_WIDTHS, _DEPTHS[depth], strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(channels, width, kernel_size=3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return VGG(nn.Sequential(*layers), **kwargs)


@register_model(VGG11_Weights)
def vgg11(**kwargs: Any) -> VGG:
    """VGG of 11 layers; `kwargs` are the class's arguments but `features`."""
    return _vgg(11, batch_norm=False, **kwargs)


@register_model(VGG11_BN_Weights)
def vgg11_bn(**kwargs: Any) -> VGG:
    """VGG of 11 layers with batch normalisation; `kwargs` are the class's arguments but `features`."""
    return _vgg(11, batch_norm=True, **kwargs)


@register_model(VGG13_Weights)
def vgg13(**kwargs: Any) -> VGG:
    """VGG of 13 layers; `kwargs` are the class's arguments but `features`."""
    return _vgg(13, batch_norm=False, **kwargs)


@register_model(VGG13_BN_Weights)
def vgg13_bn(**kwargs: Any) -> VGG:
    """VGG of 13 layers with batch normalisation; `kwargs` are the class's arguments but `features`."""
    return _vgg(13, batch_norm=True, **kwargs)


@register_model(VGG16_Weights)
def vgg16(**kwargs: Any) -> VGG:
    """VGG of 16 layers; `kwargs` are the class's arguments but `features`."""
    return _vgg(16, batch_norm=False, **kwargs)


@register_model(VGG16_BN_Weights)
def vgg16_bn(**kwargs: Any) -> VGG:
    """VGG of 16 layers with batch normalisation; `kwargs` are the class's arguments but `features`."""
    return _vgg(16, batch_norm=True, **kwargs)


@register_model(VGG19_Weights)
def vgg19(**kwargs: Any) -> VGG:
    """VGG of 19 layers; `kwargs` are the class's arguments but `features`."""
    return _vgg(19, batch_norm=False, **kwargs)


@register_model(VGG19_BN_Weights)
def vgg19_bn(**kwargs: Any) -> VGG:
    """VGG of 19 layers with batch normalisation; `kwargs` are the class's arguments but `features`."""
    return _vgg(19, batch_norm=True, **kwargs)
