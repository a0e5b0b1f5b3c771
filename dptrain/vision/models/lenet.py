"""LeNet-5. Source: Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998."""

from __future__ import annotations

from typing import Any

from dptrain import nn
from dptrain.core.tensor import Tensor
from dptrain.vision.models.registry import register_model

__all__ = ["LeNet", "lenet"]


class LeNet(nn.Module):
    """LeNet-5 as it is used today (maxima, rectifiers): (N, in_channels, 28, 28) -> (N, num_classes).

    Images of 32x32 are taken with `padding=0`.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        padding: of the first convolution; 2 makes 28x28 images the paper's 32x32.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, padding: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5, padding=padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=2, stride=2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, 84),
            nn.ReLU(inplace=True),
            nn.Linear(84, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, 28, 28) -> (N, num_classes)."""
        return self.classifier(self.features(x).flatten(1))


@register_model()
def lenet(**kwargs: Any) -> LeNet:
    """LeNet-5; `kwargs` are the class's arguments."""
    return LeNet(**kwargs)
