"""Reductions over all or some dimensions. One block per operation."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np

from dptrain.core.argument_kinds import is_int
from dptrain.core.arrays import broadcast_to, grid, is_array
from dptrain.core.dtypes import as_dtype
from dptrain.core.export import export
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.compare import Eq, Ne, Where
from dptrain.core.ops.elementwise import Maximum, Minimum
from dptrain.core.ops.shape import Expand, Reshape, wrap_dim, wrap_dims
from dptrain.core.ops.unary import Sqrt
from dptrain.core.results import results
from dptrain.core.tensor import Tensor


def _axes(dim: Any, ndim: int, op: str) -> tuple[int, ...]:
    """The dimensions to reduce, in order; None and () mean all."""
    if type(dim) is int:
        dims: tuple[int, ...] = (wrap_dim(dim, ndim, op),)
    elif dim is None or (isinstance(dim, Sequence) and not dim):
        return tuple(range(ndim))
    else:
        dims = wrap_dims(dim, ndim, op)
    return dims if ndim else ()


class _Reduction(Op):
    """Keeps the shapes that spread a gradient back over the reduced dimensions."""

    def _plan(self, input: Any, dim: Any) -> tuple[int, ...]:
        self.axes = axes = _axes(dim, input.ndim, type(self).name)
        self.shape = input.shape
        return axes

    def _spread(self, value: Any) -> Any:
        kept = tuple([1 if i in self.axes else s for i, s in enumerate(self.shape)])
        if is_array(value):
            return broadcast_to(value.reshape(kept), self.shape)
        shape = tuple(value.shape)  # which may fit the last of the dimensions as it is
        fits = all(s == 1 for s in kept[: len(kept) - len(shape)])
        if not fits or kept[len(kept) - len(shape) :] != shape:
            value = Reshape.call(value, kept)
        return Expand.call(value, self.shape)


def _accumulator(input: Any, dtype: Any) -> Any:
    """Sums of integers and booleans are int64."""
    if dtype is not None:
        return input.astype(as_dtype(dtype).numpy), as_dtype(dtype).numpy
    if input.dtype.kind in "biu":
        return input, np.dtype(np.int64)
    return input, input.dtype


@export("sum", methods=("sum",))
class Sum(_Reduction):
    """Sum over all elements or over the dimensions `dim`."""

    in_float32 = True

    def forward(
        self, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Any:
        axes = self._plan(input, dim)
        if dim is not None:
            self.backward_name = "SumBackward1"
        input, kind = _accumulator(input, dtype)
        return input.sum(axis=axes, keepdims=keepdim, dtype=kind)

    def backward(self, grad: Any) -> Any:
        return self._spread(grad)


@export("mean", methods=("mean",))
class Mean(_Reduction):
    """Mean over all elements or over the dimensions `dim`; floating point only."""

    in_float32 = True

    def forward(
        self, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Any:
        axes = self._plan(input, dim)
        if dim is not None:
            self.backward_name = "MeanBackward1"
        input, kind = _accumulator(input, dtype)
        if input.dtype.kind in "biu":
            which = "Input dtype" if dtype is None else "Optional dtype"
            raise RuntimeError(
                f"mean(): could not infer output dtype. {which} must be a floating point dtype. Got: {input.dtype}"
            )
        self.count = prod([self.shape[a] for a in axes])
        total = input.sum(axis=axes, keepdims=keepdim, dtype=kind)
        # A NumPy divisor: 0 / 0 is nan for an empty mean, as in PyTorch.
        return total / kind.type(self.count)

    def backward(self, grad: Any) -> Any:
        return self._spread(grad / self.count)


#: `dim` of `var` and its like, where a flag alone is `unbiased`.
OF_VARIANCE = {
    "dim": "int | tuple of ints | bool | None",
    "dim=": "int | tuple of ints | None",
    "unbiased": "bool!",
}


@export("var", methods=("var",), kinds=OF_VARIANCE)
class Var(_Reduction):
    """Variance; `correction` (1: Bessel's) is subtracted from the count. Two passes, no cancellation."""

    in_float32 = True

    def forward(
        self,
        input: Any,
        dim: Any = None,
        unbiased: bool | None = None,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Any:
        if isinstance(dim, bool):  # var(input, unbiased)
            if keepdim or unbiased is not None or correction is not None:
                raise TypeError(
                    f"{self.name}(): argument 'dim' must be int or tuple of ints, not bool"
                )
            dim, unbiased = None, dim
        if input.dtype.kind in "biu":
            raise RuntimeError(
                f"{self.name}: only floating point dtypes are supported, got {input.dtype}"
            )
        axes = self._plan(input, dim)
        if unbiased is not None:
            correction = int(unbiased)
        elif correction is None:
            correction = 1
        count = prod([self.shape[a] for a in axes])
        self.divisor = max(0.0, count - correction)
        self.count = count
        centred = input - input.mean(axis=axes, keepdims=True)
        divisor = input.dtype.type(self.divisor)
        return self.xp.asarray((centred * centred).sum(axis=axes, keepdims=keepdim)) / divisor

    def backward(self, grad: Any, input: Any) -> Any:
        mean = input.sum(axis=self.axes, keepdims=True) / self.count if self.axes else input
        return self._spread(grad) * (input - mean) * (2 / self.divisor if self.divisor else np.nan)


class Deviation(Sqrt):
    """The square root of a variance. Its gradient at 0 is 0 (PyTorch's choice), not infinite."""

    name = "std"

    def backward(self, grad: Any, out: Any) -> Any:
        flat = Eq.call(out, 0.0)
        return Where.call(flat, 0.0, grad / (Where.call(flat, 1.0, out) * 2))


def _std(
    input: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """Standard deviation: the square root of `var`."""
    return Deviation.apply(Var.apply(input, dim, unbiased, keepdim, correction=correction))


export("std", methods=("std",), function=_std, kinds=OF_VARIANCE)(Var)


class _Extremum(_Reduction):
    """amax/amin: equal extremes share the gradient, as in PyTorch."""

    #: Whether the places of NaN share it where the result is NaN.
    counts_nan: ClassVar[bool] = False

    def forward(self, input: Any, dim: Any = (), keepdim: bool = False) -> Any:
        axes = self._plan(input, dim)
        if not input.size and any(self.shape[a] == 0 for a in axes):
            whole = dim is None or dim == ()
            raise (RuntimeError if whole else IndexError)(
                f"{self.name}(): Expected reduction dim to be specified for input.numel() == 0 and to have non-zero size; "
                f"the input has shape {list(self.shape)}"
            )
        return self._reduce(input, axes, keepdim)

    def _reduce(self, input: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
        raise NotImplementedError

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        ties = Eq.call(input, self._spread(out))
        if self.counts_nan:
            ties = ties | (Ne.call(input, input) & Ne.call(out, out))
        count = ties.sum(axis=self.axes, keepdims=True) if self.axes else 1
        return self._spread(grad) * ties / count


@export("amax", methods=("amax",))
class Amax(_Extremum):
    """The largest value over the dimensions `dim`."""

    def _reduce(self, input: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
        return input.max(axis=axes, keepdims=keepdim)


@export("amin", methods=("amin",))
class Amin(_Extremum):
    """The smallest value over the dimensions `dim`."""

    def _reduce(self, input: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
        return input.min(axis=axes, keepdims=keepdim)


class _ArgReduction(Op):
    differentiable = False

    def forward(self, input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is not None:
            dim = wrap_dim(dim, input.ndim, type(self).name)
        if (input.size if dim is None else input.shape[dim] if input.ndim else 1) == 0:
            raise IndexError(
                f"{self.name}(): Expected reduction dim to be specified for input.numel() == 0; the input has shape {list(input.shape)}"
            )
        if input.ndim == 0:
            return np.int64(0)
        found = self._find(input, dim, keepdim)
        return self.xp.asarray(found).astype(np.int64, copy=False)

    def _find(self, input: Any, dim: int | None, keepdim: bool) -> Any:
        raise NotImplementedError


@export("argmax", methods=("argmax",))
class ArgMax(_ArgReduction):
    """Index of the largest value (the first of equals), over everything or along `dim`."""

    def _find(self, input: Any, dim: int | None, keepdim: bool) -> Any:
        return input.argmax(axis=dim, keepdims=keepdim)


@export("argmin", methods=("argmin",))
class ArgMin(_ArgReduction):
    """Index of the smallest value (the first of equals), over everything or along `dim`."""

    def _find(self, input: Any, dim: int | None, keepdim: bool) -> Any:
        return input.argmin(axis=dim, keepdims=keepdim)


max_result = results("max", "values", "indices")


min_result = results("min", "values", "indices")


def _taken(xp: Any, input: Any, index: Any, dim: int) -> Any:
    """`take_along_axis`, which is written in Python, for an index that is as large as the input in other dimensions."""
    places = grid(index.shape, xp)
    places[dim] = index
    return input[tuple(places)]


class TakeAlong(Op):
    """One element per position of the other dimensions, chosen by an index array along `dim`."""

    def forward(self, input: Any, index: Any, dim: int) -> Any:
        self.index, self.dim, self.shape = index, dim, input.shape
        return _taken(self.xp, input, index, dim)

    def backward(self, grad: Any) -> Any:
        return PutAlong.call(grad, self.index, self.dim, self.shape)


class PutAlong(Op):
    """The derivative of TakeAlong: zeros with the values at their places (repeated places add up)."""

    in_float32 = True

    def forward(self, input: Any, index: Any, dim: int, shape: tuple[int, ...]) -> Any:
        self.index, self.dim = index, dim
        out = self.xp.zeros(shape, dtype=input.dtype)
        places = grid(index.shape, self.xp)
        places[dim] = index
        kernels_for(out).add_at(out, tuple(places), input)
        return out

    def backward(self, grad: Any) -> Any:
        return TakeAlong.call(grad, self.index, self.dim)


class ExtremeAlong(Op):
    """The elements that an operation finds along a dimension, and their places."""

    def forward(self, input: Any, find: Any, dim: int, keepdim: bool) -> Any:
        finder = find()
        finder.xp = self.xp
        self.index, self.dim, self.shape = finder.forward(input, dim, True), dim, input.shape
        values = _taken(self.xp, input, self.index, dim)
        if keepdim:
            return values, self.index
        return values.squeeze(dim), self.index.squeeze(dim)

    def backward(self, grads: Any) -> Any:
        grad = Reshape.call(grads[0], self.index.shape)
        return PutAlong.call(grad, self.index, self.dim, self.shape)


def _along(
    input: Any, find: type[_ArgReduction], dim: Any, keepdim: bool | None
) -> tuple[Any, Any]:
    dim = wrap_dim(int(dim), input.ndim, find.name)
    if input.ndim == 0:
        return input.clone(), find.apply(input)
    found: tuple[Any, Any] = ExtremeAlong.apply(input, find, dim, bool(keepdim))
    return found


class MaxOfAll(Amax):
    """`max(input)`: as `amax`, under PyTorch's name for the node."""

    backward_name = "MaxBackward1"
    counts_nan = True


class MinOfAll(Amin):
    """`min(input)`: as `amin`, under PyTorch's name for the node."""

    backward_name = "MinBackward1"
    counts_nan = True


def _of_two(input: Any, second: Any, keepdim: Any, other: Any, choose: type[Op]) -> Any:
    """`max(input, other)` with the other under either name; None where it is no such call."""
    if other is None:
        if not isinstance(second, Tensor):
            return None
        if keepdim is not None:  # then it is a dimension
            if not is_int(second):
                raise TypeError(f"{choose.name}(): argument 'dim' must be int, not Tensor")
            return None
        other = second
    return choose.apply(input, other)


def _max(input: Any, dim: Any = None, keepdim: bool | None = None, *, other: Any = None) -> Any:
    """The largest element; with `dim` a named tuple (values, indices); with a tensor `maximum`."""
    found = _of_two(input, dim, keepdim, other, Maximum)
    if found is not None:
        return found
    return MaxOfAll.apply(input) if dim is None else max_result(_along(input, ArgMax, dim, keepdim))


def _min(input: Any, dim: Any = None, keepdim: bool | None = None, *, other: Any = None) -> Any:
    """The smallest element; with `dim` a named tuple (values, indices); with a tensor `minimum`."""
    found = _of_two(input, dim, keepdim, other, Minimum)
    if found is not None:
        return found
    return MinOfAll.apply(input) if dim is None else min_result(_along(input, ArgMin, dim, keepdim))


_OF_EXTREME = {"dim": "int | Tensor!", "dim=": "int", "keepdim": "bool!", "other": "Tensor!"}
export("max", methods=("max",), function=_max, kinds=_OF_EXTREME)(MaxOfAll)
export("min", methods=("min",), function=_min, kinds=_OF_EXTREME)(MinOfAll)


class _Truth(Op):
    """Booleans, but uint8 for uint8: PyTorch's old type of truth values."""

    differentiable = False

    def forward(self, input: Any, dim: Any = None, keepdim: bool = False) -> Any:
        found = self._find(input, _axes(dim, input.ndim, type(self).name), keepdim)
        return self.xp.asarray(found).astype(np.uint8) if input.dtype == np.uint8 else found

    def _find(self, input: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
        raise NotImplementedError


@export("all", methods=("all",))
class All(_Truth):
    """Whether every element is non-zero."""

    def _find(self, input: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
        return input.all(axis=axes, keepdims=keepdim)


@export("any", methods=("any",))
class Any_(_Truth):
    """Whether some element is non-zero."""

    def _find(self, input: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
        return input.any(axis=axes, keepdims=keepdim)
