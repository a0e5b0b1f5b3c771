"""Running sums, products and extremes, differences and integrals along a dimension."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.dtypes import as_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.arrange import Flip
from dptrain.core.ops.compare import Where
from dptrain.core.ops.elementwise import Sub
from dptrain.core.ops.join import _cat
from dptrain.core.ops.reduce import PutAlong
from dptrain.core.ops.shape import Narrow, wrap_dim
from dptrain.core.ops.unary import Exp, Log
from dptrain.core.results import results
from dptrain.core.tensor import Tensor


def _scan_input(input: Any, dtype: Any) -> Any:
    """Integers and booleans accumulate in int64 unless a dtype is given."""
    if dtype is not None:
        return input.astype(as_dtype(dtype).numpy)
    return input.astype(np.int64) if input.dtype.kind in "biu" else input


@export("cumsum", methods=("cumsum",), inplace=("cumsum_",))
class Cumsum(Op):
    """Running sum along `dim`."""

    in_float32 = True

    def forward(self, input: Any, dim: int, *, dtype: Any = None) -> Any:
        self.dim = wrap_dim(dim, input.ndim, "cumsum")
        input = _scan_input(input, dtype)
        return (
            self.xp.cumsum(input, axis=self.dim, dtype=input.dtype) if input.ndim else input.copy()
        )

    def backward(self, grad: Any) -> Any:
        if grad.ndim == 0:
            return grad
        return Flip.call(Cumsum.call(Flip.call(grad, (self.dim,)), self.dim), (self.dim,))


@export("cumprod", methods=("cumprod",), inplace=("cumprod_",))
class Cumprod(Op):
    """Running product along `dim`."""

    in_float32 = True

    def forward(self, input: Any, dim: int, *, dtype: Any = None) -> Any:
        self.dim = wrap_dim(dim, input.ndim, "cumprod")
        input = _scan_input(input, dtype)
        return (
            self.xp.cumprod(input, axis=self.dim, dtype=input.dtype) if input.ndim else input.copy()
        )

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        if grad.ndim == 0:
            return grad
        if (getattr(input, "_array", input) != 0).all():
            turned = Cumsum.call(Flip.call(grad * out, (self.dim,)), self.dim)
            return Flip.call(turned, (self.dim,)) / input
        # Entry k of the gradient sums, over the places i >= k, grad[i] times the product of all but
        # the k-th of the first i + 1 entries. Done place by place, so that zeros need no division.
        size = grad.shape[self.dim]
        columns = []
        for k in range(size):
            before = _ones_like_part(input, self.dim)
            if k:
                head = Narrow.call(input, self.dim, 0, k)
                before = Narrow.call(Cumprod.call(head, self.dim), self.dim, k - 1, 1)
            tail = Narrow.call(input, self.dim, k + 1, size - k - 1)
            after = _join([before, before * Cumprod.call(tail, self.dim)], self.dim)
            part = Narrow.call(grad, self.dim, k, size - k) * after
            columns.append(_sum(part, self.dim))
        return _join(columns, self.dim) if columns else grad


def _sum(value: Any, dim: int) -> Any:
    return value.sum(axis=dim, keepdims=True)


def _ones_like_part(value: Any, dim: int) -> Any:
    return Narrow.call(value, dim, 0, 1) * 0 + 1


def _join(parts: list[Any], dim: int) -> Any:
    return _cat(parts, dim) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis=dim)


@export("logcumsumexp", methods=("logcumsumexp",))
class Logcumsumexp(Op):
    """log of the running sum of exponentials, without overflow."""

    in_float32 = True

    def forward(self, input: Any, dim: int) -> Any:
        if input.dtype.kind in "biu":
            raise RuntimeError(f"logcumsumexp: not implemented for {input.dtype}; use .float()")
        self.dim = wrap_dim(dim, input.ndim, "logcumsumexp")
        return self.xp.logaddexp.accumulate(input, axis=self.dim) if input.ndim else input.copy()

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        if grad.ndim == 0:
            return grad
        # d out[i] / d input[k] = exp(input[k] - out[i]) for k <= i. Positive and negative gradients
        # are summed apart in log space, where neither can overflow.
        positive = Where.call(grad > 0, grad, 0)
        negative = Where.call(grad < 0, -grad, 0)
        return self._spread(positive, input, out) - self._spread(negative, input, out)

    def _spread(self, part: Any, input: Any, out: Any) -> Any:
        zero = part == 0
        logs = Where.call(
            zero, part * 0 - np.inf, Log.call(Where.call(zero, part * 0 + 1, part)) - out
        )
        flipped = Flip.call(logs, (self.dim,))
        total = Flip.call(Logcumsumexp.call(flipped, self.dim), (self.dim,))
        return Exp.call(total + input)


cummax_result = results("cummax", "values", "indices")


cummin_result = results("cummin", "values", "indices")


class _RunningExtreme(Op):
    def _scan(self, input: Any, dim: int, better: Any) -> Any:
        self.dim, self.shape = wrap_dim(dim, input.ndim, type(self).name), input.shape
        if input.ndim == 0:
            self.indices = self.xp.zeros((), np.int64)
            return input.copy(), self.indices
        values = np.moveaxis(input.copy(), self.dim, 0)
        indices = self.xp.zeros(values.shape, np.int64)
        for k in range(1, len(values)):
            wins = better(values[k], values[k - 1]) | (values[k] != values[k])
            indices[k] = np.where(wins, k, indices[k - 1])
            values[k] = np.where(wins, values[k], values[k - 1])
        self.indices = self.xp.ascontiguousarray(np.moveaxis(indices, 0, self.dim))
        return np.moveaxis(values, 0, self.dim), self.indices

    def backward(self, grads: Any) -> Any:
        if grads[0] is None or not self.shape:
            return grads[0]
        return PutAlong.call(grads[0], self.indices, self.dim, self.shape)


def _cummax(input: Any, dim: int) -> Any:
    """The largest value so far along `dim`, and where it stands (the last of equals)."""
    return cummax_result(Cummax.apply(input, dim))


@export("cummax", methods=("cummax",), function=_cummax)
class Cummax(_RunningExtreme):
    """Running maximum."""

    def forward(self, input: Any, dim: int) -> Any:
        return self._scan(input, dim, np.greater_equal)


def _cummin(input: Any, dim: int) -> Any:
    """The smallest value so far along `dim`, and where it stands (the last of equals)."""
    return cummin_result(Cummin.apply(input, dim))


@export("cummin", methods=("cummin",), function=_cummin)
class Cummin(_RunningExtreme):
    """Running minimum."""

    def forward(self, input: Any, dim: int) -> Any:
        return self._scan(input, dim, np.less_equal)


def _diff(input: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """The n-th difference along `dim`, after joining `prepend` and `append` to the ends."""
    if input.ndim == 0:
        raise RuntimeError("diff expects input to be at least one-dimensional")
    if n < 0:
        raise RuntimeError(f"diff: order must be non-negative but got {n}")
    parts = [p for p in (prepend, input, append) if p is not None]
    if n == 0 and len(parts) == 1:
        return input
    dim = wrap_dim(dim, input.ndim, "diff")
    for part in parts:
        rest = [p.shape[:dim] + p.shape[dim + 1 :] for p in (part, input)]
        if part.ndim != input.ndim or rest[0] != rest[1]:
            raise RuntimeError(
                f"diff expects the shape of prepend and append to match that of input except along dimension {dim}; "
                f"got {list(part.shape)} for input of shape {list(input.shape)}"
            )
    if n == 0:
        return input
    value = _cat(parts, dim) if len(parts) > 1 else input
    for _ in range(min(n, value.shape[dim])):
        size = value.shape[dim] - 1
        later, earlier = Narrow.apply(value, dim, 1, size), Narrow.apply(value, dim, 0, size)
        value = later.logical_xor(earlier) if value.dtype.category == 0 else later - earlier
    return value


export("diff", methods=("diff",), function=_diff)(Sub)


def _trapezoid(y: Any, x: Any = None, *, dx: Any = None, dim: int = -1) -> Any:
    """The integral of y along `dim` by the trapezoidal rule, at the points x or with spacing dx."""
    areas, dim = _trapezes(y, x, dx, dim, "trapezoid")
    if x is None and y.dtype.category < 2 and y.shape[dim]:
        # Sums of integers, which do not overflow.
        ends = (y.select(dim, 0) + y.select(dim, -1)) * 0.5
        return (y.sum(dim) - ends) * (1 if dx is None else dx)
    return areas.sum(dim) / 2


def _cumulative_trapezoid(y: Any, x: Any = None, *, dx: Any = None, dim: int = -1) -> Any:
    """The running integral of y along `dim` by the trapezoidal rule."""
    areas, dim = _trapezes(y, x, dx, dim, "cumulative_trapezoid")
    return areas.cumsum(dim) / 2


def _trapezes(y: Any, x: Any, dx: Any, dim: int, op: str) -> tuple[Any, int]:
    """Twice the areas of the trapezes between neighbours along a dimension, and that dimension."""
    if x is not None and dx is not None:
        raise TypeError(f"{op}() received both x and dx; give one of them")
    if not y.ndim:
        raise IndexError(f"{op}: Dimension specified as {dim} but tensor has no dimensions")
    dim = wrap_dim(dim, y.ndim, op)
    size = max(0, y.shape[dim] - 1)
    later = Narrow.apply(y, dim, min(1, y.shape[dim]), size)
    earlier = Narrow.apply(y, dim, 0, size)
    if x is None:
        return (later + earlier) * (1 if dx is None else dx), dim
    if x.ndim == 1 and x.shape[0] != y.shape[dim]:
        raise RuntimeError(
            f"{op}: There must be one `x` value for each sample point, got {x.shape[0]} for {y.shape[dim]}"
        )
    if not y.shape[dim]:
        return later + earlier, dim
    if x.ndim == 1:
        x = x.reshape((1,) * dim + (-1,) + (1,) * (y.ndim - 1 - dim))
    elif x.ndim < y.ndim:
        x = x.reshape((1,) * (y.ndim - x.ndim) + tuple(x.shape))
    return (later + earlier) * _diff(x, dim=dim), dim


_POINTS = {"x": "Tensor!", "dx": "Number!"}
export("trapezoid", "trapz", function=_trapezoid, kinds=_POINTS)(Sub)
export("cumulative_trapezoid", function=_cumulative_trapezoid, kinds=_POINTS)(Cumsum)
