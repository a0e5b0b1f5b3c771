"""The preprocessing that published weights were trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dptrain import nn
from dptrain.core.dtypes import float32
from dptrain.core.tensor import Tensor
from dptrain.vision.transforms import functional as F
from dptrain.vision.transforms.modes import InterpolationMode


class ImageClassification(nn.Module):
    """Resize, take the middle, convert to floating point, normalise: (..., C, H, W) float32.

    Args:
        crop_size: of the middle.
        resize_size: of the shorter edge before.
        mean: of each channel.
        std: of each channel.
        interpolation: of the resizing.
        antialias: of tensors.
    """

    def __init__(
        self,
        *,
        crop_size: int,
        resize_size: int = 256,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
        antialias: bool | None = True,
    ) -> None:
        super().__init__()
        self.crop_size = [crop_size]
        self.resize_size = [resize_size]
        self.mean = list(mean)
        self.std = list(std)
        self.interpolation = interpolation
        self.antialias = antialias

    def forward(self, img: Any) -> Tensor:
        """A PIL image or a tensor -> float32 (..., C, crop_size, crop_size)."""
        img = F.resize(img, self.resize_size, self.interpolation, antialias=self.antialias)
        img = F.center_crop(img, self.crop_size)
        if not isinstance(img, Tensor):
            img = F.pil_to_tensor(img)
        return F.normalize(F.convert_image_dtype(img, float32), self.mean, self.std)
