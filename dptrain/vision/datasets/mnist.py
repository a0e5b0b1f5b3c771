"""MNIST and Fashion-MNIST from their idx files.

Owns: where the files lie, the datasets' names, mirrors and checksums. Must not know: models, how ranks
talk to each other (ranks on one host share a download through `dptrain.data`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dptrain.core.tensor import Tensor, wrap
from dptrain.data.ranks import local_rank_zero_first
from dptrain.download import download_file
from dptrain.vision.datasets.idx import read_idx
from dptrain.vision.datasets.vision_dataset import VisionDataset, pil_image

_ITEMS = {"train": 60_000, "t10k": 10_000}
_SIDE = 28


class MNIST(VisionDataset):
    """The MNIST handwritten digits: 60,000 training and 10,000 test images of 28x28 pixels.

    The four files `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, plain or as `.gz`, are looked for in
    `root/MNIST/raw` (torchvision's layout) and then in `root` itself. Files that are there are used as
    they are.

    A sample is `(image, target)` with a PIL image of mode "L" and an int, as in torchvision, so that
    transforms find what they expect; it needs the extra `vision` (pillow). `tensors()` gives everything
    at once and needs no extra: `TensorDataset(*MNIST(root).tensors())`.

    Args:
        root: folder of the files.
        train: the training images, else the test images.
        transform: applied to the PIL image of a sample.
        target_transform: applied to the int.
        download: bring files that are missing, checksums verified, to `root/MNIST/raw`. A collective
            call: every rank makes it, local rank 0 of each host downloads, the others wait.

    Attributes:
        data: uint8 tensor of shape `(images, 28, 28)`.
        targets: int64 tensor of shape `(images,)`.

    Raises:
        RuntimeError: a file is not there (paths and expected size in the message), or could not be
            downloaded.
        ValueError: a file is truncated or not what its name says, or images and labels do not match.
    """

    mirrors: ClassVar[list[str]] = [
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ]
    resources: ClassVar[list[tuple[str, str]]] = [
        ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ]
    classes: ClassVar[list[str]] = [
        "0 - zero",
        "1 - one",
        "2 - two",
        "3 - three",
        "4 - four",
        "5 - five",
        "6 - six",
        "7 - seven",
        "8 - eight",
        "9 - nine",
    ]

    def __init__(
        self,
        root: str | Path,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, transform=transform, target_transform=target_transform)
        self.train = train
        if download:
            with local_rank_zero_first(f"downloading {type(self).__name__}"):
                self._download_missing()
        image_path, label_path = (self._path(name) for name in self._file_names(train))
        images, labels = read_idx(image_path, ndim=3), read_idx(label_path, ndim=1)
        if len(images) != len(labels):
            raise ValueError(
                f"{image_path} holds {len(images):,} images, but {label_path} holds {len(labels):,} "
                "labels; they are not of one dataset"
            )
        self.data = wrap(images)
        self.targets = wrap(labels.astype(np.int64))

    @property
    def raw_folder(self) -> Path:
        """Where downloads go: torchvision's `root/<dataset>/raw`."""
        return Path(self.root) / type(self).__name__ / "raw"

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Target of each class name."""
        return {name: target for target, name in enumerate(self.classes)}

    def _candidates(self, name: str) -> list[Path]:
        """The paths at which the file `name` may lie, in order of preference."""
        return [
            folder / (name + end)
            for folder in (self.raw_folder, Path(self.root))
            for end in ("", ".gz")
        ]

    def _part(self, train: bool) -> str:
        """What the names of a part's files begin with."""
        return "train" if train else "t10k"

    def _file_names(self, train: bool) -> tuple[str, str]:
        part = self._part(train)
        return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"

    def _found(self, name: str) -> Path | None:
        return next((path for path in self._candidates(name) if path.is_file()), None)

    def _path(self, name: str) -> Path:
        path = self._found(name)
        if path is not None:
            return path
        size = ""
        items = _ITEMS.get(name.split("-")[0])
        if items is not None:
            size = f"{16 + items * _SIDE * _SIDE if 'images' in name else 8 + items:,} bytes, or "
        raise RuntimeError(
            f"Dataset not found: {name} ({size}compressed as {name}.gz) is neither in "
            f"{self.raw_folder} nor in {self.root}. You can use download=True to download it"
        )

    def _download_missing(self) -> None:
        for filename, md5 in self.resources:
            if self._found(filename.removesuffix(".gz")) is None:
                urls = [mirror + filename for mirror in self.mirrors]
                download_file(urls, self.raw_folder / filename, md5)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images and targets, ready for a `TensorDataset`; transforms are not applied.

        Returns:
            float32 images of shape `(images, 1, 28, 28)` with values in 0..1, and int64 targets.
        """
        images = np.divide(self.data.numpy(), np.float32(255), dtype=np.float32)
        return wrap(images[:, np.newaxis]), self.targets

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        pixels = self.data.numpy()[index]
        image = pil_image(pixels, self, "TensorDataset(*dataset.tensors())")
        return self._transformed(image, int(self.targets.numpy()[index]))

    def __len__(self) -> int:
        return len(self.data)

    def extra_repr(self) -> str:
        """Which part it is."""
        return f"Split: {'Train' if self.train else 'Test'}"


class FashionMNIST(MNIST):
    """Zalando's Fashion-MNIST: 60,000 training and 10,000 test images of clothing, 28x28 pixels.

    Everything else is as in `MNIST`, the folder being `root/FashionMNIST/raw`.
    """

    mirrors: ClassVar[list[str]] = [
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ]
    resources: ClassVar[list[tuple[str, str]]] = [
        ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ]
    classes: ClassVar[list[str]] = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
