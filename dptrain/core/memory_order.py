"""What a tensor shows of the order of its elements in memory, and what it keeps to itself.

Owns: `MemoryOrder`, a base class of `Tensor`, and `keep_unseen`. Must not know: operations, derivatives.

Convolutions, and what follows them, work with the channels last, which PyTorch shows only of tensors that
were made so. The result of an operation therefore looks as if its elements lay in row-major order, and they
do from the moment on when somebody could tell: when a view is taken, the memory handed out, the address
asked for. Before that moment nobody shares the memory but Tensors around the very same array.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import ref

import numpy as np

from dptrain.core.arrays import address, beside
from dptrain.core.kernels import kernels_for
from dptrain.core.layout import (
    contiguous_format,
    lies_in,
    memory_format,
    order_of,
    row_major,
    strides_of,
)


def no_dimension(op: str, dim: Any, ndim: int) -> Exception:
    """What is said of an argument that is no dimension of a tensor."""
    if not isinstance(dim, (int, np.integer)):
        return TypeError(f"{op}(): argument 'dim' must be int, not {type(dim).__name__}")
    if not ndim:
        return IndexError(f"{op}(): Dimension specified as {dim} but tensor has no dimensions")
    return IndexError(
        f"{op}(): Dimension out of range (expected to be in range of [{-ndim}, {ndim - 1}], but got {dim})"
    )


class MemoryOrder:
    """The methods of `Tensor` that tell how its elements lie in memory."""

    _array: np.ndarray
    #: All tensors around this array, where its order is unseen.
    _unseen: list[ref[MemoryOrder]] | None = None

    def stride(self, dim: int | None = None) -> Any:
        """Elements to step over for the next index of each dimension, or of one."""
        array = self._array
        steps = strides_of(array) if self._unseen is None else row_major(array.shape)
        try:
            return steps if dim is None else steps[dim]
        except (IndexError, TypeError):
            raise no_dimension("stride", dim, array.ndim) from None

    def is_contiguous(self, memory_format: memory_format = contiguous_format) -> bool:
        """Whether the elements lie in row-major order (or that of the format) without gaps."""
        if memory_format is contiguous_format:
            return self._unseen is not None or bool(self._array.flags.c_contiguous)
        return lies_in(self._settled(), memory_format)

    def data_ptr(self) -> int:
        """Address of the first element."""
        return address(self._settled())

    def _settled(self) -> Any:
        """The array, whose elements lie from now on as the tensor shows them."""
        if self._unseen is not None:
            old = self._array
            with beside(old):
                new = kernels_for(old).row_major(old)
            for known in self._unseen:
                tensor = known()
                if tensor is not None:
                    if tensor._array is old:  # it may have got other values since
                        tensor._array = new
                    tensor._unseen = None
        return self._array

    def _shows(self, order: tuple[int, ...]) -> bool:
        """Whether a result of that order lies as this tensor, whose order is seen, does."""
        mine = self._array
        return mine.ndim == len(order) and order_of(mine) == order

    def _joins(self, other: MemoryOrder) -> None:
        """Note that this tensor has the array of `other`."""
        self._unseen = other._unseen
        if self._unseen is not None:
            self._unseen.append(ref(self))


def keep_unseen(result: MemoryOrder, args: Iterable[Any] = ()) -> None:
    """Keep the order of an operation's result to ourselves, unless an argument shows such an order.

    Args:
        result: a new tensor whose elements do not lie in row-major order.
        args: the operation's arguments. What follows from one that was made with the channels last, or
            transposed, lies like it, as in PyTorch.
    """
    array = result._array
    order = order_of(array)
    for a in args:
        if isinstance(a, MemoryOrder):
            if a.__dict__.get("_array") is array:
                result._joins(a)
                return
            if a._unseen is None and a._shows(order):
                return
    result._unseen = [ref(result)]
