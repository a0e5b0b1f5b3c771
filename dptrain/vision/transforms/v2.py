"""Names of `torchvision.transforms.v2`, for images: the same transforms, and those that only v2 has."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain import nn
from dptrain.core.dtypes import dtype as DType
from dptrain.core.dtypes import float32
from dptrain.core.tensor import Tensor, wrap
from dptrain.vision import transforms
from dptrain.vision.pillow import is_pil_image
from dptrain.vision.transforms import *  # noqa: F403 - v2 has all names of the first version
from dptrain.vision.transforms import functional as F

__all__ = [*transforms.__all__, "ToDtype", "ToImage"]


class ToImage(nn.Module):
    """A PIL image or an array (H, W, C) as a tensor (C, H, W) of its own numbers."""

    def forward(self, inpt: Any) -> Tensor:
        """A tensor is handed on as it is."""
        if isinstance(inpt, Tensor):
            return inpt
        if is_pil_image(inpt):
            return F.pil_to_tensor(inpt)
        planes = inpt[None] if inpt.ndim == 2 else inpt.transpose(2, 0, 1)
        return wrap(np.ascontiguousarray(planes))


class ToDtype(nn.Module):
    """A tensor in another dtype.

    Args:
        dtype: of the result.
        scale: white stays white; otherwise the numbers stay.
    """

    def __init__(self, dtype: DType = float32, scale: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.scale = scale

    def forward(self, inpt: Tensor) -> Tensor:
        """(..., C, H, W) of any dtype -> the same in `dtype`."""
        return F.convert_image_dtype(inpt, self.dtype) if self.scale else inpt.to(self.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self.scale})"
