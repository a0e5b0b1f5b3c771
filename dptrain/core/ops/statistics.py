"""Products, log-sums, moments that skip NaN, quantiles, covariance, norms of slices."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, on_gpu
from dptrain.core.export import export
from dptrain.core.ops.arrange import Diagonal, Flip
from dptrain.core.ops.compare import Where
from dptrain.core.ops.join import _stack
from dptrain.core.ops.order import _sort
from dptrain.core.ops.reduce import (
    OF_VARIANCE,
    Amax,
    Amin,
    Deviation,
    Mean,
    Sum,
    TakeAlong,
    Var,
    _accumulator,
    _Reduction,
)
from dptrain.core.ops.scan import Cumprod, _join
from dptrain.core.ops.shape import Narrow, Permute, Reshape, wrap_dim
from dptrain.core.ops.unary import Exp, floating
from dptrain.core.results import results
from dptrain.core.tensor import Tensor, wrap


@export("prod", methods=("prod",), kinds={"dim": "int!"})
class Prod(_Reduction):
    """Product over all elements or over the dimension `dim`."""

    in_float32 = True

    def forward(
        self, input: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Any:
        if dim is not None:
            self.backward_name = "ProdBackward1"
        axes = self._plan(input, dim)
        self.axes = axes
        input, kind = _accumulator(input, dtype)
        return self.xp.asarray(self.xp.prod(input, axis=axes, keepdims=keepdim, dtype=kind))

    def backward(self, grad: Any, input: Any) -> Any:
        # The products of all others, from running products on both sides: zeros need no division.
        if not self.shape:
            return grad
        whole = len(self.axes) != 1
        line = Reshape.call(input, (int(np.prod(self.shape)),)) if whole else input
        dim = 0 if whole else self.axes[0]
        others = Reshape.call(_products_of_others(line, dim), self.shape)
        return self._spread(grad) * others


def _products_of_others(line: Any, dim: int) -> Any:
    """For each element along `dim` the product of all others."""
    size = line.shape[dim]
    if size <= 1:
        return line * 0 + 1
    one = Narrow.call(line, dim, 0, 1) * 0 + 1
    before = Cumprod.call(_join([one, Narrow.call(line, dim, 0, size - 1)], dim), dim)
    turned = Flip.call(Narrow.call(line, dim, 1, size - 1), (dim,))
    after = Flip.call(Cumprod.call(_join([one, turned], dim), dim), (dim,))
    return before * after


@export("logsumexp", methods=("logsumexp",))
class Logsumexp(_Reduction):
    """log(sum(exp(input))) over the dimensions `dim`, without overflow."""

    in_float32 = True

    def forward(self, input: Any, dim: Any, keepdim: bool = False) -> Any:
        input = floating(input)
        axes = self._plan(input, dim)
        if 0 in [self.shape[a] for a in axes]:
            shape = input.sum(axis=axes, keepdims=keepdim).shape
            return self.xp.full(shape, -np.inf, input.dtype)
        top = self.xp.max(input, axis=axes, keepdims=True)
        top = self.xp.where(self.xp.isfinite(top), top, top.dtype.type(0))
        total = self.xp.exp(input - top).sum(axis=axes, keepdims=True)
        out = self.xp.log(total) + top
        return out if keepdim else out.reshape(input.sum(axis=axes).shape)

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        return self._spread(grad) * Exp.call(input - self._spread(out))


aminmax_result = results("aminmax", "min", "max")


def _aminmax(input: Any, *, dim: int | None = None, keepdim: bool = False) -> Any:
    """The smallest and the largest element, of all or along `dim`."""
    where = () if dim is None else dim
    return aminmax_result((Amin.apply(input, where, keepdim), Amax.apply(input, where, keepdim)))


export("aminmax", methods=("aminmax",), function=_aminmax)(Amin)


def _nansum(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The sum of what is not NaN."""
    kept = input if input.dtype.category < 2 else Where.apply(~input.isnan(), input, 0)
    return Sum.apply(kept, dim, keepdim, dtype=dtype)


