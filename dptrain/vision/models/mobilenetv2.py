"""MobileNet V2. Source: M. Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dptrain import nn
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.vision.models.initial import he_normal
from dptrain.vision.models.registry import register_model
from dptrain.vision.models.weights import published
from dptrain.vision.ops import Conv2dNormActivation

__all__ = ["InvertedResidual", "MobileNetV2", "MobileNet_V2_Weights", "mobilenet_v2"]

MobileNet_V2_Weights = published(
    "MobileNet_V2_Weights", 3_504_872, ["mobilenet_v2-b0353104.pth", "mobilenet_v2-7ebf99e0.pth"]
)

#: Expansion, channels, blocks and stride of each stage: table 2 of the paper.
_SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _make_divisible(value: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, but one more where that would lose over a tenth."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project: (N, inp, H, W) -> (N, oup, H/stride, W/stride).

    Args:
        inp: channels of the input.
        oup: channels of the output.
        stride: 1 or 2.
        expand_ratio: by how much the channels are expanded.
        norm_layer: makes the normalisations; batch normalisation if None.

    Raises:
        ValueError: another stride.
    """

    def __init__(
        self,
        inp: int,
        oup: int,
        stride: int,
        expand_ratio: int,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride should be 1 or 2 instead of {stride}")
        self.stride = stride
        norm = norm_layer or nn.BatchNorm2d
        hidden = round(inp * expand_ratio)
        self.use_res_connect = stride == 1 and inp == oup

        def convolve(inputs: int, kernel_size: int, **kwargs: Any) -> nn.Module:
            return Conv2dNormActivation(
                inputs, hidden, kernel_size, norm_layer=norm, activation_layer=nn.ReLU6, **kwargs
            )

        layers: list[nn.Module] = [convolve(inp, 1)] if expand_ratio != 1 else []
        layers += [
            convolve(hidden, 3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, oup, 1, 1, 0, bias=False),
            norm(oup),
        ]
        self.conv = nn.Sequential(*layers)
        self.out_channels = oup

    def forward(self, x: Tensor) -> Tensor:
        """(N, inp, H, W) -> (N, oup, H/stride, W/stride)."""
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """Inverted residuals and a linear layer: (N, 3, H, W) -> (N, num_classes).

    Args:
        num_classes: outputs.
        width_mult: multiplies the channels of every stage.
        inverted_residual_setting: expansion, channels, blocks and stride of each stage.
        round_nearest: channels are multiples of this.
        block: the block; `InvertedResidual` if None.
        norm_layer: makes the normalisations; batch normalisation if None.
        dropout: probability before the linear layer.

    Raises:
        ValueError: a setting that is no list of four numbers each.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_mult: float = 1.0,
        inverted_residual_setting: Sequence[Sequence[int]] | None = None,
        round_nearest: int = 8,
        block: Callable[..., nn.Module] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        setting = _SETTING if inverted_residual_setting is None else inverted_residual_setting
        if len(setting) == 0 or len(setting[0]) != 4:
            raise ValueError(
                "inverted_residual_setting should be non-empty or a 4-element list, got "
                f"{inverted_residual_setting}"
            )
        make, norm = block or InvertedResidual, norm_layer or nn.BatchNorm2d
        channels = _make_divisible(32 * width_mult, round_nearest)
        self.last_channel = _make_divisible(1280 * max(1.0, width_mult), round_nearest)

        def convolve(inputs: int, outputs: int, **kwargs: Any) -> nn.Module:
            return Conv2dNormActivation(
                inputs, outputs, norm_layer=norm, activation_layer=nn.ReLU6, **kwargs
            )

        features = [convolve(3, channels, stride=2)]
        for expansion, width, blocks, stride in setting:
            outputs = _make_divisible(width * width_mult, round_nearest)
            for position in range(blocks):
                step = stride if position == 0 else 1
                features.append(
                    make(channels, outputs, step, expand_ratio=expansion, norm_layer=norm)
                )
                channels = outputs
        features.append(convolve(channels, self.last_channel, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Dropout(p=dropout), nn.Linear(self.last_channel, num_classes)
        )
        he_normal(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        pooled = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(pooled.flatten(1))


@register_model(MobileNet_V2_Weights)
def mobilenet_v2(**kwargs: Any) -> MobileNetV2:
    """MobileNet V2; `kwargs` are the class's arguments."""
    return MobileNetV2(**kwargs)
