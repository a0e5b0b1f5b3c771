"""STL-10, from its binary files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dptrain.data.ranks import local_rank_zero_first
from dptrain.vision.datasets.archive import download_and_extract
from dptrain.vision.datasets.arguments import verify_str_arg
from dptrain.vision.datasets.vision_dataset import VisionDataset, pil_image

_SIDE = 96


class STL10(VisionDataset):
    """96x96 photographs: 5,000 for training, 8,000 for testing, 100,000 without labels.

    A sample is `(image, target)`: a PIL image of mode "RGB" and an int, -1 without a label.

    Args:
        root: folder of `stl10_binary`.
        split: "train", "test", "unlabeled" or "train+unlabeled".
        folds: which of the ten folds of the training images (0..9); all of them if None.
        transform: applied to the PIL image of a sample.
        target_transform: applied to the int.
        download: bring what is missing; a collective call.

    Attributes:
        data: uint8 array of shape `(images, 3, 96, 96)`.
        labels: int64 array of shape `(images,)`.
        classes: names of the classes.

    Raises:
        RuntimeError: a file is not there, or could not be downloaded.
        ValueError: arguments that do not exist, or a file that is not what its name says.
    """

    base_folder: ClassVar[str] = "stl10_binary"
    mirrors: ClassVar[list[str]] = ["http://ai.stanford.edu/~acoates/stl10/"]
    filename: ClassVar[str] = "stl10_binary.tar.gz"
    tgz_md5: ClassVar[str] = "91f7769df0f17e558f3565bffb0c7dfb"
    splits: ClassVar[tuple[str, ...]] = ("train", "train+unlabeled", "unlabeled", "test")

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        folds: int | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, transform=transform, target_transform=target_transform)
        self.split = verify_str_arg(split, "split", self.splits)
        if folds is not None and folds not in range(10):
            raise ValueError(
                f"Value for argument folds should be in the range [0, 10), but got {folds}"
            )
        self.folds = folds
        parts = split.split("+")
        if download:
            with local_rank_zero_first("downloading STL10"):
                if not all(self._path(f"{part}_X.bin").is_file() for part in parts):
                    download_and_extract(self.mirrors, self.filename, self.tgz_md5, Path(self.root))
        pairs = [self._part(part) for part in parts]
        self.data = np.concatenate([images for images, _ in pairs])
        self.labels = np.concatenate([labels for _, labels in pairs])
        names = self._path("class_names.txt")
        self.classes = names.read_text().split() if names.is_file() else []

    def _path(self, name: str) -> Path:
        return Path(self.root) / self.base_folder / name

    def _bytes(self, name: str) -> np.ndarray:
        path = self._path(name)
        if not path.is_file():
            raise RuntimeError(
                f"Dataset not found or corrupted: {path} is not there. You can use download=True to "
                f"download it, or unpack {self.filename} in {self.root}"
            )
        return np.fromfile(path, dtype=np.uint8)

    def _part(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        pixels = self._bytes(f"{part}_X.bin")
        size = 3 * _SIDE * _SIDE
        if len(pixels) % size:
            raise ValueError(
                f"{self._path(f'{part}_X.bin')}: {len(pixels):,} bytes are no whole number of images "
                f"of {size:,}"
            )
        # Columns come first in the file.
        images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 1, 3, 2)
        if part == "unlabeled":
            return images, np.full(len(images), -1, np.int64)
        labels = self._bytes(f"{part}_y.bin").astype(np.int64) - 1
        if len(labels) != len(images):
            raise ValueError(
                f"{self._path(f'{part}_y.bin')}: {len(labels):,} labels for {len(images):,} images"
            )
        if part == "train" and self.folds is not None:
            rows = self._path("fold_indices.txt").read_text().splitlines()
            taken = np.array(rows[self.folds].split(), dtype=np.int64)
            return images[taken], labels[taken]
        return images, labels

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels = np.ascontiguousarray(self.data[index].transpose(1, 2, 0))
        image = pil_image(pixels, self, "its data and labels")
        return self._transformed(image, int(self.labels[index]))

    def __len__(self) -> int:
        return len(self.data)

    def extra_repr(self) -> str:
        """Which part it is."""
        return f"Split: {self.split}"
