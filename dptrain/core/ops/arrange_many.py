"""Joining, splitting and broadcasting several tensors, written with the operations on one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.dtypes import result_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.index import Index
from dptrain.core.ops.join import Cat, Stack, _cat, _stack
from dptrain.core.ops.shape import Expand, Narrow, Reshape, _sizes, wrap_dim
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor


def _all(tensors: Any, op: str) -> list[Tensor]:
    """The tensors of `op(a, b, ...)` or `op([a, b, ...])`."""
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        tensors = tensors[0]
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(
                f"{op}(): argument 'tensors' (position 1) must be tuple of Tensors, but element {i} is {type(t).__name__}"
            )
    return list(tensors)


def _atleast(count: int, name: str) -> Any:
    def one(input: Tensor) -> Tensor:
        shape = tuple(input._array.shape)
        if len(shape) >= count:
            return input
        if count == 3 and len(shape) == 2:
            return Reshape.apply(input, (*shape, 1))
        if count == 3 and len(shape) == 1:
            return Reshape.apply(input, (1, *shape, 1))
        return Reshape.apply(input, (1,) * (count - len(shape)) + shape)

    def function(*tensors: Any) -> Any:
        if len(tensors) == 1 and isinstance(tensors[0], Tensor):
            return one(tensors[0])
        return tuple(one(t) for t in _all(tensors, name))

    function.__doc__ = f"The tensors as views of at least {count} dimension{'s' * (count > 1)}."
    export(name, function=function)(Reshape)
    return one


_at_least_1d = _atleast(1, "atleast_1d")
_at_least_2d = _atleast(2, "atleast_2d")
_at_least_3d = _atleast(3, "atleast_3d")


def _nonempty(tensors: Any, op: str) -> list[Tensor]:
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(
            f"{op}(): argument 'tensors' (position 1) must be tuple of Tensors, not {type(tensors).__name__}"
        )
    if not tensors:
        raise RuntimeError(f"{op} expects a non-empty TensorList")
    return _all((tensors,), op)


def _hstack(tensors: Any) -> Any:
    """Joined along the columns (vectors: along their only dimension)."""
    parts = [_at_least_1d(t) for t in _nonempty(tensors, "hstack")]
    return _cat(parts, 0 if parts[0].ndim == 1 else 1)


def _vstack(tensors: Any) -> Any:
    """Joined along the rows."""
    return _cat([_at_least_2d(t) for t in _nonempty(tensors, "vstack")], 0)


def _dstack(tensors: Any) -> Any:
    """Joined along the third dimension."""
    return _cat([_at_least_3d(t) for t in _nonempty(tensors, "dstack")], 2)


def _column_stack(tensors: Any) -> Any:
    """Vectors as columns, and matrices, joined along the columns."""
    parts = _nonempty(tensors, "column_stack")
    return _cat([Reshape.apply(t, (-1, 1)) if t.ndim <= 1 else t for t in parts], 1)


export("hstack", function=_hstack)(Cat)
export("vstack", "row_stack", function=_vstack)(Cat)
export("dstack", function=_dstack)(Cat)
export("column_stack", function=_column_stack)(Cat)


def _block_diag(*tensors: Any) -> Any:
    """The matrices along the diagonal of a larger one that is 0 elsewhere."""
    parts = [_at_least_2d(t) for t in _all(tensors, "block_diag")]
    for i, part in enumerate(parts):
        if part.ndim != 2:
            raise RuntimeError(
                f"block_diag: Input tensors must have 2 or fewer dimensions. Input {i} has {part.ndim} dimensions"
            )
    return BlockDiag.apply(*parts)


@export("block_diag", function=_block_diag)
class BlockDiag(Op):
    """Matrices along a diagonal."""

    def forward(self, *parts: Any) -> Any:
        shape = tuple(sum(p.shape[d] for p in parts) for d in (0, 1))
        out = self.xp.zeros(shape, result_dtype(parts).numpy)
        self.blocks = []
        row = column = 0
        for p in parts:
            block = (slice(row, row + p.shape[0]), slice(column, column + p.shape[1]))
            out[block] = p
            self.blocks.append(block)
            row, column = row + p.shape[0], column + p.shape[1]
        return out

    def backward(self, grad: Any) -> Any:
        return tuple(grad[b] for b in self.blocks)


def broadcast_shapes(*shapes: Any) -> Size:
    """The shape to which tensors of these shapes broadcast."""
    parts = [tuple(s) if isinstance(s, Sequence) else (s,) for s in shapes]
    if not all(isinstance(n, (int, np.integer)) for p in parts for n in p):
        raise RuntimeError(
            f"broadcast_shapes: shapes must be ints or tuples of ints, got {list(shapes)}"
        )
    if any(n < 0 for p in parts for n in p):
        raise RuntimeError(
            f"broadcast_shapes: trying to create tensor with negative dimension: {parts}"
        )
    try:
        return Size(np.broadcast_shapes(*parts))
    except ValueError:
        raise RuntimeError(
            "broadcast_shapes: shape mismatch: objects cannot be broadcast to a single shape: "
            + ", ".join(str(list(p)) for p in parts)
        ) from None


def _broadcast_shapes(*shapes: Any) -> Any:
    """The shape to which tensors of these shapes broadcast."""
    return broadcast_shapes(*shapes)


def _broadcast_tensors(*tensors: Any) -> Any:
    """The tensors as views of their common broadcast shape."""
    parts = _all(tensors, "broadcast_tensors")
    shape = tuple(broadcast_shapes(*[t._array.shape for t in parts]))
    return tuple(Expand.apply(t, shape) for t in parts)


def _broadcast_to(input: Any, size: Any) -> Any:
    """The tensor as a view of a larger shape."""
    return Expand.apply(input, _sizes((size,)))


export("broadcast_shapes", function=_broadcast_shapes)(Expand)
export("broadcast_tensors", function=_broadcast_tensors)(Expand)
export("broadcast_to", methods=("broadcast_to",), function=_broadcast_to)(Expand)


def _meshgrid(*tensors: Any, indexing: str = "ij") -> Any:
    """Grids of coordinates from vectors; indexing is "ij" (matrix order) or "xy"."""
    if indexing not in ("ij", "xy"):
        raise RuntimeError(
            f'meshgrid: indexing must be one of "xy" or "ij", but received: {indexing}'
        )
    parts = _all(tensors, "meshgrid")
    if len({t.dtype for t in parts}) > 1:
        raise RuntimeError(
            f"meshgrid expects all tensors to have the same dtype, got {[t.dtype for t in parts]}"
        )
    if not parts:
        raise RuntimeError("meshgrid expects a non-empty TensorList")
    for t in parts:
        if t.ndim > 1:
            raise RuntimeError(
                f"meshgrid: Expected 0D or 1D tensor in the tensor list but got {list(t.shape)}"
            )
    swapped = indexing == "xy" and len(parts) > 1
    if swapped:
        parts[:2] = parts[1::-1]
    sizes = tuple(t._array.size for t in parts)
    grids = [
        Expand.apply(Reshape.apply(t, (1,) * k + (-1,) + (1,) * (len(parts) - 1 - k)), sizes)
        for k, t in enumerate(parts)
    ]
    if swapped:
        grids[:2] = grids[1::-1]
    return tuple(grids)


export("meshgrid", function=_meshgrid)(Expand)


def _cartesian_prod(*tensors: Any) -> Any:
    """All combinations of the elements of vectors, one a row."""
    parts = _all(tensors, "cartesian_prod")
    for t in parts:
        if t.ndim != 1:
            raise RuntimeError(f"cartesian_prod: Expect a 1D vector, but got shape {list(t.shape)}")
    if len(parts) == 1:
        return parts[0]
    return _stack([Reshape.apply(g, (-1,)) for g in _meshgrid(*parts)], 1)


def _combinations(input: Any, r: int = 2, with_replacement: bool = False) -> Any:
    """All combinations of r elements of a vector, one a row."""
    if input.ndim != 1:
        raise RuntimeError(f"combinations: Expect a 1D vector, but got shape {list(input.shape)}")
    if r < 0:
        raise RuntimeError(f"combinations: Expect a non-negative number, but got {r}")
    if r == 0:
        return Reshape.apply(Narrow.apply(input, 0, 0, 0), (0,))
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    rows = list(choose(range(input._array.shape[0]), r))
    places = namespace_of(input._array).array(rows, np.int64).reshape(len(rows), r)
    return Index.apply(input, (places,))


export("cartesian_prod", function=_cartesian_prod)(Stack)
export("combinations", function=_combinations)(Index)


def _tensor_split(input: Any, indices_or_sections: Any, dim: int = 0) -> Any:
    """Parts as equal as possible (a count), or parts between the given indices, as views."""
    if input.ndim == 0:
        raise RuntimeError("tensor_split expected at least a 1-dimensional tensor, but got 0 dims")
    dim = wrap_dim(dim, input.ndim, "tensor_split")
    size = input._array.shape[dim]
    if isinstance(indices_or_sections, Tensor):
        if indices_or_sections.dtype.name != "int64" or indices_or_sections.ndim > 1:
            raise RuntimeError(
                "tensor_split: expected indices_or_sections to be a zero- or one-dimensional tensor of int64, got "
                f"{indices_or_sections.dtype} of shape {list(indices_or_sections.shape)}"
            )
        indices_or_sections = indices_or_sections.tolist()
    if isinstance(indices_or_sections, int):
        count = indices_or_sections
        if count <= 0:
            raise RuntimeError(
                f"tensor_split: number of sections must be larger than 0, got {count}"
            )
        small, extra = divmod(size, count)
        ends = list(itertools.accumulate(small + (k < extra) for k in range(count)))
    else:
        ends = [*indices_or_sections, size]
    starts = [0, *ends[:-1]]
    bounds = [slice(a, b).indices(size)[:2] for a, b in zip(starts, ends, strict=True)]
    return tuple(Narrow.apply(input, dim, min(a, size), max(0, b - a)) for a, b in bounds)


_PLACES = {"indices_or_sections": "int | tuple of ints | Tensor"}
export("tensor_split", methods=("tensor_split",), function=_tensor_split, kinds=_PLACES)(Narrow)


def _splitter(name: str, dim: int, least: int) -> None:
    def function(input: Any, indices_or_sections: Any) -> Any:
        if input.ndim < least:
            raise RuntimeError(
                f"{name} requires a tensor with at least {least} dimension, but got a tensor with {input.ndim} dimensions!"
            )
        along = 0 if name == "hsplit" and input.ndim == 1 else dim
        size = input._array.shape[along]
        if isinstance(indices_or_sections, int) and (
            indices_or_sections <= 0 or size % indices_or_sections
        ):
            raise RuntimeError(
                f"{name} attempted to split along dimension {along}, but the size of the dimension {size} is not "
                f"divisible by the split_size {indices_or_sections}!"
            )
        return _tensor_split(input, indices_or_sections, along)

    function.__doc__ = f"Equal parts, or parts between indices, along dimension {dim}, as views."
    export(name, methods=(name,), function=function)(Narrow)


_splitter("hsplit", 1, 1)
_splitter("vsplit", 0, 2)
_splitter("dsplit", 2, 3)
