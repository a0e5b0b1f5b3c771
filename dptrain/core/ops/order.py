"""Ordering: sort, topk, kthvalue, median, mode, unique, searching in sorted sequences, counting."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.capturing import recorders
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.reduce import PutAlong, TakeAlong, _Extremum
from dptrain.core.ops.shape import wrap_dim
from dptrain.core.results import results
from dptrain.core.tensor import Tensor, wrap


class _Counting(Op):
    """Results without derivatives: indices and counts."""

    differentiable = False


def _orderable(input: Any) -> Any:
    """Values that NumPy sorts in place of `input`'s, NaN last."""
    array = input._array if isinstance(input, Tensor) else input
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def _first(input: Tensor) -> Tensor:
    """The place of the only element of a tensor of no dimension."""
    return wrap(namespace_of(input._array).zeros((), np.int64))


def _order(input: Any, dim: int, descending: bool) -> np.ndarray:
    """Indices that sort along `dim`, equal elements in their order; NaN counts as largest."""
    values = _orderable(input)
    if not descending:
        return np.argsort(values, axis=dim, kind="stable")
    backwards = (slice(None),) * dim + (slice(None, None, -1),)
    turned = np.argsort(values[backwards], axis=dim, kind="stable")
    return values.shape[dim] - 1 - turned[backwards]


#: Elements of a line from which on it pays to look for the first ones without sorting all of them.
_LONG_LINE = 256


def _first_places(input: Any, k: int, dim: int, descending: bool) -> np.ndarray:
    """The first k of `_order`."""
    values, size = _orderable(input), input._array.shape[dim]
    if type(values) is np.ndarray and size >= _LONG_LINE and 0 < k <= size // 8 and not recorders:
        lines = np.moveaxis(values, dim, -1)
        edge = np.partition(lines, size - k if descending else k - 1, axis=-1)
        edge = edge[..., size - k if descending else k - 1, None]
        found = lines >= edge if descending else lines <= edge
        places = found.nonzero()[-1]
        # Elsewhere there are ties at the edge, or what is no number.
        if (found.sum(axis=-1) == k).all():
            places = places.reshape(*lines.shape[:-1], k)
            among = _order(np.take_along_axis(lines, places, -1), lines.ndim - 1, descending)
            places = np.take_along_axis(places, among, -1)
            return np.ascontiguousarray(np.moveaxis(places, -1, dim))
    return _order(input, dim, descending)[(slice(None),) * dim + (slice(k),)].copy()


class Sort(TakeAlong):
    """The elements in order."""


class Topk(TakeAlong):
    """The first elements in order."""


sort_result = results("sort", "values", "indices")


topk_result = results("topk", "values", "indices")


kthvalue_result = results("kthvalue", "values", "indices")


median_result = results("median", "values", "indices")


nanmedian_result = results("nanmedian", "values", "indices")


mode_result = results("mode", "values", "indices")


