"""Norms of matrices, and the functions that choose between these and the norms of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dptrain.core.dtypes import as_dtype
from dptrain.core.export import export
from dptrain.core.ops.linalg_decompose import LinalgSvd
from dptrain.core.ops.linalg_norm import VectorNorm
from dptrain.core.ops.reduce import Amax, Amin, Sum
from dptrain.core.ops.shape import Permute, Unsqueeze, wrap_dim

_INFINITY = float("inf")
_ORDERS = ("fro", "nuc", _INFINITY, -_INFINITY, 1, -1, 2, -2)


def _matrix_norm(
    A: Any,
    ord: Any = "fro",
    dim: Any = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Any:
    """The norm of matrices that lie in two dimensions.

    Args:
        A: floating point values of at least two dimensions.
        ord: "fro" (default), "nuc", inf, -inf, 1, -1, 2 or -2.
        dim: the dimensions of the rows and of the columns.
        keepdim: keep both with size 1.
        dtype: convert to it first.

    Raises:
        RuntimeError: an unknown order, or `dim` names no two dimensions.
    """
    op = "linalg.matrix_norm"
    if A.ndim < 2:
        raise RuntimeError(
            f"{op}: The input tensor A must have at least 2 dimensions, got shape {list(A.shape)}"
        )
    if not A.is_floating_point():
        raise RuntimeError(f"{op}: Expected a floating point tensor as input. Got {A.dtype}")
    if ord not in _ORDERS:
        raise RuntimeError(f"{op}: Order {ord} not supported.")
    if not isinstance(dim, Sequence) or len(dim) != 2:
        raise RuntimeError(f"{op}: dim must be a 2-tuple. Got {dim}")
    rows, columns = (wrap_dim(d, A.ndim, op) for d in dim)
    if rows == columns:
        raise RuntimeError(f"{op}: dims must be different. Got ({dim[0]}, {dim[1]})")
    if dtype is not None:
        A = A.to(as_dtype(dtype))
    if ord == "fro":
        return VectorNorm.apply(A, 2, (rows, columns), keepdim)
    if ord in ("nuc", 2, -2):
        rest = [d for d in range(A.ndim) if d not in (rows, columns)]
        values = LinalgSvd.apply(Permute.apply(A, (*rest, rows, columns)), False)[1]
        if ord == "nuc" or (ord == 2 and not values.shape[-1]):
            out = Sum.apply(values, -1)
        else:
            out = (Amax if ord == 2 else Amin).apply(values, -1)
        if keepdim:
            for d in sorted((rows, columns)):
                out = Unsqueeze.apply(out, d)
        return out
    summed, searched = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = VectorNorm.apply(A, 1, summed, True)
    if ord > 0 and not A.shape[searched]:  # the largest of nothing
        out = Sum.apply(sums, (searched,), True)
    else:
        out = (Amax if ord > 0 else Amin).apply(sums, (searched,), True)
    return out if keepdim else out.squeeze((rows, columns))


export("linalg.matrix_norm", function=_matrix_norm, kinds={"ord": "Number | str"})(VectorNorm)


def _linalg_norm(
    A: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """A vector norm or a matrix norm, chosen as `numpy.linalg.norm` does.

    Args:
        A: floating point values.
        ord: the order; None is the 2-norm of all elements (along `dim`).
        dim: one dimension: vector norms; two: matrix norms; None: by the number of dimensions of `A`.
        keepdim: keep the reduced dimensions with size 1.
        dtype: convert to it first.

    Raises:
        RuntimeError: an order that does not exist for the dimensions.
    """
    if dtype is not None:
        A = A.to(as_dtype(dtype))
    if not A.is_floating_point():
        raise RuntimeError(f"linalg.norm: Expected a floating point tensor as input. Got {A.dtype}")
    if dim is not None and isinstance(dim, Sequence) and len(dim) not in (1, 2):
        raise RuntimeError(
            f"linalg.norm: If dim is specified, it must be of length 1 or 2. Got {dim}"
        )
    if ord is None:
        return VectorNorm.apply(A, 2, dim, keepdim)
    if dim is None and A.ndim not in (1, 2):
        raise RuntimeError(
            f"linalg.norm: If dim is not specified but ord is, the input must be 1D or 2D. Got {A.ndim}D."
        )
    count = A.ndim if dim is None else len(dim) if isinstance(dim, Sequence) else 1
    if count == 2:
        return _matrix_norm(A, ord, (0, 1) if dim is None else dim, keepdim)
    if isinstance(ord, str):
        raise RuntimeError(
            f"linalg.norm: Order {ord!r} is for matrices; the {count} reduced dimension holds vectors"
        )
    return VectorNorm.apply(A, ord, dim, keepdim)


export("linalg.norm", function=_linalg_norm, kinds={"ord": "Number | str | None"})(VectorNorm)


def _norm(
    input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    """The p-norm of the elements, over `dim` or over everything.

    Args:
        input: floating point values.
        p: any number, inf, -inf, "fro" (the 2-norm) or "nuc" (of the matrices in two dimensions).
        dim: an int or a tuple of ints.
        keepdim: keep the reduced dimensions with size 1.
        dtype: convert to it first.
    """
    if dtype is not None:
        input = input.to(as_dtype(dtype))
    if not input.is_floating_point():
        raise RuntimeError(f"norm: expected a floating point tensor as input, got {input.dtype}")
    if p == "nuc":
        return _matrix_norm(input, "nuc", tuple(range(input.ndim)) if dim is None else dim, keepdim)
    if isinstance(p, str) and p != "fro":
        raise RuntimeError(f"norm: unknown order {p!r}; expected a number, 'fro' or 'nuc'")
    return VectorNorm.apply(input, 2 if p in ("fro", None) else p, dim, keepdim)


export("norm", methods=("norm",), function=_norm)(VectorNorm)
