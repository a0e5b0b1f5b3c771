"""The UCI handwritten digits, shipped with the package (licence and source: DIGITS.md beside it).

Owns: the data file and its split. Must not know: models, processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np

from dptrain.core.tensor import Tensor, wrap
from dptrain.data.dataset import Dataset, gather

#: Of every five samples of a class, in the order of the file, the third is for testing.
_TEST_EVERY, _TEST_FIRST = 5, 2
_MAX_PIXEL = 16


class Digits(Dataset[tuple[Any, Any]]):
    """1,797 handwritten digits of 8x8 pixels, read from the package: no download, no files.

    A sample is `(image, target)`: a float32 tensor of shape `(1, 8, 8)` with values in 0..1, and an int.

    The split is fixed and stratified: of every five samples of each class, in the order of the file, the
    third is a test sample, which makes 1,438 training and 359 test samples.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0.

    Args:
        train: the training samples, else the test samples.
        transform: applied to the image of a sample.
        target_transform: applied to the int.

    Attributes:
        data: uint8 tensor of shape `(samples, 8, 8)` with the original values 0..16.
        targets: int64 tensor of shape `(samples,)`.
    """

    classes: ClassVar[list[str]] = [str(digit) for digit in range(10)]

    def __init__(
        self,
        train: bool = True,
        transform: Callable[[Tensor], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        self.train = train
        self.transform = transform
        self.target_transform = target_transform
        with (files(__package__) / "digits.npz").open("rb") as stream, np.load(stream) as content:
            images, labels = content["images"], content["labels"]
        chosen = _is_test(labels) != train
        self.data = wrap(images[chosen])
        self.targets = wrap(labels[chosen].astype(np.int64))
        self._images = wrap(self.data.numpy()[:, np.newaxis] / np.float32(_MAX_PIXEL))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images and targets; transforms are not applied.

        Returns:
            float32 images of shape `(samples, 1, 8, 8)` with values in 0..1, and int64 targets.
        """
        return self._images, self.targets

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image: Any = self._images[index]
        target: Any = int(self.targets.numpy()[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def get_batch(self, indices: Sequence[int]) -> Any:
        """The collated samples at `indices`, or NotImplemented where transforms want single samples."""
        if self.transform is not None or self.target_transform is not None:
            return NotImplemented
        return gather(self.tensors(), indices)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        split = "Train" if self.train else "Test"
        return f"Dataset Digits\n    Number of datapoints: {len(self)}\n    Split: {split}"


def _is_test(labels: np.ndarray) -> np.ndarray:
    """Which samples are for testing, as a bool array."""
    chosen = np.zeros(len(labels), dtype=bool)
    for digit in np.unique(labels):
        chosen[np.flatnonzero(labels == digit)[_TEST_FIRST::_TEST_EVERY]] = True
    return chosen
