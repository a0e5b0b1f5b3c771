"""Shapes that print as PyTorch's."""

from __future__ import annotations

from math import prod
from typing import Any


class Size(tuple[int, ...]):
    """The shape of a tensor: a tuple that prints as PyTorch's and counts its elements."""

    __slots__ = ()

    def numel(self) -> int:
        """Number of elements of a tensor of this shape."""
        return prod(self)

    def __getitem__(self, index: Any) -> Any:
        found = tuple.__getitem__(self, index)
        return Size(found) if isinstance(index, slice) else found

    def __add__(self, other: Any) -> Any:
        return Size(tuple.__add__(self, other)) if isinstance(other, tuple) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return Size(tuple.__add__(other, self)) if isinstance(other, tuple) else NotImplemented

    def __mul__(self, count: Any) -> Any:
        return Size(tuple.__mul__(self, count)) if isinstance(count, int) else NotImplemented

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"dptrain.Size({list(self)})"
