"""Reductions into indexed places: scatter_reduce and index_reduce."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, is_array
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where
from dptrain.core.ops.index import Index, places_along
from dptrain.core.ops.scatter import (
    _check_source,
    _embed_part,
    _lines_source,
    _part,
    over_lines,
)
from dptrain.core.tensor import Tensor

_UFUNCS = {
    "sum": "add",
    "prod": "multiply",
    "mean": "add",
    "amax": "maximum",
    "amin": "minimum",
}


def _scatter_reduce(
    input: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> Any:
    """A copy into which `src` is reduced at `index` along `dim`: sum, prod, mean, amax or amin.

    With `include_self` False the values that were there do not take part.
    """
    if reduce not in _UFUNCS:
        raise RuntimeError(
            f"scatter_reduce: reduce argument must be either sum, prod, mean, amax or amin, got {reduce}."
        )
    return over_lines(ScatterReduce.apply, input, index, src, dim, reduce, include_self)


@export(
    "scatter_reduce",
    methods=("scatter_reduce",),
    inplace=("scatter_reduce_",),
    function=_scatter_reduce,
)
class ScatterReduce(Op):
    """A copy of the input with values reduced into places of a dimension."""

    num_tensors = 3
    _name = "scatter_reduce"

    def _locate(self, input: Any, src: Any, index: Any, dim: int) -> tuple[Any, ...]:
        _check_source(self._name, input, src)
        return places_along(self._name, input.shape, dim, index, src)

    def forward(
        self, input: Any, src: Any, index: Any, dim: int, reduce: str, include_self: bool
    ) -> Any:
        self.places = self._locate(input, src, index, dim) or (...,)
        self.index, self.shape = index, src.shape
        self.reduce, self.include_self = reduce, include_self
        values = self._values(src)
        touched = self.xp.zeros(input.shape, bool)
        touched[self.places] = True
        self.dropped = touched & (not include_self)
        start = {"sum": 0, "mean": 0, "prod": 1, "amax": _lowest(input), "amin": _highest(input)}
        out = self.xp.where(self.dropped, self.xp.asarray(start[reduce]).astype(input.dtype), input)
        getattr(self.xp, _UFUNCS[reduce]).at(out, self.places, values)
        if reduce == "mean":
            count = self.xp.full(input.shape, int(include_self))
            self.xp.add.at(count, self.places, 1)
            self.count = np.maximum(count, 1)
            integers = input.dtype.kind in "iu"
            out = (np.floor_divide if integers else np.divide)(out, self.count)
            return out.astype(input.dtype)
        return out

    def _values(self, src: Any) -> Any:
        return _part(src, self.index)

    def _spread(self, part: Any) -> Any:
        return _embed_part(part, self.index, self.shape)

    def backward(self, grad: Any, input: Any, src: Any, out: Any) -> Any:
        kept = Where.call(self.dropped, 0, grad)
        if self.reduce == "sum":
            return kept, self._spread(Index.call(grad, self.places))
        if self.reduce == "mean":
            even = grad / self.count
            d_input = Where.call(self.dropped, 0, even)
            return d_input, self._spread(Index.call(even, self.places))
        values = self._values(src)
        if self.reduce == "prod":
            return self._product_gradients(grad, input, values, out)
        picked_out = Index.call(out, self.places)
        mine, theirs = (input == out), (values == picked_out)
        raw_mine, raw_theirs = (as_array(getattr(m, "_array", m)) for m in (mine, theirs))
        raw_mine = as_array(raw_mine & ~self.dropped)
        ties = self.xp.asarray(raw_mine, np.float64)
        self.xp.add.at(ties, self.places, raw_theirs.astype(np.float64))
        share = grad / np.maximum(ties, 1).astype(out.dtype if is_array(out) else out._array.dtype)
        d_input = Where.call(raw_mine, share, 0)
        picked = Index.call(share, self.places)
        return d_input, self._spread(Where.call(raw_theirs, picked, 0))

    def _product_gradients(self, grad: Any, input: Any, values: Any, out: Any) -> Any:
        raw_input, raw_values = (as_array(getattr(v, "_array", v)) for v in (input, values))
        mine_zero, theirs_zero = raw_input == 0, raw_values == 0
        if mine_zero.any() or theirs_zero.any():
            if isinstance(grad, Tensor):
                raise RuntimeError(
                    f"{self._name}: the derivative of the backward of reduce='prod' with zeros among the values is not "
                    "implemented"
                )
            # The products of the other factors: nothing where another one is 0.
            counted = self.xp.asarray(mine_zero & ~self.dropped, np.int64)
            self.xp.add.at(counted, self.places, self.xp.asarray(theirs_zero, np.int64))
            input = self.xp.where(mine_zero, input.dtype.type(1), input)
            values = self.xp.where(theirs_zero, values.dtype.type(1), values)
            rest = as_array(self.xp.where(self.dropped, input.dtype.type(1), input))
            self.xp.multiply.at(rest, self.places, values)
            by_input = self.xp.where(counted == mine_zero, rest, 0) * grad
            by_values = self.xp.where(counted[self.places] == theirs_zero, rest[self.places], 0)
            d_input = self.xp.where(self.dropped, 0, by_input / input)
            return d_input, self._spread(by_values * grad[self.places] / values)
        d_input = Where.call(self.dropped, 0, grad * out / input)
        return d_input, self._spread(Index.call(grad * out, self.places) / values)


def _lowest(input: Any) -> Any:
    if input.dtype.kind in "iu":
        return np.iinfo(input.dtype).min
    return False if input.dtype == np.bool_ else -np.inf


def _highest(input: Any) -> Any:
    if input.dtype.kind in "iu":
        return np.iinfo(input.dtype).max
    return True if input.dtype == np.bool_ else np.inf


def _index_reduce(
    input: Any, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True
) -> Any:
    """A copy into whose entries `index` of a dimension those of `source` are reduced: prod, mean, amax, amin."""
    if reduce not in ("prod", "mean", "amax", "amin"):
        raise RuntimeError(
            f"index_reduce: reduce argument must be either prod, mean, amax or amin, got {reduce}."
        )
    return IndexReduce.apply(input, source, index, dim, reduce, include_self)


@export(
    "index_reduce", methods=("index_reduce",), inplace=("index_reduce_",), function=_index_reduce
)
class IndexReduce(ScatterReduce):
    """A copy of the input with slices reduced into entries of a dimension."""

    _name = "index_reduce"

    def _locate(self, input: Any, src: Any, index: Any, dim: int) -> tuple[Any, ...]:
        return _lines_source("index_reduce", input, src, dim, index)

    def _values(self, src: Any) -> Any:
        return src

    def _spread(self, part: Any) -> Any:
        return part
