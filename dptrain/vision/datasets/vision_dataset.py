"""What the datasets of images have in common.

Owns: `VisionDataset`, where transforms are applied, how a dataset prints. Must not know: any format.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dptrain.data.dataset import Dataset

_Transform = Callable[[Any], Any]


class StandardTransform:
    """One transform for the image and one for the target, as a transform of both."""

    def __init__(
        self, transform: _Transform | None = None, target_transform: _Transform | None = None
    ) -> None:
        self.transform = transform
        self.target_transform = target_transform

    def __call__(self, input: Any, target: Any) -> tuple[Any, Any]:
        """The transformed pair."""
        if self.transform is not None:
            input = self.transform(input)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return input, target

    def __repr__(self) -> str:
        lines = [type(self).__name__]
        for head, transform in (
            ("Transform: ", self.transform),
            ("Target transform: ", self.target_transform),
        ):
            if transform is not None:
                first, *rest = repr(transform).splitlines()
                lines += [head + first, *(" " * len(head) + line for line in rest)]
        return "\n".join(lines)


class VisionDataset(Dataset[tuple[Any, Any]]):
    """Base of the datasets of images in a folder.

    Args:
        root: the folder.
        transforms: applied to image and target together.
        transform: applied to the image.
        target_transform: applied to the target.

    Raises:
        ValueError: `transforms` and one of the others.
    """

    def __init__(
        self,
        root: str | Path,
        transforms: Callable[[Any, Any], Any] | None = None,
        transform: _Transform | None = None,
        target_transform: _Transform | None = None,
    ) -> None:
        self.root: str | Path = Path(root).expanduser()
        if transforms is not None and (transform is not None or target_transform is not None):
            raise ValueError(
                "Only transforms or transform/target_transform can be passed as argument"
            )
        self.transform = transform
        self.target_transform = target_transform
        if transforms is None and (transform is not None or target_transform is not None):
            transforms = StandardTransform(transform, target_transform)
        self.transforms = transforms

    def _transformed(self, image: Any, target: Any) -> tuple[Any, Any]:
        """The pair as the dataset gives it."""
        if self.transforms is None:
            return image, target
        return self.transforms(image, target)

    def __len__(self) -> int:
        """The number of samples."""
        raise NotImplementedError(f"{type(self).__name__} must implement __len__()")

    def extra_repr(self) -> str:
        """What a subclass prints beside number and root."""
        return ""

    def __repr__(self) -> str:
        body = [f"Number of datapoints: {len(self)}"]
        if str(self.root):
            body.append(f"Root location: {self.root}")
        body += self.extra_repr().splitlines()
        if self.transforms is not None:
            body.append(repr(self.transforms))
        return "\n".join([f"Dataset {type(self).__name__}", *("    " + line for line in body)])


def pil_image(pixels: Any, dataset: VisionDataset, instead: str) -> Any:
    """A PIL image of uint8 `pixels`, (H, W) or (H, W, 3).

    Raises:
        ImportError: without pillow; the message says what else can be done.
    """
    from dptrain.vision.pillow import pillow

    try:
        image = pillow("Image")
    except ImportError:
        raise ImportError(
            f"single {type(dataset).__name__} samples are PIL images, and pillow is not installed: "
            f'pip install "dptrain[vision]", or use {instead}'
        ) from None
    return image.fromarray(pixels)
