"""Taking and assigning parts by index: basic (views) and advanced (copies). One block per operation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from dptrain.core.arguments import in_our_words
from dptrain.core.arrays import HOST_TYPES, common_namespace, grid, is_array, move, namespace_of
from dptrain.core.cuda import cannot_look
from dptrain.core.dtypes import held
from dptrain.core.export import export
from dptrain.core.grad_mode import is_grad_enabled
from dptrain.core.history import check_writeable
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.compare import zeros_for
from dptrain.core.ops.shape import Embed, Reshape, wrap_dim
from dptrain.core.tensor import Tensor

#: Types of what gives a view, whatever its value.
_BASIC = frozenset([int, slice, type(None), type(...)])


def _raw_index(index: Any, array: Any) -> tuple[Any, bool]:
    """The index into `array` with tensors as arrays, and whether it is basic (gives a view)."""
    parts = index if type(index) is tuple else (index,)
    if _BASIC.issuperset(map(type, parts)):  # the case of nearly every call
        if slice in map(type, parts):
            parts = tuple([_checked_slice(p) if type(p) is slice else p for p in parts])
        return parts, True
    raw, basic = [], True
    for part in _parts(index):
        if isinstance(part, Tensor):
            part = part._array
        elif _is_sequence(part):
            part = _places(part, namespace_of(array))
        if is_array(part) and _is_number(part):
            part = int(part)  # selects a view, as an int does
        if is_array(part):
            if part.dtype.kind not in "biu":
                raise IndexError(
                    f"tensors used as indices must be long, int, byte or bool tensors, got {part.dtype}"
                )
            part = part.astype(bool) if part.dtype == np.uint8 else part
            if type(part) is not type(array):
                common_namespace((array, part))
            basic = False
        elif isinstance(part, (bool, np.bool_)):
            basic = False
        elif not (part is None or part is Ellipsis or isinstance(part, (int, np.integer, slice))):
            kind = TypeError if isinstance(part, (str, bytes)) else IndexError
            raise kind(
                "only integers, slices (`:`), ellipsis (`...`), None and long or bool Tensors are valid indices "
                f"(got {type(part).__name__})"
            )
        elif isinstance(part, slice):
            part = _checked_slice(part)
        raw.append(part)
    return tuple(raw), basic


def _is_sequence(part: Any) -> bool:
    """Whether an index is a list, tuple, range or the like: places along one dim, as a tensor would hold."""
    if isinstance(part, (int, slice, Tensor)) or part is None or part is Ellipsis:
        return False
    if isinstance(part, (str, bytes, dict, np.generic)) or is_array(part):
        return False
    return hasattr(type(part), "__getitem__")


def _is_number(part: Any) -> bool:
    """Whether an index array is one integer that may be looked at (bools and bytes are masks)."""
    if part.ndim or part.dtype.kind not in "iu" or part.dtype == np.uint8:
        return False
    return type(part) is np.ndarray or not cannot_look()


def _parts(index: Any) -> tuple[Any, ...]:
    """The index per dim. A short list that holds sequences, tensors, slices, None or ... stands for a tuple,
    with a warning (NumPy's old rule, which PyTorch keeps)."""
    if isinstance(index, tuple):
        return index
    if not _is_sequence(index) or len(index) >= 32:  # the old rule's limit
        return (index,)
    for part in index:
        if part is None or part is Ellipsis or isinstance(part, (slice, Tensor)):
            break
        if is_array(part) or _is_sequence(part):
            break
    else:
        return (index,)
    warnings.warn(
        "a list of sequences, tensors or slices as index stands for a tuple, which is deprecated: "
        "use x[tuple(index)]",
        UserWarning,
        stacklevel=4,
    )
    return tuple(index)


def _places(part: Any, xp: Any) -> Any:
    """A sequence of numbers or bools as an index array; numbers with a fraction lose it."""
    try:
        places = xp.asarray(list(part))
    except ValueError as error:
        raise TypeError(f"an index given as nested sequences must be regular: {error}") from None
    return places.astype(np.int64) if places.dtype.kind == "f" else places


_PLACES = (int, type(None))


def _checked_slice(part: slice) -> slice:
    start, stop, step = part.start, part.stop, part.step
    if step is None and type(start) in _PLACES and type(stop) in _PLACES:
        return part
    values = tuple(v.item() if isinstance(v, Tensor) else v for v in (start, stop, step))
    if values[2] is not None and values[2] <= 0:
        raise ValueError(f"step must be greater than zero, got {values[2]}")
    return slice(*values)


class GetItem(Op):
    """input[index] with a basic index: a view."""

    is_view = True
    takes_part = True
    name = "index"

    def forward(self, input: Any, index: Any) -> Any:
        self.index, self.shape, self.strides = index, input.shape, input.strides
        out = input[index]
        # Of integers alone NumPy makes a scalar; with an ellipsis it stays a view.
        return out if type(out) is type(input) else input[(*index, ...)]

    def backward(self, grad: Any) -> Any:
        return Embed.call(grad, self.shape, self.index, self.strides)


_WHOLE = slice(None)


def _along_one(index: tuple[Any, ...], ndim: int) -> bool:
    """Whether an index is an array of places along one dimension."""
    places = index[-1]
    if len(index) > ndim or not is_array(places) or places.dtype.kind != "i":
        return False
    return all(isinstance(part, slice) and part == _WHOLE for part in index[:-1])


class Index(Op):
    """input[index] with integer or boolean arrays: a copy."""

    name = "index"

    def forward(self, input: Any, index: Any) -> Any:
        self.index, self.shape = index, input.shape
        if type(input) in HOST_TYPES and _along_one(index, input.ndim):
            # NumPy copies whole lines here, and in row-major order.
            return input.take(index[-1], axis=len(index) - 1)
        return input[index]

    def backward(self, grad: Any) -> Any:
        return Scatter.call(grad, self.shape, self.index)


class Scatter(Op):
    """Zeros of a shape to which the input is added at an advanced index; repeated places add up."""

    def forward(self, input: Any, shape: tuple[int, ...], index: Any) -> Any:
        self.index = index
        out = self.xp.zeros(shape, dtype=input.dtype)
        kernels_for(out).add_at(out, index, input)
        return out

    def backward(self, grad: Any) -> Any:
        return Index.call(grad, self.index)


class IndexPut(Op):
    """A copy of the input with `value` stored at the index."""

    def forward(self, input: Any, value: Any, index: Any) -> Any:
        self.index = index
        out = input.copy()
        out[index] = value
        return out

    def backward(self, grad: Any) -> Any:
        zero = zeros_for(grad[self.index])
        d_value = None
        if self.needs[1]:
            d_value = Index.call(grad, self.index)
        return IndexPut.call(grad, zero, self.index), d_value


def _getitem(self: Tensor, index: Any) -> Tensor:
    raw, basic = _raw_index(index, self._array)
    try:
        return (GetItem if basic else Index).apply(self, raw)
    except IndexError as error:
        raise IndexError(
            f"index {index!r} does not fit a tensor of shape {list(self.shape)}: {in_our_words(error)}"
        ) from None


def _stored(self: Tensor, value: Tensor, basic: bool) -> Any:
    """The array to store: to a part that is a view values may come from another device, as by `copy_`."""
    array = value._array
    if type(array) is type(self._array) is np.ndarray:
        return array
    if basic:
        return move(array, self.device)
    common_namespace((self._array, array))
    return array


def _setitem(self: Tensor, index: Any, value: Any) -> None:
    raw, basic = _raw_index(index, self._array)
    if not isinstance(value, (Tensor, np.ndarray)):
        if not isinstance(value, (int, float, np.number, np.bool_)):
            raise TypeError(
                f"__setitem__(): value must be Tensor or Number, not {type(value).__name__}"
            )
        value = value.item() if isinstance(value, np.generic) else value
        if self._array.dtype != np.float16:  # where PyTorch lets single elements become inf
            value = held("__setitem__", value, self._array.dtype)
    self._check_inplace("__setitem__")
    check_writeable(self, "__setitem__")
    try:
        if is_grad_enabled() and (
            self._requires_grad or (isinstance(value, Tensor) and value.requires_grad)
        ):
            if basic:
                part = GetItem.apply(self, raw)
                part.copy_(value) if isinstance(value, Tensor) else part.fill_(value)
                return
            self._assign_result(IndexPut.apply(self, value, raw), "__setitem__")
        else:
            self._array[raw] = _stored(self, value, basic) if isinstance(value, Tensor) else value
            self._bump_version()
    except ValueError:
        shape = list(value.shape) if isinstance(value, Tensor) else list(np.shape(value))
        raise RuntimeError(
            f"__setitem__: shape mismatch: value of shape {shape} cannot be stored at index {index!r} of a tensor of "
            f"shape {list(self.shape)}"
        ) from None
    except IndexError as error:
        raise IndexError(
            f"index {index!r} does not fit a tensor of shape {list(self.shape)}: {in_our_words(error)}"
        ) from None


Tensor.__getitem__ = _getitem  # type: ignore[method-assign]
Tensor.__setitem__ = _setitem  # type: ignore[method-assign]


def places_along(
    op: str, shape: tuple[int, ...], dim: int, index: Any, source: Any = None
) -> tuple[Any, ...]:
    """The advanced index that stands for `index` along `dim` of a tensor of `shape`.

    One place per element of `index`. A 0-d tensor counts as (1,); an empty index may be of any type
    and number of dimensions, as in PyTorch.

    Raises:
        RuntimeError: an index that is no int32 or int64 tensor, does not fit, or leaves the dimension.
    """
    dim = wrap_dim(dim, len(shape), op)
    shape = shape or (1,)
    if is_array(index) and not index.size:
        return (namespace_of(index).zeros(index.shape, np.int64),) * len(shape)
    if not is_array(index) or index.dtype not in (np.int64, np.int32):
        kind = getattr(index, "dtype", type(index).__name__)
        raise RuntimeError(f"{op}(): Expected dtype int32/int64 for index, got {kind}")
    if max(index.ndim, 1) != len(shape):
        raise RuntimeError(
            f"{op}(): Index tensor must have the same number of dimensions as self tensor ({index.ndim} and {len(shape)})"
        )
    if is_array(source) and max(source.ndim, 1) != max(index.ndim, 1):
        raise RuntimeError(
            f"{op}(): Index tensor must have the same number of dimensions as src tensor ({index.ndim} and {source.ndim})"
        )
    for d, n in enumerate(index.shape):
        if d != dim and n > shape[d]:
            raise RuntimeError(
                f"{op}(): Expected index {list(index.shape)} to be no larger than self {list(shape)} apart from "
                f"dimension {dim}"
            )
        if is_array(source) and n > (source.shape or (1,))[d]:
            raise RuntimeError(
                f"{op}(): Expected index {list(index.shape)} to be no larger than src {list(source.shape)}"
            )
    least = index.min()
    if least < 0 or index.max() >= shape[dim]:
        wrong = int(least) if least < 0 else int(index.max())
        raise RuntimeError(
            f"{op}(): index {wrong} is out of bounds for dimension {dim} with size {shape[dim]}"
        )
    if index.ndim < 2:
        return (index,)
    places: list[Any] = grid(index.shape, namespace_of(index))
    places[dim] = index
    return tuple(places)


#: Places up to which it takes longer to reckon with them than NumPy does with several indices.
_FEW = 1024


def _in_one_dimension(places: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """The index of `places_along` into a contiguous tensor of `shape` as one into its elements in a row."""
    flat, step = places[-1], 1
    for place, size in zip(places[-2::-1], shape[:0:-1], strict=True):
        step *= size
        flat = flat + place * step
    return flat


@export("gather", methods=("gather",))
class Gather(Op):
    """out[i][j] = input[index[i][j]][j] (dim 0): one element per element of `index`."""

    def forward(self, input: Any, dim: int, index: Any) -> Any:
        self.places, self.shape = places_along("gather", input.shape, dim, index), input.shape
        if index.size > _FEW and input.flags.c_contiguous:
            return input.reshape(-1).take(_in_one_dimension(self.places, self.shape))
        return input.reshape(input.shape or (1,))[self.places]

    def backward(self, grad: Any) -> Any:
        if not self.shape:
            return Reshape.call(Scatter.call(grad, (1,), self.places), ())
        return Scatter.call(grad, self.shape, self.places)
