"""Datasets in the format of MNIST: Kuzushiji-MNIST and EMNIST."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, ClassVar

from dptrain.vision.datasets.archive import download_and_extract
from dptrain.vision.datasets.arguments import verify_str_arg
from dptrain.vision.datasets.mnist import MNIST


class KMNIST(MNIST):
    """Kuzushiji-MNIST: 60,000 training and 10,000 test images of cursive Japanese characters.

    Everything else is as in `MNIST`, the folder being `root/KMNIST/raw`.
    """

    mirrors: ClassVar[list[str]] = ["http://codh.rois.ac.jp/kmnist/dataset/kmnist/"]
    resources: ClassVar[list[tuple[str, str]]] = [
        ("train-images-idx3-ubyte.gz", "bdb82020997e1d708af4cf47b453dcf7"),
        ("train-labels-idx1-ubyte.gz", "e144d726b3acfaa3e44228e80efcd344"),
        ("t10k-images-idx3-ubyte.gz", "5c965bf0a639b31b8f53240b1b52f4d7"),
        ("t10k-labels-idx1-ubyte.gz", "7320c461ea6c1c855c0b718fb2a4b134"),
    ]
    classes: ClassVar[list[str]] = ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]


_MERGED = set("cijklmopsuvwxyz")
_ALL = set(string.digits + string.ascii_letters)


class EMNIST(MNIST):
    """Handwritten digits and letters of NIST's database, 28x28 pixels, in the format of MNIST.

    The files are `emnist-<split>-{train,test}-{images-idx3,labels-idx1}-ubyte`, plain or as `.gz`, in
    `root/EMNIST/raw` or `root`. As in the files, rows and columns of the images are exchanged.

    Args:
        root: folder of the files.
        split: "byclass", "bymerge", "balanced", "letters", "digits" or "mnist".
        **kwargs: those of `MNIST`.

    Raises:
        ValueError: another split, or a file that is not what its name says.
        RuntimeError: a file is not there, or could not be downloaded.
    """

    mirrors: ClassVar[list[str]] = ["https://biometrics.nist.gov/cs_links/EMNIST/"]
    archive: ClassVar[tuple[str, str]] = ("gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e")
    classes_split_dict: ClassVar[dict[str, list[str]]] = {
        "byclass": sorted(_ALL),
        "bymerge": sorted(_ALL - _MERGED),
        "balanced": sorted(_ALL - _MERGED),
        "letters": ["N/A", *string.ascii_lowercase],
        "digits": list(string.digits),
        "mnist": list(string.digits),
    }
    splits: ClassVar[tuple[str, ...]] = tuple(classes_split_dict)

    def __init__(self, root: str | Path, split: str, **kwargs: Any) -> None:
        self.split = verify_str_arg(split, "split", self.splits)
        super().__init__(root, **kwargs)
        self.classes = self.classes_split_dict[self.split]  # type: ignore[misc]  # of this split

    def _part(self, train: bool) -> str:
        return f"emnist-{self.split}-{'train' if train else 'test'}"

    def _download_missing(self) -> None:
        if all(self._found(name) is not None for name in self._file_names(self.train)):
            return
        download_and_extract(self.mirrors, *self.archive, self.raw_folder)
        for path in (self.raw_folder / "gzip").glob("emnist-*"):
            path.replace(self.raw_folder / path.name)
