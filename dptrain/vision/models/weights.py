"""Published weights: where their files are, and reading them.

Owns: `Weights`, `WeightsEnum`, the folder of downloads. Must not know: any architecture.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from dptrain.core.tensor import Tensor
from dptrain.download import Checksum, download_file
from dptrain.hub import get_dir

_SERVER = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Weights:
    """What is known of one file of weights.

    Attributes:
        url: where it is published.
        transforms: makes the preprocessing of the model's inputs.
        meta: `num_classes` and `num_params` of the model.
    """

    url: str
    transforms: Callable[..., Any] = field(compare=False)
    meta: dict[str, Any] = field(compare=False)


class WeightsEnum(Enum):
    """Base of the enumerations of a model's weights; each value is a `Weights`."""

    @property
    def url(self) -> str:
        """Where the file is published."""
        return str(self.value.url)

    @property
    def transforms(self) -> Callable[..., Any]:
        """Makes the preprocessing of the model's inputs."""
        return self.value.transforms

    @property
    def meta(self) -> dict[str, Any]:
        """`num_classes` and `num_params` of the model."""
        return self.value.meta

    @classmethod
    def verify(cls, obj: Any) -> Any:
        """`obj` as a member: None, a member, or the name of one.

        Raises:
            TypeError: it is of another kind.
        """
        if isinstance(obj, str):
            return cls[obj.rpartition(".")[2]]
        if obj is None or isinstance(obj, cls):
            return obj
        raise TypeError(
            f"Invalid Weight class provided; expected {cls.__name__} but received "
            f"{type(obj).__name__}."
        )

    def get_state_dict(
        self, progress: bool = True, check_hash: bool = False
    ) -> Mapping[str, Tensor]:
        """The weights, downloaded on first use.

        Args:
            progress: show a bar while downloading.
            check_hash: has no effect: what is downloaded is always checked.

        Raises:
            RuntimeError: the file is not there and could not be downloaded; the message names it and
                where to put it.
        """
        name = self.url.rpartition("/")[2]
        path = weights_folder() / name
        if not path.is_file():
            # The file's name carries the first eight digits of its content's SHA-256.
            digest = name.removesuffix(".pth").rpartition("-")[2]
            download_file([self.url], path, Checksum("sha256", digest), progress)
        return load_weights_file(path)

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def weights_folder() -> Path:
    """Where files of weights lie: PyTorch's own folder, so that what it brought is found."""
    return Path(get_dir()) / "checkpoints"


def load_weights_file(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a `.pth` (PyTorch's format) or `.safetensors` file.

    Raises:
        ValueError: it holds something else, or is damaged.
    """
    serialization = import_module("dptrain.serialization")
    read = serialization.load_file if path.suffix == ".safetensors" else serialization.load
    try:
        state = read(path)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is no file of weights: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(
            f"{path}: expected a state dict (names and tensors), found {type(state).__name__}"
        )
    return state


def published(
    enum_name: str, num_params: int, files: str | list[str], **preprocessing: int
) -> type[WeightsEnum]:
    """The enumeration of a model's ImageNet weights.

    Args:
        enum_name: its name.
        num_params: of the model.
        files: names of the files of IMAGENET1K_V1 and, where there is one, IMAGENET1K_V2; the last is
            the default.
        preprocessing: arguments of the classification preset; in V2 the short side is resized to 232.
    """
    names = [files] if isinstance(files, str) else files
    members = {}
    for version, name in enumerate(names, 1):
        sizes = {"crop_size": 224, "resize_size": 232 if version == 2 else 256, **preprocessing}
        members[f"IMAGENET1K_V{version}"] = Weights(
            _SERVER + name,
            partial(_classification, **sizes),
            {"num_classes": 1000, "num_params": num_params},
        )
    members["DEFAULT"] = members[f"IMAGENET1K_V{len(names)}"]  # an alias: the same value
    make: Any = WeightsEnum  # mypy does not follow enumerations made of a dictionary
    return make(enum_name, members, module="dptrain.vision.models")


def _classification(**sizes: Any) -> Any:
    """The preset, imported when it is asked for: few who build a model ask."""
    return import_module("dptrain.vision.transforms.presets").ImageClassification(**sizes)
