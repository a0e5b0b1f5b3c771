"""Images in a folder per class.

Owns: finding samples, the loaders. Must not know: what is in the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dptrain.vision.datasets.vision_dataset import VisionDataset
from dptrain.vision.pillow import pillow

IMG_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)


def has_file_allowed_extension(filename: str, extensions: str | tuple[str, ...]) -> bool:
    """Whether the name ends with one of `extensions`, in upper or lower case."""
    ends = (extensions,) if isinstance(extensions, str) else tuple(extensions)
    return filename.lower().endswith(ends)


def is_image_file(filename: str) -> bool:
    """Whether the name is one of an image file that pillow reads."""
    return has_file_allowed_extension(filename, IMG_EXTENSIONS)


def find_classes(directory: str | Path) -> tuple[list[str], dict[str, int]]:
    """The folders in `directory`, sorted, and the number of each.

    Raises:
        FileNotFoundError: there are none, or no `directory`.
    """
    if not os.path.isdir(directory):
        raise FileNotFoundError(
            f"{directory} is not there; expected a folder with a folder of samples per class"
        )
    classes = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
    return classes, {name: number for number, name in enumerate(classes)}


def make_dataset(
    directory: str | Path,
    class_to_idx: dict[str, int] | None = None,
    extensions: str | tuple[str, ...] | None = None,
    is_valid_file: Callable[[str], bool] | None = None,
    allow_empty: bool = False,
) -> list[tuple[str, int]]:
    """Path and class of every sample, sorted by class and path.

    Args:
        directory: folder of the classes' folders.
        class_to_idx: number of each class; from `find_classes` if None.
        extensions: ends of the names of samples.
        is_valid_file: says of a path whether it is a sample, instead of `extensions`.
        allow_empty: take classes without samples.

    Raises:
        ValueError: both or neither of `extensions` and `is_valid_file`, or no classes.
        FileNotFoundError: a class without samples.
    """
    directory = os.path.expanduser(directory)
    if class_to_idx is None:
        _, class_to_idx = find_classes(directory)
    elif not class_to_idx:
        raise ValueError("'class_to_index' must have at least one entry to collect any samples.")
    if (extensions is None) == (is_valid_file is None):
        raise ValueError(
            "Both extensions and is_valid_file cannot be None or not None at the same time"
        )
    samples, empty = [], []
    for name in sorted(class_to_idx):
        found = [
            path
            for path in _files_below(os.path.join(directory, name))
            if (
                has_file_allowed_extension(path, extensions)
                if extensions is not None
                else is_valid_file is not None and is_valid_file(path)
            )
        ]
        samples += [(path, class_to_idx[name]) for path in found]
        if not found:
            empty.append(name)
    if empty and not allow_empty:
        wanted = ""
        if extensions is not None:
            ends = extensions if isinstance(extensions, str) else ", ".join(extensions)
            wanted = f" Supported extensions are: {ends}"
        raise FileNotFoundError(
            f"Found no valid file for the classes {', '.join(empty)} in {directory}.{wanted}"
        )
    return samples


def _files_below(folder: str) -> list[str]:
    return [
        os.path.join(where, name)
        for where, _, names in sorted(os.walk(folder, followlinks=True))
        for name in sorted(names)
    ]


def pil_loader(path: str | Path) -> Any:
    """The image file as a PIL image of mode "RGB"."""
    with open(path, "rb") as file:  # pillow keeps files open that it opened itself
        return pillow("Image", "reading images").open(file).convert("RGB")


def default_loader(path: str | Path) -> Any:
    """What `ImageFolder` reads files with."""
    return pil_loader(path)


class DatasetFolder(VisionDataset):
    """Samples in a folder per class: `root/class/.../file`.

    Args:
        root: folder of the classes' folders.
        loader: reads a sample from its path.
        extensions: ends of the names of samples.
        transform: applied to what the loader gives.
        target_transform: applied to the class's number.
        is_valid_file: says of a path whether it is a sample, instead of `extensions`.
        allow_empty: take classes without samples.

    Attributes:
        classes: names of the classes, sorted.
        class_to_idx: number of each class.
        samples: path and class of every sample.
        targets: the class of every sample.

    Raises:
        FileNotFoundError: no classes, or a class without samples.
        ValueError: both or neither of `extensions` and `is_valid_file`.
    """

    def __init__(
        self,
        root: str | Path,
        loader: Callable[[str], Any],
        extensions: tuple[str, ...] | None = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> None:
        super().__init__(root, transform=transform, target_transform=target_transform)
        classes, class_to_idx = self.find_classes(self.root)
        self.loader = loader
        self.extensions = extensions
        self.classes = classes
        self.class_to_idx = class_to_idx
        self.samples = self.make_dataset(
            self.root, class_to_idx, extensions, is_valid_file, allow_empty
        )
        self.targets = [target for _, target in self.samples]

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        """Path and class of every sample; to be overridden for other layouts."""
        return make_dataset(directory, class_to_idx, extensions, is_valid_file, allow_empty)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The classes; to be overridden for other layouts."""
        return find_classes(directory)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        path, target = self.samples[index]
        return self._transformed(self.loader(path), target)

    def __len__(self) -> int:
        return len(self.samples)


class ImageFolder(DatasetFolder):
    """Images in a folder per class; a sample is a PIL image of mode "RGB" and its class.

    Args:
        root: folder of the classes' folders.
        transform: applied to the image.
        target_transform: applied to the class's number.
        loader: reads an image from its path.
        is_valid_file: says of a path whether it is a sample; by default, names of image files are.
        allow_empty: take classes without samples.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        loader: Callable[[str], Any] = default_loader,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> None:
        super().__init__(
            root,
            loader,
            IMG_EXTENSIONS if is_valid_file is None else None,
            transform,
            target_transform,
            is_valid_file,
            allow_empty,
        )
        self.imgs: Sequence[tuple[str, int]] = self.samples
