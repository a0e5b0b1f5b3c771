"""Joining tensors and taking them apart along a dimension. One block per operation."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.dtypes import result_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.shape import Narrow, Select, wrap_dim
from dptrain.core.tensor import Tensor


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
        # One-dimensional empty tensors are skipped, as PyTorch has done from its beginning.
        kept = [t for t in tensors if t.shape != (0,)] or list(tensors)
        self.dim = wrap_dim(dim, kept[0].ndim, "cat")
        first = kept[0].shape
        for i, t in enumerate(kept):
            if t.ndim != len(first) or any(
                a != b for d, (a, b) in enumerate(zip(first, t.shape, strict=True)) if d != self.dim
            ):
                raise RuntimeError(
                    f"cat: sizes of tensors must match except in dimension {self.dim}. Expected {list(first)} but got "
                    f"{list(t.shape)} for tensor number {i} in the list"
                )
        self.sizes = [
            t.shape[self.dim] if t.shape != (0,) or len(first) == 1 else None for t in tensors
        ]
        return self.xp.concatenate(kept, axis=self.dim, dtype=result_dtype(kept).numpy)

    def backward(self, grad: Any) -> Any:
        grads: list[Any] = []
        start = 0
        for size in self.sizes:
            if size is None:
                grads.append(None)
                continue
            grads.append(Narrow.call(grad, self.dim, start, size))
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
        for i, t in enumerate(tensors):
            if t.shape != tensors[0].shape:
                raise RuntimeError(
                    f"stack expects each tensor to be equal size, but got {list(tensors[0].shape)} at entry 0 and "
                    f"{list(t.shape)} at entry {i}"
                )
        self.dim = wrap_dim(dim, tensors[0].ndim + 1, "stack")
        self.count = len(tensors)
        return self.xp.stack(tensors, axis=self.dim, dtype=result_dtype(tensors).numpy)

    def backward(self, grad: Any) -> Any:
        return tuple(Select.call(grad, self.dim, i) for i in range(self.count))


class SplitPart(Narrow):
    """A part of `split` by size: as `narrow`, under PyTorch's name for the node."""

    backward_name = "SplitBackward0"


class SectionPart(Narrow):
    """A part of `split` by sections: as `narrow`, under PyTorch's name for the node."""

    backward_name = "SplitWithSizesBackward0"


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
    starts = np.cumsum([0, *sizes])
    part = SplitPart if isinstance(split_size_or_sections, int) else SectionPart
    return tuple(
        part.apply(input, dim, int(a), int(s)) for a, s in zip(starts, sizes, strict=False)
    )


export("split", methods=("split",), function=_split)(Narrow)


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


export("chunk", methods=("chunk",), function=_chunk)(Narrow)


class UnbindPart(Select):
    """An entry of `unbind`: as `select`, under PyTorch's name for the node."""

    backward_name = "UnbindBackward0"


def _unbind(input: Any, dim: int = 0) -> tuple[Any, ...]:
    """All entries of a dimension, as views without it."""
    if not input.ndim:
        raise IndexError(f"unbind: Dimension specified as {dim} but tensor has no dimensions")
    dim = wrap_dim(dim, input.ndim, "unbind")
    return tuple(UnbindPart.apply(input, dim, i) for i in range(input._array.shape[dim]))


export("unbind", methods=("unbind",), function=_unbind)(Select)
