"""Images of noise, for trying things out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.random import numpy_stream
from dptrain.vision.datasets.vision_dataset import VisionDataset, pil_image

#: The purpose in the random stream's key: keeps the noise apart from other uses of the same seed.
_NOISE_STREAM = 0x46414B45


class FakeData(VisionDataset):
    """Noise with targets, the same for an index in every run, whatever the seed.

    Args:
        size: number of samples.
        image_size: channels (1 or 3), height and width.
        num_classes: targets are 0..num_classes - 1.
        transform: applied to the PIL image of a sample.
        target_transform: applied to the int.
        random_offset: another number gives other noise.
    """

    def __init__(
        self,
        size: int = 1000,
        image_size: tuple[int, int, int] = (3, 224, 224),
        num_classes: int = 10,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        random_offset: int = 0,
    ) -> None:
        super().__init__("", transform=transform, target_transform=target_transform)
        self.root = ""
        self.size = size
        self.num_classes = num_classes
        self.image_size = image_size
        self.random_offset = random_offset

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index >= len(self):
            raise IndexError(f"{type(self).__name__} index out of range")
        stream = numpy_stream(index + self.random_offset, _NOISE_STREAM)
        channels, height, width = self.image_size
        pixels = stream.integers(0, 256, (height, width, channels), dtype=np.uint8)
        target = int(stream.integers(self.num_classes))
        image = pil_image(pixels[:, :, 0] if channels == 1 else pixels, self, "TensorDataset")
        return self._transformed(image, target)

    def __len__(self) -> int:
        return self.size
