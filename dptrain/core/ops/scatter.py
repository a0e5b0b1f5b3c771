"""Writing by index along a dimension: scatter, index_add, index_copy, index_fill, put, reductions.

All are written over one pair of operations, `Index` (take) and `Scatter` (add into zeros), whose
derivatives are each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import is_array, namespace_of
from dptrain.core.dtypes import held
from dptrain.core.export import export
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where, zeros_for
from dptrain.core.ops.index import (
    Index,
    IndexPut,
    Scatter,
    _raw_index,
    places_along,
)
from dptrain.core.ops.shape import Embed, Reshape, wrap_dim
from dptrain.core.tensor import Tensor, wrap


def check_index(op: str, index: Any, size: int, dim: int | None = None) -> None:
    """Raise unless `index` is an integer array with values in [0, size)."""
    if not is_array(index) or index.dtype not in (np.int64, np.int32):
        kind = getattr(index, "dtype", type(index).__name__)
        raise RuntimeError(f"{op}(): Expected dtype int32/int64 for index, got {kind}")
    if index.size and (index.min() < 0 or index.max() >= size):
        wrong = int(index.min()) if index.min() < 0 else int(index.max())
        where = "" if dim is None else f"dimension {dim} with "
        raise IndexError(f"{op}(): index {wrong} is out of bounds for {where}size {size}")


def _part(source: Any, index: Any) -> Any:
    """The leading part of `source` that has the shape of `index`."""
    if not is_array(source) or source.shape == index.shape:
        return source
    if not index.size:
        return namespace_of(source).zeros(index.shape, source.dtype)
    return source[tuple(map(slice, index.shape))]


def over_lines(scatter: Callable[..., Any], input: Any, index: Any, source: Any, *rest: Any) -> Any:
    """`scatter` with tensors of no dimension as ones of one element."""
    operands = [
        Reshape.apply(t, (1,)) if isinstance(t, Tensor) and not t.ndim else t
        for t in (input, source, index)
    ]
    lines = scatter(*operands, *rest)
    if input.ndim:
        return lines
    out = Reshape.apply(lines, ())
    if out._node is not None:
        out._node.backward_name = lines._node.grad_name
    return out


def _check_source(op: str, input: Any, source: Any) -> None:
    if (isinstance(source, Tensor) or is_array(source)) and source.dtype != input.dtype:
        raise RuntimeError(
            f"{op}(): Expected self.dtype to be equal to src.dtype, got {input.dtype} and {source.dtype}"
        )


def _scatter(
    input: Any, dim: int, index: Any, src: Any = None, *, value: Any = None, reduce: Any = None
) -> Any:
    """A copy with `src` (a tensor or a number) stored at `index` along `dim`; the last one wins.

    `reduce` "add" or "multiply" combines with what is there instead.
    """
    source = value if src is None else src
    source = held("scatter", source, input._array.dtype)
    if reduce is None:
        return over_lines(ScatterPut.apply, input, index, source, dim)
    if reduce not in ("add", "multiply"):
        raise RuntimeError(
            f"scatter: reduce argument must be either add or multiply, got {reduce!r}"
        )
    if not isinstance(source, Tensor):
        source = wrap(
            namespace_of(index._array).full(index._array.shape, source, input._array.dtype)
        )
    if reduce == "add":
        return _scatter_add(input, dim, index, source)
    from dptrain.core.ops.scatter_reduce import _scatter_reduce

    return _scatter_reduce(input, dim, index, source, "prod")


@export(
    "scatter",
    methods=("scatter",),
    inplace=("scatter_",),
    function=_scatter,
    kinds={"src": "Tensor | Number!", "value": "Number!", "reduce": "str!"},
)
class ScatterPut(Op):
    """A copy of the input with values stored along a dimension."""

    backward_name = "ScatterBackward0"

    def forward(self, input: Any, src: Any, index: Any, dim: int) -> Any:
        _check_source("scatter", input, src)
        self.places = places_along("scatter", input.shape, dim, index, src)
        self.index, self.shape = index, getattr(src, "shape", None)
        out = input.copy()
        out[self.places] = _part(src, index)
        return out

    def backward(self, grad: Any) -> Any:
        d_src = None
        if self.needs[1] and self.shape is not None:
            d_src = _embed_part(Index.call(grad, self.places), self.index, self.shape)
        return IndexPut.call(grad, zeros_for(Index.call(grad, self.places)), self.places), d_src


def _embed_part(grad: Any, index: Any, shape: tuple[int, ...]) -> Any:
    if tuple(grad.shape) == tuple(shape):
        return grad
    if not index.size:
        index = np.zeros((0,) * len(shape))
        grad = Reshape.call(grad, index.shape)
    return Embed.call(grad, shape, tuple(map(slice, index.shape)))


def _scatter_add(input: Any, dim: int, index: Any, src: Any) -> Any:
    """A copy to which `src` is added at `index` along `dim`; repeated places add up."""
    # Here, as the operation gets 16-bit types as float32.
    _check_source("scatter_add", input, src)
    return over_lines(ScatterAdd.apply, input, index, src, dim)


@export("scatter_add", methods=("scatter_add",), inplace=("scatter_add_",), function=_scatter_add)
class ScatterAdd(Op):
    """A copy of the input with values added along a dimension."""

    in_float32 = True
    num_tensors = 3

    def forward(self, input: Any, src: Any, index: Any, dim: int) -> Any:
        self.places = places_along("scatter_add", input.shape, dim, index, src)
        self.index, self.shape = index, src.shape
        out = input.copy()
        kernels_for(out).add_at(out, self.places, _part(src, index))
        return out

    def backward(self, grad: Any) -> Any:
        d_src = None
        if self.needs[1]:
            d_src = _embed_part(Index.call(grad, self.places), self.index, self.shape)
        return grad, d_src


def _lines(input: Any, dim: int, index: Any, op: str) -> tuple[Any, ...]:
    """The index of whole slices `index` of a dimension."""
    dim = wrap_dim(dim, input.ndim, op)
    if getattr(index, "ndim", 0) > 1:
        raise IndexError(
            f"{op}(): Index is supposed to be a vector, but got dim: {index.ndim} with shape {list(index.shape)}"
        )
    check_index(op, index, input.shape[dim] if input.ndim else 1, dim)
    if not input.ndim:
        if op == "index_select" and index.size != 1:
            raise RuntimeError(
                f"index_select(): Index to scalar can have only 1 value, got {index.size} value(s)"
            )
        return ()
    return (slice(None),) * dim + (index.reshape(-1),)


@export("index_select", methods=("index_select",))
class IndexSelect(Op):
    """The given entries of a dimension, as a copy."""

    def forward(self, input: Any, dim: int, index: Any) -> Any:
        self.places, self.shape = _lines(input, dim, index, "index_select"), input.shape
        return Index.call(input, self.places) if self.places else input.copy()

    def backward(self, grad: Any) -> Any:
        return Scatter.call(grad, self.shape, self.places) if self.shape else grad


def _lines_source(op: str, input: Any, source: Any, dim: int, index: Any) -> tuple[Any, ...]:
    """The index of the slices `index` of a dimension, after a check that those of `source` fit."""
    _check_source(op, input, source)
    places = _lines(input, dim, index, op)
    dim = wrap_dim(dim, input.ndim, op)
    count = source.shape[dim] if source.ndim > dim else 1
    slices = [a.shape[:dim] + a.shape[dim + 1 :] for a in (input, source)]
    copies = op == "index_copy"  # of which a number's shape fits a vector, and the reverse
    counted = slices[0] == slices[1] and (copies or bool(source.ndim) == bool(input.ndim))
    if copies and source.ndim != input.ndim and source.ndim and input.ndim:
        counted = True  # PyTorch looks at the number of dimensions first
    elif counted and count == index.size and (input.ndim or count == 1):
        return places
    fitting = [index.size if i == dim else n for i, n in enumerate(input.shape)]
    # PyTorch's kinds: a wrong number of slices is an error of the index, other slices are one of shapes.
    as_index = (copies and counted) or (not source.ndim and index.size != 1 and (copies or not dim))
    raise (IndexError if as_index else RuntimeError)(
        f"{op}(): source of shape {list(source.shape)} does not fit; expected {fitting} for {index.size} indices "
        f"of dimension {dim} of a tensor of shape {list(input.shape)}"
    )


def _index_add(input: Any, dim: int, index: Any, source: Any, *, alpha: Any = 1) -> Any:
    """A copy to which the entries of `source` are added at `index` of a dimension."""
    _check_source("index_add", input, source)
    return IndexAdd.apply(input, source, index, dim, alpha)


@export("index_add", methods=("index_add",), inplace=("index_add_",), function=_index_add)
class IndexAdd(Op):
    """A copy of the input with slices added."""

    in_float32 = True
    num_tensors = 3

    def forward(self, input: Any, source: Any, index: Any, dim: int, alpha: Any) -> Any:
        self.places = _lines_source("index_add", input, source, dim, index)
        self.alpha, self.shape = alpha, source.shape
        out = input.copy()
        if alpha != 1:  # converted as PyTorch does it: -1 is 255 for uint8
            source = source * self.xp.asarray(alpha).astype(input.dtype)
        kernels_for(out).add_at(out, self.places, source)
        return out

    def backward(self, grad: Any) -> Any:
        picked = Index.call(grad, self.places) if self.places else grad
        return grad, picked if self.alpha == 1 else picked * self.alpha


def _index_copy(input: Any, dim: int, index: Any, source: Any) -> Any:
    """A copy with the entries `index` of a dimension replaced by those of `source`."""
    return IndexCopy.apply(input, source, index, dim)


@export("index_copy", methods=("index_copy",), inplace=("index_copy_",), function=_index_copy)
class IndexCopy(Op):
    """A copy of the input with slices replaced."""

    num_tensors = 3

    def forward(self, input: Any, source: Any, index: Any, dim: int) -> Any:
        if is_array(index) and index.dtype != np.int64:
            raise RuntimeError(
                f"index_copy(): Expected a long tensor for index, but got {index.dtype}"
            )
        self.places = _lines_source("index_copy", input, source, dim, index)
        self.shape = source.shape
        out = input.copy()
        out[self.places] = source if input.ndim else source.reshape(())
        return out

    def backward(self, grad: Any) -> Any:
        picked = Index.call(grad, self.places) if self.places else grad
        zeros = IndexPut.call(grad, zeros_for(picked), self.places or (...,))
        return zeros, Reshape.call(picked, self.shape)


def _index_fill(input: Any, dim: int, index: Any, value: Any) -> Any:
    """A copy with the entries `index` of a dimension set to one value."""
    if isinstance(value, Tensor) and value.ndim:
        raise RuntimeError(
            f"index_fill only supports a 0-dimensional value tensor, but got tensor with {value.ndim} dimension(s)."
        )
    return IndexFill.apply(input, held("index_fill", value, input._array.dtype), index, dim)


@export("index_fill", methods=("index_fill",), inplace=("index_fill_",), function=_index_fill)
class IndexFill(Op):
    """A copy of the input with slices set to a value."""

    def forward(self, input: Any, value: Any, index: Any, dim: int) -> Any:
        if is_array(index) and index.dtype != np.int64:
            raise IndexError(f"index_fill(): Expected dtype int64 for index, but got {index.dtype}")
        if getattr(index, "ndim", 0) > 1:
            raise RuntimeError(
                f"index_fill(): Index has to be a vector/scalar, got shape {list(index.shape)}"
            )
        # Each place once: it has one value to derive, however often it was named.
        unique = self.xp.unique(index) if is_array(index) and index.size else index
        self.places = _lines(input, dim, unique, "index_fill")
        if not (input.ndim or index.size):  # no place of a tensor without dimensions
            self.places = (self.xp.asarray(False),)
        out = input.copy()
        out[self.places] = value
        return out

    def backward(self, grad: Any) -> Any:
        picked = Index.call(grad, self.places or (...,))
        return IndexPut.call(grad, zeros_for(picked), self.places or (...,)), picked.sum()


def _index_put(input: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """A copy with `values` stored (or added, if `accumulate`) at the places of an index tuple."""
    if not indices:
        raise RuntimeError("index_put: expected at least one tensor of indices")
    raw, _ = _raw_index(tuple(indices), input._array)
    if values.dtype is not input.dtype:
        raise RuntimeError(
            f"index_put requires the source and destination dtypes match, got {input.dtype} for the destination and "
            f"{values.dtype} for the source"
        )
    try:
        return IndexPutAdd.apply(input, values, raw, accumulate)
    except IndexError as error:
        raise IndexError(
            f"index_put: indices do not fit a tensor of shape {list(input.shape)}: {error}"
        ) from None


@export(
    "index_put",
    methods=("index_put",),
    inplace=("index_put_",),
    function=_index_put,
    kinds={"indices": "tuple of Tensors"},
)
class IndexPutAdd(Op):
    """A copy of the input with values stored or added at an advanced index."""

    in_float32 = True
    backward_name = "IndexPutBackward0"

    num_tensors = 2

    def forward(self, input: Any, values: Any, index: Any, accumulate: bool) -> Any:
        self.index, self.accumulate = index, accumulate
        out = input.copy()
        if accumulate:
            shape = Index.call(input, index).shape  # which refuses places outside
            kernels_for(out).add_at(out, index, self.xp.broadcast_to(values, shape))
        else:
            out[index] = values
        return out

    def backward(self, grad: Any) -> Any:
        picked = Index.call(grad, self.index)
        if self.accumulate:
            return grad, picked
        return IndexPut.call(grad, zeros_for(picked), self.index), picked


def _masked_fill(input: Any, mask: Any, value: Any) -> Any:
    """A copy with `value` (a number or a 0-d tensor) where the mask holds."""
    if isinstance(value, Tensor) and value.ndim:
        raise RuntimeError(
            f"masked_fill only supports a 0-dimensional value tensor, but got tensor with {value.ndim} dimension(s)."
        )
    return MaskedFill.apply(input, mask, held("masked_fill", value, input._array.dtype))


@export("masked_fill", methods=("masked_fill",), inplace=("masked_fill_",), function=_masked_fill)
class MaskedFill(Op):
    """A copy of the input with a value where a mask holds."""

    num_tensors = 2

    def forward(self, input: Any, mask: Any, value: Any) -> Any:
        if mask.dtype != np.bool_:
            raise RuntimeError(
                f"masked_fill only supports boolean masks, but got mask with dtype {mask.dtype}"
            )
        self.mask = mask
        return self.xp.where(mask, self.xp.asarray(value).astype(input.dtype), input)

    def backward(self, grad: Any) -> Any:
        d_value = Where.call(self.mask, grad, 0).sum() if self.needs[2] else None
        return Where.call(self.mask, 0, grad), None, d_value


@export("masked_scatter", methods=("masked_scatter",), inplace=("masked_scatter_",))
class MaskedScatter(Op):
    """A copy with the places where the mask holds filled from `source` in order."""

    num_tensors = 3

    def forward(self, input: Any, mask: Any, source: Any) -> Any:
        if mask.dtype != np.bool_:
            raise RuntimeError(
                f"masked_scatter_ only supports boolean masks, but got mask with dtype {mask.dtype}"
            )
        _check_source("masked_scatter", input, source)
        shape = np.broadcast_shapes(input.shape, mask.shape)
        self.mask = np.broadcast_to(mask, shape)
        count = int(self.mask.sum())
        if count > source.size:
            raise RuntimeError(
                f"masked_scatter: expected self and source to have {count} elements at least where the mask holds, but "
                f"source has {source.size}"
            )
        self.count, self.shape = count, source.shape
        out = np.broadcast_to(input, shape).copy()
        out[self.mask] = source.reshape(-1)[:count]
        return out

    def backward(self, grad: Any) -> Any:
        d_source = None
        if self.needs[2]:
            size = int(np.prod(self.shape, dtype=np.int64))
            taken = Index.call(grad, (self.mask,))
            d_source = Reshape.call(Embed.call(taken, (size,), (slice(self.count),)), self.shape)
        return Where.call(self.mask, 0, grad), None, d_source


@export("fill")
class Fill(Op):
    """A copy of the shape and dtype of the input with one value everywhere."""

    def forward(self, input: Any, value: Any) -> Any:
        if getattr(value, "ndim", 0):
            raise RuntimeError(
                f"fill only supports 0-dimension value tensor but got tensor with {value.ndim} dimensions."
            )
        return self.xp.full(input.shape, held("fill", value, input.dtype), input.dtype)

    def backward(self, grad: Any) -> Any:
        return zeros_for(grad), grad.sum() if self.needs[1] else None
