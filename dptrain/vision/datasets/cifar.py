"""CIFAR-10 and CIFAR-100 from their pickled batches.

Owns: the layout, the checks of a batch, a reader of pickles that runs nothing. Must not know: models.

Source of the format: A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dptrain.core.tensor import Tensor, wrap
from dptrain.data.ranks import local_rank_zero_first
from dptrain.vision.datasets.archive import download_and_extract
from dptrain.vision.datasets.vision_dataset import VisionDataset, pil_image

_PIXELS = 3 * 32 * 32
#: All that a pickled array of NumPy, old or new, asks for.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds lists, dictionaries, texts, numbers and arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch needs")
        # NumPy 2 moved the module and warns where the old name is asked for.
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_batch(path: Path) -> dict[str, Any]:
    """The dictionary in a pickled batch; keys are texts, whichever Python wrote them.

    Raises:
        ValueError: it is damaged, or something else; the message names the file.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError,
            AttributeError, MemoryError, OverflowError) as error:  # fmt: skip
        raise ValueError(f"{path} is no batch of CIFAR: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no batch of CIFAR: it holds a {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class CIFAR10(VisionDataset):
    """60,000 photographs of 32x32 pixels in ten classes: 50,000 for training, 10,000 for testing.

    The batches are looked for in `root/cifar-10-batches-py`. Files that are there are used as they are.
    A sample is `(image, target)`: a PIL image of mode "RGB" and an int. `tensors()` gives everything
    at once and needs no pillow.

    Args:
        root: folder of `cifar-10-batches-py`.
        train: the training images, else the test images.
        transform: applied to the PIL image of a sample.
        target_transform: applied to the int.
        download: bring what is missing. A collective call: every rank makes it, local rank 0 of each
            host downloads, the others wait.

    Attributes:
        data: uint8 array of shape `(images, 32, 32, 3)`.
        targets: list of ints.
        classes: names of the classes.
        class_to_idx: target of each name.

    Raises:
        RuntimeError: a file is not there, or could not be downloaded.
        ValueError: a file is not what its name says.
    """

    base_folder: ClassVar[str] = "cifar-10-batches-py"
    mirrors: ClassVar[list[str]] = ["https://www.cs.toronto.edu/~kriz/"]
    filename: ClassVar[str] = "cifar-10-python.tar.gz"
    tgz_md5: ClassVar[str] = "c58f30108f718f92721af3b95e74349a"
    train_list: ClassVar[list[str]] = [f"data_batch_{i}" for i in range(1, 6)]
    test_list: ClassVar[list[str]] = ["test_batch"]
    meta: ClassVar[tuple[str, str]] = ("batches.meta", "label_names")
    labels_key: ClassVar[str] = "labels"

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
        folder = Path(self.root) / self.base_folder
        names = [*(self.train_list if train else self.test_list), self.meta[0]]
        if download:
            with local_rank_zero_first(f"downloading {type(self).__name__}"):
                if not all((folder / name).is_file() for name in names):
                    download_and_extract(self.mirrors, self.filename, self.tgz_md5, Path(self.root))
        for name in names:
            if not (folder / name).is_file():
                raise RuntimeError(
                    f"Dataset not found or corrupted: {folder / name} is not there. You can use "
                    f"download=True to download it, or unpack {self.filename} in {self.root}"
                )
        batches = [self._images_and_labels(folder / name) for name in names[:-1]]
        self.data = np.concatenate([images for images, _ in batches])
        self.targets = [label for _, labels in batches for label in labels]
        self.classes = self._class_names(folder / self.meta[0])
        self.class_to_idx = {name: target for target, name in enumerate(self.classes)}
        if self.targets and not 0 <= min(self.targets) <= max(self.targets) < len(self.classes):
            raise ValueError(
                f"{folder} has labels {min(self.targets)}..{max(self.targets)}, but names of "
                f"{len(self.classes)} classes"
            )

    def _class_names(self, path: Path) -> list[str]:
        names = read_batch(path).get(self.meta[1])
        if not isinstance(names, list):
            raise ValueError(f"{path} has no list of names under {self.meta[1]!r}")
        return [_text(name) for name in names]

    def _images_and_labels(self, path: Path) -> tuple[np.ndarray, list[int]]:
        batch = read_batch(path)
        images, labels = batch.get("data"), batch.get(self.labels_key)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
            raise ValueError(f"{path}: expected uint8 images under 'data', found {_kind(images)}")
        if images.shape[1] != _PIXELS:
            raise ValueError(f"{path}: expected images of {_PIXELS} bytes, found {images.shape[1]}")
        if not isinstance(labels, (list, np.ndarray)) or len(labels) != len(images):
            raise ValueError(
                f"{path}: expected {len(images):,} labels under {self.labels_key!r}, found "
                f"{_kind(labels)}"
            )
        planes = images.reshape(-1, 3, 32, 32)
        return planes.transpose(0, 2, 3, 1), [int(label) for label in labels]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All images and targets, ready for a `TensorDataset`; transforms are not applied.

        Returns:
            float32 images of shape `(images, 3, 32, 32)` with values in 0..1, and int64 targets.
        """
        planes = np.divide(self.data.transpose(0, 3, 1, 2), np.float32(255), dtype=np.float32)
        return wrap(np.ascontiguousarray(planes)), wrap(np.asarray(self.targets, np.int64))

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image = pil_image(self.data[index], self, "TensorDataset(*dataset.tensors())")
        return self._transformed(image, self.targets[index])

    def __len__(self) -> int:
        return len(self.data)

    def extra_repr(self) -> str:
        """Which part it is."""
        return f"Split: {'Train' if self.train else 'Test'}"


class CIFAR100(CIFAR10):
    """The same in a hundred classes, in `root/cifar-100-python`."""

    base_folder: ClassVar[str] = "cifar-100-python"
    filename: ClassVar[str] = "cifar-100-python.tar.gz"
    tgz_md5: ClassVar[str] = "eb9058c3a382ffc7106e4002c42a8d85"
    train_list: ClassVar[list[str]] = ["train"]
    test_list: ClassVar[list[str]] = ["test"]
    meta: ClassVar[tuple[str, str]] = ("meta", "fine_label_names")
    labels_key: ClassVar[str] = "fine_labels"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}, shape {value.shape}"
    return (
        "none"
        if value is None
        else f"a {type(value).__name__}"
        + (f" of {len(value):,}" if isinstance(value, list) else "")
    )
