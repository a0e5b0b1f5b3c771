"""Shapes that print as PyTorch's."""

from __future__ import annotations

import numpy as np


class Size(tuple[int, ...]):
    """The shape of a tensor: a tuple that prints as PyTorch's and counts its elements."""

    __slots__ = ()

    def numel(self) -> int:
        """Number of elements of a tensor of this shape."""
        return int(np.prod(self, dtype=np.int64)) if self else 1

    def __repr__(self) -> str:
        return f"dptrain.Size({list(self)})"
