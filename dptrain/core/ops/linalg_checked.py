"""Factors and solutions that say in numbers where they fail, and what is built from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, namespace_of
from dptrain.core.export import export
from dptrain.core.ops.compare import Where
from dptrain.core.ops.linalg_decompose import LinalgSvd
from dptrain.core.ops.linalg_lu import factorise
from dptrain.core.ops.linalg_matrix_norm import _linalg_norm
from dptrain.core.ops.linalg_solve import (
    LinalgCholeskyEx,
    LinAlgError,
    LinalgInvEx,
    LinalgSolveEx,
    _cholesky,
    _solve,
    _solve_triangular,
    check_matrix,
    eye_like,
    mT,
    not_definite,
)
from dptrain.core.results import results
from dptrain.core.tensor import Tensor, wrap

cholesky_ex_result = results("linalg_cholesky_ex", "L", "info")
inv_ex_result = results("linalg_inv_ex", "inverse", "info")
solve_ex_result = results("linalg_solve_ex", "result", "info")


def _with_info(
    A: Tensor, run: Callable[[Any], Any], locate: Callable[[np.ndarray], np.ndarray], check: bool
) -> tuple[Any, Tensor]:
    """`run(A)` and 0 for each matrix; where that fails NaN, and the step at which it did."""
    try:
        return run(A), wrap(namespace_of(A._array).zeros(A.shape[:-2], np.int32))
    except LinAlgError:
        if check:
            raise
    info = locate(A._array)
    good = as_array(info == 0)
    eye = wrap(eye_like(A, A.shape[-1]))
    out = run(Where.apply(wrap(good[..., None, None]), A, eye))
    trailing = 1 if out.ndim == A.ndim - 1 else 2
    shown = good.reshape(*good.shape, *(1,) * trailing)
    return Where.apply(wrap(shown), out, float("nan")), wrap(info)


def _singular_at(A: np.ndarray) -> np.ndarray:
    return factorise(A)[2]


def _cholesky_ex(A: Any, *, upper: bool = False, check_errors: bool = False) -> Any:
    """`linalg.cholesky`, and for each matrix the minor that is not positive-definite (0: none)."""
    check_matrix("linalg.cholesky_ex", A, square=True)
    return cholesky_ex_result(
        _with_info(A, lambda a: _cholesky(a, upper=upper), not_definite, check_errors)
    )


def _inv_ex(A: Any, *, check_errors: bool = False) -> Any:
    """`linalg.inv`, and for each matrix the zero pivot at which it fails (0: none)."""
    check_matrix("linalg.inv_ex", A, square=True)
    return inv_ex_result(_with_info(A, LinalgInvEx.apply, _singular_at, check_errors))


def _solve_ex(A: Any, B: Any, *, left: bool = True, check_errors: bool = False) -> Any:
    """`linalg.solve`, and for each matrix the zero pivot at which it fails (0: none)."""
    check_matrix("linalg.solve_ex", A, square=True)
    found = _with_info(A, lambda a: _solve(a, B, left=left), _singular_at, check_errors)
    return solve_ex_result(found)


export("linalg.cholesky_ex", function=_cholesky_ex)(LinalgCholeskyEx)
export("linalg.inv_ex", function=_inv_ex)(LinalgInvEx)
export("linalg.solve_ex", function=_solve_ex)(LinalgSolveEx)


def _cond(A: Any, p: Any = None) -> Any:
    """The condition number: (*, m, n) -> (*). Of square matrices only but for p None, 2 and -2.

    Args:
        A: matrices.
        p: None or 2 (largest over smallest singular value), -2, or the order of a matrix norm.

    Raises:
        RuntimeError: no (square) matrix.
    """
    check_matrix("linalg.cond", A, square=p not in (None, 2, -2))
    if p in (None, 2, -2):
        s = LinalgSvd.apply(A, False)[1]
        ends = (s.select(-1, 0), s.select(-1, -1)) if s.shape[-1] else (s.sum(-1), s.sum(-1) + 1)
        return ends[1] / ends[0] if p == -2 else ends[0] / ends[1]
    inverse, info = _inv_ex(A)
    out = _linalg_norm(A, p, (-2, -1)) * _linalg_norm(inverse, p, (-2, -1))
    return Where.apply(wrap(as_array(info._array == 0)), out, float("inf"))


export("linalg.cond", function=_cond, kinds={"p": "Number | str | None"})(LinalgSvd)


def _cholesky_solve(B: Any, L: Any, upper: bool = False) -> Any:
    """X with A X = B for A = L L^T (U^T U with `upper`), L given: (*, n, k) with (*, n, n)."""
    check_matrix("cholesky_solve", L, square=True)
    # The other triangle counts as 0, but as PyTorch's the gradient is that of a full matrix.
    L = L - wrap((np.tril if upper else np.triu)(L._array, -1 if upper else 1))
    first, second = (mT(L), L) if upper else (L, mT(L))
    return LinalgSolveEx.apply(second, LinalgSolveEx.apply(first, B))


def _cholesky_inverse(L: Any, upper: bool = False) -> Any:
    """The inverse of A = L L^T (U^T U with `upper`), L given: (*, n, n) -> (*, n, n)."""
    check_matrix("cholesky_inverse", L, square=True)
    return _cholesky_solve(wrap(eye_like(L, L.shape[-1])), L, upper)


export("cholesky_solve", methods=("cholesky_solve",), function=_cholesky_solve)(LinalgSolveEx)
export("cholesky_inverse", methods=("cholesky_inverse",), function=_cholesky_inverse)(LinalgSolveEx)

triangular_solve_result = results("triangular_solve", "solution", "cloned_coefficient")


def _triangular_solve(
    b: Any, A: Any, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Any:
    """X with A X = b (A^T X = b) for a triangular A, and a copy of A: the older `solve_triangular`."""
    matrix = mT(A) if transpose else A
    solution = _solve_triangular(matrix, b, upper=upper != transpose, unitriangular=unitriangular)
    whole = (*solution.shape[:-2], *A.shape[-2:])  # A is repeated over the batch of b
    return triangular_solve_result((solution, A.expand(*whole).clone()))


export("triangular_solve", methods=("triangular_solve",), function=_triangular_solve)(LinalgSolveEx)
