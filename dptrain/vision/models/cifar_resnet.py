"""ResNets for 32x32 images. Source: K. He et al., "Deep residual learning for image recognition", 2015, section 4.2."""

from __future__ import annotations

from typing import Any

from dptrain import nn
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.vision.models.initial import he_normal
from dptrain.vision.models.registry import register_model
from dptrain.vision.models.resnet import BasicBlock

__all__ = ["CifarResNet", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"]


class _PadShortcut(nn.Module):
    """The paper's shortcut without parameters (option A): every second pixel, new channels are 0."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H/2, W/2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class CifarResNet(nn.Module):
    """A convolution, three stages of basic blocks and a linear layer: (N, 3, H, W) -> (N, num_classes).

    Args:
        depth: layers with weights; 6 n + 2 for n blocks per stage.
        num_classes: outputs.

    Raises:
        ValueError: a depth that is not 6 n + 2.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth should be 6 n + 2 for n blocks per stage, got {depth}")
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, num_classes)
        he_normal(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        first = (
            BasicBlock(inputs, outputs)
            if inputs == outputs
            else BasicBlock(inputs, outputs, 2, _PadShortcut(inputs, outputs))
        )
        return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


@register_model()
def resnet20(**kwargs: Any) -> CifarResNet:
    """ResNet of 20 layers for 32x32 images; `kwargs` are the class's arguments."""
    return CifarResNet(20, **kwargs)


@register_model()
def resnet32(**kwargs: Any) -> CifarResNet:
    """ResNet of 32 layers for 32x32 images; `kwargs` are the class's arguments."""
    return CifarResNet(32, **kwargs)


@register_model()
def resnet44(**kwargs: Any) -> CifarResNet:
    """ResNet of 44 layers for 32x32 images; `kwargs` are the class's arguments."""
    return CifarResNet(44, **kwargs)


@register_model()
def resnet56(**kwargs: Any) -> CifarResNet:
    """ResNet of 56 layers for 32x32 images; `kwargs` are the class's arguments."""
    return CifarResNet(56, **kwargs)


@register_model()
def resnet110(**kwargs: Any) -> CifarResNet:
    """ResNet of 110 layers for 32x32 images; `kwargs` are the class's arguments."""
    return CifarResNet(110, **kwargs)