def _nanmean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The mean of what is not NaN; floating point only."""
    if input.dtype.category < 2:
        raise RuntimeError(
            f"nanmean(): expected input to have floating point dtype but got {input.dtype}"
        )
    if dtype is not None and dtype.category < 2:
        raise RuntimeError(
            f"nanmean(): could not infer output dtype. Optional dtype must be a floating point dtype. Got: {dtype}"
        )
    count = Sum.apply(~input.isnan(), dim, keepdim)
    return _nansum(input, dim, keepdim, dtype=dtype) / count


export("nansum", methods=("nansum",), function=_nansum)(Sum)
export("nanmean", methods=("nanmean",), function=_nanmean)(Mean)


def _var_mean(
    input: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """Variance and mean."""
    over = None if isinstance(dim, bool) else dim  # var_mean(input, unbiased)
    variance = Var.apply(input, dim, unbiased, keepdim, correction=correction)
    return variance, Mean.apply(input, over, keepdim)


def _std_mean(
    input: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """Standard deviation and mean."""
    variance, mean = _var_mean(input, dim, unbiased, keepdim, correction=correction)
    return Deviation.apply(variance), mean


export("var_mean", function=_var_mean, kinds=OF_VARIANCE)(Var)
export("std_mean", function=_std_mean, kinds=OF_VARIANCE)(Var)

_METHODS = ("linear", "lower", "higher", "nearest", "midpoint")


def _quantiles(
    op: str, input: Any, q: Any, dim: Any, keepdim: bool, interpolation: str, ignore_nan: bool
) -> Any:
    if input.dtype.name not in ("float32", "float64"):
        raise RuntimeError(
            f"{op}() input tensor must be either float or double dtype, got {input.dtype}"
        )
    if interpolation not in _METHODS:
        raise RuntimeError(
            f"{op}() interpolation must be one of {', '.join(_METHODS)}, but got {interpolation}"
        )
    if isinstance(q, Tensor) and q.dtype is not input.dtype:
        raise RuntimeError(f"{op}() q tensor must be same dtype as the input tensor, got {q.dtype}")
    wanted = as_array(q._array if isinstance(q, Tensor) else np.asarray(q)).astype(np.float64)
    if wanted.ndim > 1:
        raise RuntimeError(f"{op}() q must be a scalar or 1D tensor, got {wanted.ndim}D")
    if not on_gpu(wanted) and not ((wanted >= 0) & (wanted <= 1)).all():  # no wait for a GPU
        raise RuntimeError(f"{op}() q values must be in the range [0, 1], got {wanted.tolist()}")
    if input._array.size == 0:
        raise RuntimeError(f"{op}() input tensor must be non-empty")
    ndim = input.ndim
    line = Reshape.apply(input, (-1,)) if dim is None else input
    along = 0 if dim is None else wrap_dim(dim, max(ndim, 1), op)
    line = Reshape.apply(line, (1,)) if line.ndim == 0 else line
    ordered = _sort(line, along).values
    missing = np.isnan(ordered._array).sum(axis=along, keepdims=True)
    valid = ordered._array.shape[along] - (missing if ignore_nan else 0)
    results = []
    for i, one in enumerate(wanted.reshape(-1) if wanted.size else [0.0]):
        steps = np.maximum(valid, 1) - 1 + missing * 0
        place = None
        if isinstance(q, Tensor) and q.requires_grad and wanted.size:
            # The value moves with q between two elements.
            place = (q[i] if q.ndim else q) * wrap(steps.astype(ordered._array.dtype))
        value = _at_rank(ordered, one * steps, place, along, interpolation)
        spoiled = (missing == line._array.shape[along]) if ignore_nan else (missing > 0)
        if spoiled.any():
            value = Where.apply(wrap(spoiled), float("nan"), value)
        results.append(value)
    if dim is None:
        shape = (1,) * ndim if keepdim else ()
        results = [Reshape.apply(r, shape) for r in results]
    elif not keepdim and ndim:
        results = [r.squeeze(along) for r in results]
    elif ndim == 0:
        results = [Reshape.apply(r, ()) for r in results]
    if wanted.ndim == 0:
        return results[0]
    return Narrow.apply(_stack(results), 0, 0, wanted.size)


def _at_rank(ordered: Any, rank: np.ndarray, place: Any, dim: int, interpolation: str) -> Any:
    """The value at a fractional place of sorted lines; `place` is the rank as part of the graph."""
    if interpolation == "lower":
        rank = np.floor(rank)
    elif interpolation == "higher":
        rank = np.ceil(rank)
    elif interpolation == "nearest":
        rank = np.rint(rank)
    below = np.floor(rank).astype(np.int64)
    weight = as_array(rank - below).astype(ordered._array.dtype)
    if interpolation == "midpoint":
        weight = np.where(weight > 0, weight.dtype.type(0.5), weight)
    low = TakeAlong.apply(ordered, below, dim)
    if interpolation in ("lower", "higher", "nearest"):
        return low
    high = TakeAlong.apply(ordered, np.ceil(rank).astype(np.int64), dim)
    moves = place is not None and interpolation == "linear"
    return low.lerp(high, place - wrap(below.astype(weight.dtype)) if moves else wrap(weight))


def _quantile(
    input: Any,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Any:
    """The q-th quantiles (q in [0, 1]; a vector of them gives a new first dimension)."""
    return _quantiles("quantile", input, q, dim, keepdim, interpolation, False)


def _nanquantile(
    input: Any,
    q: Any,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Any:
    """The q-th quantiles of what is not NaN."""
    return _quantiles("nanquantile", input, q, dim, keepdim, interpolation, True)


export("quantile", methods=("quantile",), function=_quantile, kinds={"q": "Tensor | Number"})(Sum)
export(
    "nanquantile", methods=("nanquantile",), function=_nanquantile, kinds={"q": "Tensor | Number"}
)(Sum)


def _cov(input: Any, *, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    """The covariance matrix of variables in rows and observations in columns."""
    if input.ndim > 2:
        raise RuntimeError(
            f"cov(): expected input to have two or fewer dimensions but got an input with {input.ndim} dimensions"
        )
    scalar = input.ndim < 2
    table = Reshape.apply(input, (1, -1)) if scalar else input
    columns = table._array.shape[1]
    weights: Any = None
    for name, given, category in (("fweights", fweights, 1), ("aweights", aweights, 2)):
        if given is None:
            continue
        if given.ndim > 1 or given._array.size != columns:
            raise RuntimeError(
                f"cov(): expected {name} to have one entry for each of {columns} observations, got shape {list(given.shape)}"
            )
        if given.dtype.category != category:
            kind = "integral" if category == 1 else "floating point"
            raise RuntimeError(f"cov(): expected {name} to have {kind} dtype but got {given.dtype}")
        if (given._array < 0).any():
            raise RuntimeError(f"cov(): {name} cannot be negative")
        weights = given if weights is None else weights * given
    if table.dtype.category < 2:
        table = table.float()
    total: Any = columns if weights is None else weights.sum()
    weighted = table if weights is None else table * weights
    centred = table - weighted.sum(1, True) / total
    if weights is None or correction == 0 or aweights is None:
        divisor = total - correction
    else:
        divisor = total - correction * (weights * aweights).sum() / total
    scaled = centred if weights is None else centred * weights
    product = scaled @ Permute.apply(centred, (1, 0))
    positive = float(divisor) if not isinstance(divisor, Tensor) else divisor.clamp(min=0)
    if not isinstance(positive, Tensor):
        positive = max(positive, 0.0)
    result = product / positive
    return result.squeeze()  # one variable has a variance, not a 1 x 1 matrix


def _corrcoef(input: Any) -> Any:
    """The matrix of Pearson's correlation coefficients of variables in rows."""
    if input.ndim > 2:
        raise RuntimeError(
            f"corrcoef(): expected input to have two or fewer dimensions but got an input with {input.ndim} dimensions"
        )
    matrix = _cov(input)
    if matrix.ndim == 0:
        return matrix / matrix
    deviation = Diagonal.apply(matrix).sqrt()
    return (matrix / deviation.unsqueeze(1) / deviation.unsqueeze(0)).clamp(-1, 1)