def _sort(input: Any, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    """The elements in order along `dim`, and where they stood; equal ones keep their order."""
    dim = wrap_dim(dim, input.ndim, "sort")
    if input.ndim == 0:
        return sort_result((input.clone(), _first(input)))
    indices = _order(input, dim, descending)
    return sort_result((Sort.apply(input, indices, dim), wrap(indices)))


def _argsort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """Where the elements stand that come in order along `dim`."""
    dim = wrap_dim(dim, input.ndim, "argsort")
    if input.ndim == 0:
        return _first(input)
    return wrap(_order(input, dim, descending))


def _msort(input: Any) -> Any:
    """The elements in order along the first dimension."""
    return _sort(input, 0).values


export("sort", methods=("sort",), function=_sort)(Sort)
export("argsort", methods=("argsort",), function=_argsort)(_Counting)
export("msort", methods=("msort",), function=_msort)(Sort)


def _topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The k largest (or smallest) elements along `dim`, in order, and where they stand."""
    dim = wrap_dim(dim, input.ndim, "topk")
    size = input._array.shape[dim] if input.ndim else 1
    if not 0 <= k <= size:
        raise RuntimeError(
            f"topk: selected index k out of range: k is {k}, dimension {dim} has {size} elements"
        )
    if input.ndim == 0:
        if k == 0:
            raise RuntimeError("topk: k must be 1 for a 0-dimensional tensor, got 0")
        return topk_result((input.clone(), _first(input)))
    indices = _first_places(input, k, dim, largest)
    return topk_result((Topk.apply(input, indices, dim), wrap(indices)))


def _kthvalue(input: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The k-th smallest element along `dim` (k from 1), and where it stands."""
    dim = wrap_dim(dim, input.ndim, "kthvalue")
    size = input._array.shape[dim] if input.ndim else 1
    if not 1 <= k <= size:
        raise RuntimeError(
            f"kthvalue(): selected number k out of range for dimension {dim}: k is {k}, size is {size}"
        )
    if input.ndim == 0:
        return kthvalue_result((input.clone(), _first(input)))
    return kthvalue_result(_one_place(input, _order(input, dim, False), k - 1, dim, keepdim))


def _one_place(input: Any, order: np.ndarray, place: Any, dim: int, keepdim: bool) -> Any:
    """The elements at one place (a number, or one for each line) of an order along `dim`."""
    place = namespace_of(order).asarray(place)
    places = np.broadcast_to(place, (*order.shape[:dim], 1, *order.shape[dim + 1 :]))
    indices = np.take_along_axis(order, places, axis=dim)
    values = TakeAlong.apply(input, indices, dim)
    return (
        (values, wrap(indices))
        if keepdim
        else (values.squeeze(dim), wrap(np.squeeze(indices, dim)))
    )


export("topk", methods=("topk",), function=_topk)(Topk)
export("kthvalue", methods=("kthvalue",), function=_kthvalue)(TakeAlong)


def _middle(input: Any, dim: int, ignore_nan: bool) -> tuple[np.ndarray, Any]:
    """The order along `dim` and the place of the lower median, of a NaN where one counts."""
    order = _order(input, dim, False)
    values = _orderable(input)
    nans = (
        np.isnan(values).sum(axis=dim, keepdims=True)
        if values.dtype.kind == "f"
        else namespace_of(values).zeros((), np.int64)
    )
    size = values.shape[dim]
    if ignore_nan:
        return order, np.maximum(size - nans - 1, 0) // 2
    return order, np.where(nans > 0, size - nans, (size - 1) // 2)


class MedianOfAll(_Extremum):
    """The median of all elements; its equals share the gradient, as in PyTorch."""

    counts_nan = True
    ignores_nan = False

    def _reduce(self, input: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
        line = input.reshape(-1)
        order, place = _middle(line, 0, self.ignores_nan)
        return line[np.take(order, place)].reshape(())


class NanmedianOfAll(MedianOfAll):
    """The median of all elements that are not NaN."""

    ignores_nan = True


def _median_of(name: str, result: Any, of_all: type[MedianOfAll]) -> Any:
    ignore_nan = of_all.ignores_nan

    def function(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            return of_all.apply(input) if input._array.size else input.sum() * float("nan")
        dim = wrap_dim(dim, input.ndim, name)
        if input.ndim == 0:
            return result((input.clone(), _first(input)))
        if input._array.shape[dim] == 0:
            raise IndexError(
                f"{name}(): Expected reduction dim {dim} to have non-zero size; the input has shape {list(input.shape)}"
            )
        return result(_one_place(input, *_middle(input, dim, ignore_nan), dim, keepdim))

    return function


_median = _median_of("median", median_result, MedianOfAll)
_median.__doc__ = "The median (the lower of two); along `dim` with its index. NaN wins."
_nanmedian = _median_of("nanmedian", nanmedian_result, NanmedianOfAll)
_nanmedian.__doc__ = "The median of what is not NaN (the lower of two); along `dim` with its index."
export("median", methods=("median",), function=_median, kinds={"dim": "int!"})(TakeAlong)
export("nanmedian", methods=("nanmedian",), function=_nanmedian, kinds={"dim": "int!"})(TakeAlong)


def _mode(input: Any, dim: int = -1, keepdim: bool = False) -> Any:
    """The most frequent element along `dim` (the smallest of equals), and its last index."""
    dim = wrap_dim(dim, input.ndim, "mode")
    if input.ndim == 0:
        return mode_result((input.clone(), _first(input)))
    values = _orderable(input)
    if values.shape[dim] == 0:
        raise IndexError(
            f"mode(): Expected reduction dim {dim} to have non-zero size; the input has shape {list(input.shape)}"
        )
    order = np.moveaxis(_order(input, dim, False), dim, -1)
    lines = np.take_along_axis(np.moveaxis(values, dim, -1), order, axis=-1)
    # The run in which each sorted element stands, by its length so far; the longest run's end wins.
    run = namespace_of(lines).ones(lines.shape, np.int64)
    for k in range(1, lines.shape[-1]):
        run[..., k] = np.where(lines[..., k] == lines[..., k - 1], run[..., k - 1] + 1, 1)
    place = np.moveaxis(run.argmax(axis=-1)[..., None], -1, dim)
    return mode_result(_one_place(input, np.moveaxis(order, -1, dim), place, dim, keepdim))


export("mode", methods=("mode",), function=_mode)(PutAlong)


def _unique(
    input: Any,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The different elements (or slices of `dim`) in order; on request the inverse and the counts."""
    array = input._array
    if dim is not None:
        dim = wrap_dim(dim, input.ndim, "unique")
    values, inverse, counts = np.unique(
        array, return_inverse=True, return_counts=True, axis=dim, equal_nan=False
    )
    shape = array.shape if dim is None else (array.shape[dim],) if array.ndim else ()
    parts = [wrap(values)]
    if return_inverse:
        parts.append(wrap(inverse.astype(np.int64).reshape(shape)))
    if return_counts:
        parts.append(wrap(counts.astype(np.int64)))
    return parts[0] if len(parts) == 1 else tuple(parts)


def _unique_consecutive(
    input: Any, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The first element (or slice of `dim`) of every run of equals; inverse and counts on request."""
    array = input._array
    if dim is None:
        lines, shape = array.reshape(-1), array.shape
    else:
        dim = wrap_dim(dim, input.ndim, "unique_consecutive")
        lines, shape = np.moveaxis(array, dim, 0), (array.shape[dim],)
    new = namespace_of(lines).ones(len(lines), bool)
    if len(lines) > 1:
        new[1:] = (lines[1:] != lines[:-1]).reshape(len(lines) - 1, -1).any(axis=1)
    values = lines[new]
    parts = [wrap(values if dim is None else np.moveaxis(values, 0, dim))]
    if return_inverse:
        parts.append(wrap((np.cumsum(new) - 1).reshape(shape)))
    if return_counts:
        parts.append(wrap(np.diff(np.append(np.flatnonzero(new), len(lines)))))
    return parts[0] if len(parts) == 1 else tuple(parts)


export("unique", methods=("unique",), function=_unique)(_Counting)
export("unique_consecutive", methods=("unique_consecutive",), function=_unique_consecutive)(
    _Counting
)
