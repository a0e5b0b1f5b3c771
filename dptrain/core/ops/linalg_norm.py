"""Norms of vectors and distances between them. The norms of matrices need singular values."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.dtypes import as_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where
from dptrain.core.ops.elementwise import Clamp, Pow
from dptrain.core.ops.index import Index
from dptrain.core.ops.reduce import _axes
from dptrain.core.ops.shape import Reshape, Unsqueeze
from dptrain.core.ops.unary import Sign


def clamp_below(value: Any, bound: float) -> Any:
    """max(value, bound), with the gradient where the value was kept."""
    return Clamp.apply(value, bound)


def _vector_norm(
    x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """The `ord`-norm of the elements along `dim` (all by default).

    Args:
        x: floating point values.
        ord: any number; 0 counts the non-zero elements, inf and -inf take the extremes.
        dim: an int or a tuple of ints.
        keepdim: keep the reduced dimensions with size 1.
        dtype: convert to it first.

    Raises:
        RuntimeError: integers, or an empty dimension for an order that needs an element.
    """
    if not isinstance(ord, (int, float)):
        raise TypeError(f"linalg.vector_norm: ord must be a number, got {ord!r}")
    if dtype is not None:
        x = x.to(as_dtype(dtype))
    return VectorNorm.apply(x, ord, dim, keepdim)


@export("linalg.vector_norm", function=_vector_norm, kinds={"ord": "Number"})
class VectorNorm(Op):
    """(sum |x|^p)^(1/p) over some dimensions; where the norm is 0 so is the gradient."""

    in_float32 = True

    backward_name = "LinalgVectorNormBackward0"

    def forward(self, x: Any, p: float = 2, dim: Any = None, keepdim: bool = False) -> Any:
        if x.dtype.kind in "biu":
            raise RuntimeError(
                f"linalg.vector_norm: Expected a floating point tensor as input. Got {x.dtype}"
            )
        axes = _axes(dim, x.ndim, "linalg.vector_norm")
        self.p = p = float(p)
        self.kept = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
        empty = any(x.shape[a] == 0 for a in axes)
        if empty and (p < 0 or p == np.inf):
            raise RuntimeError(
                f"linalg.vector_norm cannot compute the {p} norm on an empty tensor because the operation "
                f"does not have an identity; the input has shape {list(x.shape)}"
            )
        out = self.xp.asarray(self._reduce(x if p == 2 else self.xp.abs(x), axes), dtype=x.dtype)
        return out if keepdim else out.reshape([s for i, s in enumerate(x.shape) if i not in axes])

    def _reduce(self, size: Any, axes: tuple[int, ...]) -> Any:
        xp, p = self.xp, self.p
        if abs(p) == np.inf:
            return (xp.max if p > 0 else xp.min)(size, axis=axes, keepdims=True)
        if p == 0:
            return xp.sum(size != 0, axis=axes, keepdims=True)
        if p == 1:
            return xp.sum(size, axis=axes, keepdims=True)
        if p == 2:
            return xp.sqrt((size * size).sum(axis=axes, keepdims=True))
        return xp.sum(size**p, axis=axes, keepdims=True) ** (1 / p)

    def backward(self, grad: Any, x: Any, out: Any) -> Any:
        p = self.p
        if p == 0:
            return x * 0
        if p == 1:
            return Sign.call(x) * Reshape.call(grad, self.kept)
        grad, out = Reshape.call(grad, self.kept), Reshape.call(out, self.kept)
        if abs(p) == np.inf:
            sign = Sign.call(x)
            ties = (sign * x == out) * 1.0  # equal extremes share the gradient
            axes = tuple(i for i, s in enumerate(self.kept) if s == 1)
            count = ties.sum(axis=axes, keepdims=True) if axes else ties
            return sign * ties * (grad / count)
        nonzero = Where.call(out == 0, out * 0 + 1, out)
        if p == 2:
            return x * (Where.call(out == 0, 0, grad) / nonzero)
        size = Sign.call(x) * x
        if p < 2:  # a negative power of 0 would poison the product with 0
            size = Where.call(x == 0, size * 0 + 1, size)
        scale = Where.call(out == 0, 0, grad) / Pow.call(nonzero, p - 1)
        return Sign.call(x) * Pow.call(size, p - 1) * scale


def _dist(input: Any, other: Any, p: float = 2) -> Any:
    """The p-norm of input - other."""
    return VectorNorm.apply(input - other, p)


export("dist", methods=("dist",), function=_dist, tensors=2)(VectorNorm)


def _check_points(op: str, x: Any, name: str, p: float) -> None:
    if not p >= 0:
        raise RuntimeError(f"{op} only supports non-negative p values, got {p}")
    if not x.is_floating_point():
        raise RuntimeError(f"{op} only supports floating-point dtypes, {name} got: {x.dtype}")


def _cdist(
    x1: Any,
    x2: Any,
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Any:
    """The p-norm distances between all rows: (..., P, M) with (..., R, M) -> (..., P, R).

    Args:
        x1: P points of M coordinates.
        x2: R points of M coordinates.
        p: order of the norm, >= 0.
        compute_mode: PyTorch's choices; distances are always taken from differences here, which
            loses no digits.

    Raises:
        RuntimeError: fewer than two dimensions, different numbers of coordinates, or p < 0.
        ValueError: an unknown `compute_mode`.
    """
    modes = (
        "use_mm_for_euclid_dist_if_necessary",
        "use_mm_for_euclid_dist",
        "donot_use_mm_for_euclid_dist",
    )
    if compute_mode not in modes:
        raise ValueError(f"{compute_mode} is not a valid value for compute_mode")
    for name, x in (("X1", x1), ("X2", x2)):
        _check_points("cdist", x, name, p)
        if x.ndim < 2:
            raise RuntimeError(f"cdist only supports at least 2D tensors, {name} got: {x.ndim}D")
    if x1.shape[-1] != x2.shape[-1]:
        raise RuntimeError(
            f"cdist: X1 and X2 must have the same number of columns. X1: {x1.shape[-1]} X2: {x2.shape[-1]}"
        )
    difference = Unsqueeze.apply(x1, -2) - Unsqueeze.apply(x2, -3)
    found = VectorNorm.apply(difference, p, -1)
    # A count of what is not 0 takes NaN for one more; a distance to nowhere is NaN in any norm.
    return found + difference.detach().sum(-1) * 0 if p == 0 else found


export("cdist", function=_cdist)(VectorNorm)


def _pdist(input: Any, p: float = 2.0) -> Any:
    """The p-norm distances between the rows of (N, M), each pair once -> (N * (N - 1) / 2,).

    Raises:
        RuntimeError: not two-dimensional, or p < 0.
    """
    _check_points("pdist", input, "input", p)
    if input.ndim != 2:
        raise RuntimeError(f"pdist only supports 2D tensors, got: {input.ndim}D")
    xp = namespace_of(input._array)
    first, second = map(xp.asarray, np.triu_indices(input.shape[0], 1))
    return VectorNorm.apply(Index.apply(input, (first,)) - Index.apply(input, (second,)), p, -1)


export("nn.functional.pdist", "pdist", function=_pdist)(VectorNorm)
