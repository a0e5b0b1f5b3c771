"""Street View House Numbers, from its MATLAB files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dptrain.data.ranks import local_rank_zero_first
from dptrain.download import download_file
from dptrain.vision.datasets.arguments import verify_str_arg
from dptrain.vision.datasets.matlab import read_mat
from dptrain.vision.datasets.vision_dataset import VisionDataset, pil_image


class SVHN(VisionDataset):
    """Digits of house numbers, 32x32 pixels: 73,257 for training, 26,032 for testing, 531,131 extra.

    A sample is `(image, target)`: a PIL image of mode "RGB" and an int 0..9 (the files' 10 is 0).

    Args:
        root: folder of `train_32x32.mat`, `test_32x32.mat`, `extra_32x32.mat`.
        split: "train", "test" or "extra".
        transform: applied to the PIL image of a sample.
        target_transform: applied to the int.
        download: bring the file if it is missing; a collective call.

    Attributes:
        data: uint8 array of shape `(images, 3, 32, 32)`.
        labels: int64 array of shape `(images,)`.

    Raises:
        RuntimeError: the file is not there, or could not be downloaded.
        ValueError: another split, or a file that is not what its name says.
    """

    mirrors: ClassVar[list[str]] = ["http://ufldl.stanford.edu/housenumbers/"]
    split_list: ClassVar[dict[str, tuple[str, str]]] = {
        "train": ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        "test": ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        "extra": ("extra_32x32.mat", "a93ce644f1a588dc4d68dda5feec44a7"),
    }

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, transform=transform, target_transform=target_transform)
        self.split = verify_str_arg(split, "split", tuple(self.split_list))
        name, md5 = self.split_list[split]
        path = Path(self.root) / name
        if download:
            with local_rank_zero_first("downloading SVHN"):
                if not path.is_file():
                    download_file([mirror + name for mirror in self.mirrors], path, md5)
        if not path.is_file():
            raise RuntimeError(
                f"Dataset not found or corrupted: {path} is not there. You can use download=True to "
                "download it"
            )
        arrays = read_mat(path)
        images, labels = arrays.get("X"), arrays.get("y")
        if images is None or labels is None or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
            found = {key: value.shape for key, value in arrays.items()}
            raise ValueError(
                f"{path}: expected X of shape (32, 32, 3, images) and y, found {found}"
            )
        if labels.size != images.shape[3]:
            raise ValueError(f"{path}: {images.shape[3]:,} images, but {labels.size:,} labels")
        self.data = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
        self.labels = labels.astype(np.int64).reshape(-1) % 10

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels = self.data[index].transpose(1, 2, 0)
        image = pil_image(np.ascontiguousarray(pixels), self, "its data and labels")
        return self._transformed(image, int(self.labels[index]))

    def __len__(self) -> int:
        return len(self.data)

    def extra_repr(self) -> str:
        """Which part it is."""
        return f"Split: {self.split}"