export("cov", methods=("cov",), function=_cov)(Sum)
export("corrcoef", methods=("corrcoef",), function=_corrcoef)(Sum)


def _renorm(input: Any, p: float, dim: int, maxnorm: float) -> Any:
    """Slices of `dim` scaled down to a p-norm of at most `maxnorm`."""
    if input.ndim < 2:
        raise RuntimeError(
            f"renorm: input needs at least 2 dimensions, got {input.ndim} dimensions"
        )
    if input.dtype.category < 2:
        raise RuntimeError(f"renorm: expected a floating point tensor, got {input.dtype}")
    if not p > 0:
        raise RuntimeError(f"renorm: non-positive norm degree: {p}")
    if not maxnorm >= 0:
        raise RuntimeError(f"renorm: expected maxnorm to be >= 0, but got {maxnorm}")
    dim = wrap_dim(dim, input.ndim, "renorm")
    others = tuple(d for d in range(input.ndim) if d != dim)
    norms = input.norm(p, others, True)
    over = wrap(norms._array > maxnorm)
    return input * Where.apply(over, maxnorm / (norms + 1e-7), 1.0)


export("renorm", methods=("renorm",), inplace=("renorm_",), function=_renorm)(Sum)


def _cross(input: Any, other: Any, dim: int | None = None) -> Any:
    """The vector product over a dimension of size 3 (by default the first such)."""
    if dim is None:
        dim = next((d for d, n in enumerate(input._array.shape) if n == 3), None)
        if dim is None:
            raise RuntimeError(
                f"cross: no dimension of size 3 in input of shape {list(input.shape)}"
            )
    if input.ndim != other.ndim:
        raise RuntimeError(
            f"cross: inputs must have the same number of dimensions, got {input.ndim} and {other.ndim}"
        )
    dim = wrap_dim(dim, input.ndim, "cross")
    if input._array.shape[dim] != 3 or other._array.shape[dim] != 3:
        raise RuntimeError(
            f"cross: inputs dimension {dim} must have length 3. Got {input._array.shape[dim]} and {other._array.shape[dim]}"
        )
    a, b = (t.roll(-1, dim) for t in (input, other))
    return (input * b - a * other).roll(-1, dim)


export("cross", methods=("cross",), function=_cross)(Sum)
