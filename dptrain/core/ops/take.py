"""Reading by index and mask: take, masked_select, nonzero, and copies with a part replaced."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, namespace_of
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.arrange import Diagonal
from dptrain.core.ops.index import IndexPut, Scatter
from dptrain.core.ops.reduce import TakeAlong
from dptrain.core.ops.scatter import check_index
from dptrain.core.ops.shape import Reshape, wrap_dim
from dptrain.core.tensor import wrap


@export("masked_select", methods=("masked_select",))
class MaskedSelect(Op):
    """The elements where the mask holds, in one dimension; both broadcast."""

    num_tensors = 2

    def forward(self, input: Any, mask: Any) -> Any:
        if mask.dtype != np.bool_:
            raise RuntimeError(
                f"masked_select: expected BoolTensor for mask, got dtype {mask.dtype}"
            )
        shape = np.broadcast_shapes(input.shape, mask.shape)
        self.mask, self.shape = np.broadcast_to(mask, shape), shape
        return np.broadcast_to(input, shape)[self.mask]

    def backward(self, grad: Any) -> Any:
        return Scatter.call(grad, self.shape, (self.mask,))


@export("take", methods=("take",))
class Take(Op):
    """Elements by their place in the flattened input, in the shape of `index`."""

    num_tensors = 2

    def forward(self, input: Any, index: Any) -> Any:
        self.index, self.shape = _flat_index("take", index, input.size), input.shape
        return input.reshape(-1)[self.index]

    def backward(self, grad: Any) -> Any:
        size = int(np.prod(self.shape, dtype=np.int64))
        return Reshape.call(Scatter.call(grad, (size,), (self.index,)), self.shape)


def _check_flat(op: str, index: Any) -> None:
    if index.dtype != np.int64:
        raise RuntimeError(f"{op}(): Expected a long tensor for index, but got {index.dtype}")


def _flat_index(op: str, index: Any, size: int) -> Any:
    _check_flat(op, index)
    if index.size and size == 0:
        raise IndexError(f"{op}(): tried to take from an empty tensor")
    wrapped = np.where(index < 0, index + size, index)
    if wrapped.size and (wrapped.min() < 0 or wrapped.max() >= size):
        raise IndexError(f"{op}(): index out of range of {size} elements")
    return wrapped


def _put(input: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    """A copy with `source` stored (or added) at places of the flattened tensor."""
    if source.dtype is not input.dtype:
        raise RuntimeError(
            f"put_(): self and source expected to have the same dtype, but got {input.dtype} and {source.dtype}"
        )
    _check_flat("put_", index._array)
    if source._array.size != index._array.size:
        raise IndexError(
            f"put_(): Expected source and index to have the same number of elements, but got source.numel() = "
            f"{source._array.size}, index.numel() = {index._array.size}"
        )
    places = wrap(_flat_index("put_", index._array, input._array.size).reshape(-1))
    flat = Reshape.apply(input, (-1,)).index_put(
        (places,), Reshape.apply(source, (-1,)), accumulate
    )
    return Reshape.apply(flat, input._array.shape)


export("put", methods=("put",), inplace=("put_",), function=_put)(IndexPut)


def _take_along_dim(input: Any, indices: Any, dim: int | None = None) -> Any:
    """Elements by indices along a dimension (the other dimensions broadcast), as from `argsort`."""
    if indices.dtype.name != "int64":
        raise RuntimeError(
            f"take_along_dim(): dtype of indices should be Long but got {indices.dtype}"
        )
    if dim is None:
        if indices._array.size and indices._array.min() < 0:
            raise RuntimeError(
                f"take_along_dim(): index {indices._array.min()} is out of bounds for {input.numel()} elements"
            )
        return _take_along_dim(Reshape.apply(input, (-1,)), Reshape.apply(indices, (-1,)), 0)
    if input.ndim != indices.ndim:
        raise RuntimeError(
            f"take_along_dim(): input and indices should have the same number of dimensions, but got {input.ndim} and "
            f"{indices.ndim}"
        )
    dim = wrap_dim(dim, input.ndim, "take_along_dim")
    shape, wanted = list(input._array.shape), list(indices._array.shape)
    shape[dim] = wanted[dim] = 1
    try:
        common = list(np.broadcast_shapes(shape, wanted))
    except ValueError:
        raise RuntimeError(
            f"take_along_dim: shapes {list(input.shape)} and {list(indices.shape)} do not broadcast apart from dimension {dim}"
        ) from None
    common[dim] = indices._array.shape[dim]
    places = np.broadcast_to(indices._array, common)
    size = common[dim] = input._array.shape[dim]
    wide = input.expand(*common)
    check_index("take_along_dim", np.where(places < 0, places + size, places), size, dim)
    return TakeAlong.apply(wide, places % max(size, 1), dim)


export(
    "take_along_dim",
    methods=("take_along_dim",),
    function=_take_along_dim,
    kinds={"indices": "Tensor"},
)(TakeAlong)


def _nonzero(input: Any, *, as_tuple: bool = False) -> Any:
    """Where the elements are not zero: one row of indices each, or a tuple of vectors."""
    places = np.nonzero(np.atleast_1d(input._array))
    if as_tuple:
        return tuple(wrap(p) for p in places)
    if input.ndim == 0:
        return wrap(namespace_of(places[0]).zeros((len(places[0]), 0), np.int64))
    return wrap(np.stack(places, axis=1).astype(np.int64))


class Nonzero(Op):
    """Indices of the non-zero elements."""

    differentiable = False


export("nonzero", methods=("nonzero",), function=_nonzero)(Nonzero)


def _argwhere(input: Any) -> Any:
    """Where the elements are not zero, one row of indices each."""
    return _nonzero(input)


export("argwhere", methods=("argwhere",), function=_argwhere)(Nonzero)


def _replace(op: str, input: Any, src: Any, index: tuple[Any, ...]) -> Any:
    expected = input._array[index].shape
    if src._array.shape != expected:
        raise RuntimeError(
            f"{op}: expected src to have a size equal to the slice of self. src size = {list(src.shape)}, slice size = "
            f"{list(expected)}"
        )
    return IndexPut.apply(input, src.to(input.dtype), index)


def _select_scatter(input: Any, src: Any, dim: int, index: int) -> Any:
    """A copy with one entry of a dimension replaced by `src`."""
    dim = wrap_dim(dim, input.ndim, "select_scatter")
    if not -input.shape[dim] <= index < input.shape[dim]:
        raise IndexError(
            f"select_scatter: index {index} out of range for tensor of size {list(input.shape)} at dimension {dim}"
        )
    return _replace("select_scatter", input, src, (slice(None),) * dim + (index,))


def _slice_scatter(
    input: Any,
    src: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Any:
    """A copy with a slice of a dimension replaced by `src`."""
    dim = wrap_dim(dim, input.ndim, "slice_scatter")
    if step <= 0:
        raise RuntimeError(f"slice_scatter: slice step must be positive, got {step}")
    return _replace("slice_scatter", input, src, (slice(None),) * dim + (slice(start, end, step),))


def _diagonal_scatter(input: Any, src: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """A copy with a diagonal replaced by `src`."""
    shape = input._array.shape
    numbers = wrap(namespace_of(input._array).arange(input._array.size).reshape(shape))
    places = Diagonal.apply(numbers, offset, dim1, dim2)
    return _replace("diagonal_scatter", input, src, tuple(np.unravel_index(places._array, shape)))


export(
    "select_scatter", methods=("select_scatter",), function=_select_scatter, kinds={"index": "int"}
)(IndexPut)
export("slice_scatter", methods=("slice_scatter",), function=_slice_scatter)(IndexPut)
export("diagonal_scatter", methods=("diagonal_scatter",), function=_diagonal_scatter)(IndexPut)


def _unravel_index(indices: Any, shape: Any) -> Any:
    """Places in a flattened tensor of that shape as coordinates, one tensor a dimension."""
    if indices.dtype.category != 1:
        raise TypeError(
            f"unravel_index: expected 'indices' to be integer dtype, but got {indices.dtype}"
        )
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if 0 in sizes and indices._array.size:
        raise RuntimeError(f"unravel_index: no element has a place in shape {sizes}")
    if any(s < 0 for s in sizes):
        raise ValueError(f"'shape' cannot have negative values, but got {sizes}")
    raw, places = indices._array.astype(np.int64), []
    for size in sizes[::-1]:
        places.append(wrap(as_array(raw % max(size, 1))))
        raw = raw // max(size, 1)
    return tuple(places[::-1])


export("unravel_index", function=_unravel_index)(Nonzero)
