"""Joining tensors and taking them apart along a dimension. One block per operation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar

from dptrain.core.dtypes import result_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.shape import wrap_dim
from dptrain.core.tensor import Tensor


def _common_type(arrays: Sequence[Any]) -> Any:
    """What arrays are promoted to where they are joined; None where they have one type."""
    kind = arrays[0].dtype
    for array in arrays:
        if array.dtype is not kind:
            return result_dtype(arrays).numpy
    return None


def _cat(tensors: Any, dim: int = 0) -> Any:
    """Join tensors along an existing dimension."""
    if not isinstance(tensors, (tuple, list)):
        raise TypeError(
            f"cat(): argument 'tensors' (position 1) must be tuple of Tensors, not {type(tensors).__name__}"
        )
    if not tensors:
        raise ValueError("cat(): expected a non-empty list of Tensors")
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(
                f"cat(): expected Tensor as element {i} in argument 0, but got {type(t).__name__}"
            )
    return Cat.apply(*tensors, dim=dim)


@export("cat", "concat", "concatenate", function=_cat)
class Cat(Op):
    """Join along a dimension, promoting to the common type."""

    def forward(self, *tensors: Any, dim: int = 0) -> Any:
        shapes = [t.shape for t in tensors]
        kept: Any = tensors
        if (0,) in shapes:
            # One-dimensional empty tensors are skipped, as PyTorch has done from its beginning.
            kept = [t for t in tensors if t.shape != (0,)] or list(tensors)
        first = kept[0].shape
        self.dim = wrap_dim(dim, len(first), "cat")
        before, after = first[: self.dim], first[self.dim + 1 :]
        for i, t in enumerate(kept):
            shape = t.shape
            if shape != first and (
                len(shape) != len(first)
                or shape[: self.dim] != before
                or shape[self.dim + 1 :] != after
            ):
                raise RuntimeError(
                    f"cat: sizes of tensors must match except in dimension {self.dim}. Expected {list(first)} but got "
                    f"{list(t.shape)} for tensor number {i} in the list"
                )
        self.sizes = [s[self.dim] if s != (0,) or len(first) == 1 else None for s in shapes]
        return self.xp.concatenate(kept, axis=self.dim, dtype=_common_type(kept))

    def backward(self, grad: Any) -> Any:
        grads: list[Any] = []
        start = 0
        for size in self.sizes:
            if size is None:
                grads.append(None)
                continue
            grads.append(grad[(slice(None),) * self.dim + (slice(start, start + size),)])
            start += size
        return tuple(grads)


def _stack(tensors: Any, dim: int = 0) -> Any:
    """Join tensors of one shape along a new dimension."""
    if not isinstance(tensors, (tuple, list)) or not tensors:
        raise RuntimeError("stack: expected a non-empty list or tuple of Tensors")
    return Stack.apply(*tensors, dim=dim)


@export("stack", function=_stack)
class Stack(Op):
    """Join along a new dimension."""

    def forward(self, *tensors: Any, dim: int = 0) -> Any:
        first = tensors[0].shape
        for i, t in enumerate(tensors if len({t.shape for t in tensors}) > 1 else ()):
            if t.shape != first:
                raise RuntimeError(
                    f"stack expects each tensor to be equal size, but got {list(first)} at entry 0 and "
                    f"{list(t.shape)} at entry {i}"
                )
        self.dim = wrap_dim(dim, tensors[0].ndim + 1, "stack")
        self.count = len(tensors)
        parts = (*first[: self.dim], 1, *first[self.dim :])
        return self.xp.concatenate(
            [t.reshape(parts) for t in tensors], axis=self.dim, dtype=_common_type(tensors)
        )

    def backward(self, grad: Any) -> Any:
        lead = (slice(None),) * self.dim
        return tuple([grad[(*lead, i, ...)] for i in range(self.count)])


class _Parts(Op):
    """Parts of a tensor that follow each other along a dimension, as views: one node for all of them."""

    is_view = True
    dim: int
    _joining: ClassVar[type[Op]]

    def backward(self, grads: Any) -> Any:
        if len(self.outs) == 1:
            grads = [grads]
        parts = [
            self.xp.zeros(*out) if grad is None else grad
            for grad, out in zip(grads, self.outs, strict=True)
        ]
        return self._joining.call(*parts, dim=self.dim)


class Split(_Parts):
    """Parts of given sizes."""

    backward_name = "SplitBackward0"
    _joining = Cat

    def forward(self, input: Any, dim: int, sizes: list[int]) -> Any:
        self.dim = dim
        lead = (slice(None),) * dim
        ends = accumulate(sizes)
        return tuple([input[(*lead, slice(e - s, e))] for s, e in zip(sizes, ends, strict=True)])


class SplitWithSizes(Split):
    """As `split` by size, under PyTorch's name for the node."""

    backward_name = "SplitWithSizesBackward0"


class Unbind(_Parts):
    """All entries of a dimension, without it."""

    backward_name = "UnbindBackward0"
    _joining = Stack

    def forward(self, input: Any, dim: int) -> Any:
        self.dim = dim
        lead = (slice(None),) * dim
        return tuple([input[(*lead, i, ...)] for i in range(input.shape[dim])])


def _split(input: Any, split_size_or_sections: Any, dim: int = 0) -> tuple[Any, ...]:
    """Parts of the given size (the last may be smaller) or of the given sizes, as views."""
    if not input.ndim:
        raise RuntimeError("split expects at least a 1-dimensional tensor, got 0 dimensions")
    dim = wrap_dim(dim, input.ndim, "split")
    total = input._array.shape[dim]
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        if size < 0 or (size == 0 and total != 0):
            raise RuntimeError(f"split expects split_size be positive, but got split_size={size}")
        sizes = [min(size, total - s) for s in range(0, total, size)] if total else [0]
    else:
        sizes = list(split_size_or_sections)
        if sum(sizes) != total:
            raise RuntimeError(
                f"split_with_sizes expects split_sizes to sum exactly to {total} (input tensor's size at dimension "
                f"{dim}), but got split_sizes={sizes}"
            )
    split = Split if isinstance(split_size_or_sections, int) else SplitWithSizes
    parts: tuple[Any, ...] = split.apply(input, dim, sizes)
    return parts


export("split", methods=("split",), function=_split)(Split)


def _chunk(input: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    """At most `chunks` parts of equal size (the last may be smaller), as views."""
    if chunks < 1:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    if not input.ndim:
        raise RuntimeError("chunk expects at least a 1-dimensional tensor")
    total = input._array.shape[wrap_dim(dim, input.ndim, "chunk")]
    if not total:  # as many as asked for, all of them empty
        return _split(input, [0] * chunks, dim)
    return _split(input, max(1, -(-total // chunks)), dim)


export("chunk", methods=("chunk",), function=_chunk)(Split)


def _unbind(input: Any, dim: int = 0) -> tuple[Any, ...]:
    """All entries of a dimension, as views without it."""
    if not input.ndim:
        raise IndexError(f"unbind: Dimension specified as {dim} but tensor has no dimensions")
    dim = wrap_dim(dim, input.ndim, "unbind")
    parts: tuple[Any, ...] = Unbind.apply(input, dim) if input._array.shape[dim] else ()
    return parts


export("unbind", methods=("unbind",), function=_unbind)(Unbind)
