"""Transforms between kinds of images, and of their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dptrain
from dptrain import nn
from dptrain.core.dtypes import dtype as DType
from dptrain.core.tensor import Tensor
from dptrain.vision.transforms import functional as F


class ToTensor:
    """A PIL image or an array (H, W, C) as a tensor (C, H, W), bytes as numbers in 0..1."""

    def __call__(self, pic: Any) -> Tensor:
        """See `functional.to_tensor`."""
        return F.to_tensor(pic)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class PILToTensor:
    """A PIL image as a tensor (C, H, W) of its own numbers."""

    def __call__(self, pic: Any) -> Tensor:
        """See `functional.pil_to_tensor`."""
        return F.pil_to_tensor(pic)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ConvertImageDtype(nn.Module):
    """A tensor in another dtype, white staying white.

    Args:
        dtype: of the result.
    """

    def __init__(self, dtype: DType) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        """See `functional.convert_image_dtype`."""
        return F.convert_image_dtype(image, self.dtype)


class ToPILImage:
    """A tensor (C, H, W) or an array (H, W, C) as a PIL image.

    Args:
        mode: pillow's mode; if None, what dtype and channels suggest.
    """

    def __init__(self, mode: str | None = None) -> None:
        self.mode = mode

    def __call__(self, pic: Any) -> Any:
        """See `functional.to_pil_image`."""
        return F.to_pil_image(pic, self.mode)

    def __repr__(self) -> str:
        mode = "" if self.mode is None else f"mode={self.mode}"
        return f"{type(self).__name__}({mode})"


class Normalize(nn.Module):
    """(x - mean) / std for each channel of a tensor of floating point.

    Args:
        mean: of each channel.
        std: of each channel.
        inplace: change the tensor itself.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        super().__init__()
        self.mean = mean
        self.std = std
        self.inplace = inplace

    def forward(self, tensor: Tensor) -> Tensor:
        """See `functional.normalize`."""
        return F.normalize(tensor, self.mean, self.std, self.inplace)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std})"


class LinearTransformation(nn.Module):
    """(x - mean) @ matrix of the flattened (C, H, W), as in whitening.

    Args:
        transformation_matrix: (D, D) with D = C * H * W.
        mean_vector: (D,).

    Raises:
        ValueError: shapes that do not go together.
    """

    def __init__(self, transformation_matrix: Tensor, mean_vector: Tensor) -> None:
        super().__init__()
        rows, columns = transformation_matrix.shape
        if rows != columns:
            raise ValueError(
                f"transformation_matrix should be square. Got {(rows, columns)} rectangular matrix."
            )
        if mean_vector.shape[0] != rows:
            raise ValueError(
                f"mean_vector should have the same length {mean_vector.shape[0]} as any one of the "
                f"dimensions of the transformation_matrix [{(rows, columns)}]"
            )
        self.transformation_matrix = transformation_matrix
        self.mean_vector = mean_vector

    def forward(self, tensor: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., C, H, W)."""
        size = tensor.shape[-3] * tensor.shape[-2] * tensor.shape[-1]
        if size != self.transformation_matrix.shape[0]:
            raise ValueError(
                "Input tensor and transformation matrix have incompatible shape."
                f"[{tensor.shape[-3]} x {tensor.shape[-2]} x {tensor.shape[-1]}] != "
                f"{self.transformation_matrix.shape[0]}"
            )
        flat = tensor.reshape(-1, size) - self.mean_vector
        return dptrain.mm(flat, self.transformation_matrix).reshape(tensor.shape)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(transformation_matrix={self.transformation_matrix.tolist()}"
            f", (mean_vector={self.mean_vector.tolist()})"
        )
