"""LU factors with partial pivoting, and what is solved with them.

Source of the algorithm: G. H. Golub, C. F. Van Loan, "Matrix computations", 3.4. Of the derivative:
F. de Hoog, R. Anderssen, M. Lukas, "Differentiation of matrix functionals using triangular
factorization", 2011: with P A = L U square, dA = P^T L^-T (tril(L^T dL, -1) + triu(dU U^T)) U^-T.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.export import export
from dptrain.core.ops.join import Cat
from dptrain.core.ops.linalg_decompose import _Factors, empty_like_type
from dptrain.core.ops.linalg_solve import (
    LinAlgError,
    LinalgSolveEx,
    check_matrix,
    check_same_type,
    eye_like,
    mT,
    triangle,
)
from dptrain.core.ops.matmul import Matmul
from dptrain.core.ops.reduce import TakeAlong
from dptrain.core.ops.shape import Narrow
from dptrain.core.results import results
from dptrain.core.tensor import Tensor, wrap

lu_factor_result = results("linalg_lu_factor", "LU", "pivots")
lu_factor_ex_result = results("linalg_lu_factor_ex", "LU", "pivots", "info")
lu_result = results("linalg_lu", "P", "L", "U")
lu_unpack_result = results("lu_unpack", "P", "L", "U")


def factorise(A: np.ndarray, pivot: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both factors in one matrix, LAPACK's pivots (from 1), and the first zero on the diagonal of U.

    Args:
        A: (*, m, n).
        pivot: bring the largest entry of each column to the diagonal.

    Returns:
        (*, m, n), (*, k) int32 and (*) int32 with k = min(m, n); the last is 0 where all is well.
    """
    m, n = A.shape[-2:]
    k = min(m, n)
    lu = A.reshape(math.prod(A.shape[:-2]), m, n).copy()
    xp = namespace_of(lu)
    batch = xp.arange(len(lu))
    pivots = np.tile(xp.arange(1, k + 1, dtype=np.int32), (len(lu), 1))
    info = xp.zeros(len(lu), np.int32)
    for j in range(k):
        if pivot:
            row = np.abs(lu[:, j:, j]).argmax(axis=1) + j
            pivots[:, j] = row + 1
            lu[batch, row], lu[:, j] = lu[:, j].copy(), lu[batch, row]
        diagonal = lu[:, j, j]
        info[(diagonal == 0) & (info == 0)] = j + 1
        lu[:, j + 1 :, j] /= np.where(diagonal == 0, 1, diagonal)[:, None]
        lu[:, j + 1 :, j + 1 :] -= lu[:, j + 1 :, j, None] * lu[:, None, j, j + 1 :]
    lead = A.shape[:-2]
    return lu.reshape(A.shape), pivots.reshape(*lead, k), info.reshape(lead)


def permutation(pivots: np.ndarray, rows: int) -> np.ndarray:
    """The rows of A in the order of P^T A, from LAPACK's exchanges: (*, k) -> (*, rows)."""
    flat = pivots.reshape(math.prod(pivots.shape[:-1]), pivots.shape[-1])
    xp = namespace_of(flat)
    order = np.tile(xp.arange(rows), (len(flat), 1))
    batch = xp.arange(len(flat))
    for j in range(flat.shape[1]):
        other = flat[:, j].astype(np.int64) - 1
        order[batch, other], order[:, j] = order[:, j].copy(), order[batch, other]
    return order.reshape(*pivots.shape[:-1], rows)


def _rows(value: Any, order: np.ndarray) -> Any:
    """The rows of the last two dimensions in another order."""
    return TakeAlong.call(value, np.broadcast_to(order[..., None], value.shape), value.ndim - 2)


class LinalgLuFactorEx(_Factors):
    """(*, m, n) -> both factors in one matrix, pivots, infos; only the first has a derivative."""

    name = "linalg.lu_factor_ex"

    def forward(self, A: Any, pivot: bool) -> Any:
        self.pivot = pivot
        self.factors = factorise(A, pivot)
        self.back = np.argsort(permutation(self.factors[1], A.shape[-2]), axis=-1)
        return self.factors

    def backward(self, grads: Any, A: Any) -> Any:
        lu, d = self._again(A, self.pivot)[0], grads[0]
        m, n = A.shape[-2:]
        k = min(m, n)
        # The square part P A1 = L1 U1 first, then P A2 = L1 U2 beside or L2 U1 below it.
        square = Narrow.call(Narrow.call(lu, -1, 0, k), -2, 0, k)
        d_square = Narrow.call(Narrow.call(d, -1, 0, k), -2, 0, k)
        lower, upper = triangle(square, upper=False, unit=True), triangle(square, upper=True)
        d_lower, d_upper = triangle(d_square, upper=False, strict=True), triangle(d_square, True)
        rest: Any = None
        if n > k:
            rest = LinalgSolveEx.call(mT(lower), Narrow.call(d, -1, k, n - k))
            d_lower = d_lower - Matmul.call(rest, mT(Narrow.call(lu, -1, k, n - k)))
        if m > k:
            rest = mT(LinalgSolveEx.call(upper, mT(Narrow.call(d, -2, k, m - k))))
            d_upper = d_upper - Matmul.call(mT(Narrow.call(lu, -2, k, m - k)), rest)
        inner = triangle(Matmul.call(mT(lower), d_lower), upper=False, strict=True)
        inner = inner + triangle(Matmul.call(d_upper, mT(upper)), upper=True)
        half = LinalgSolveEx.call(mT(lower), inner)
        out = mT(LinalgSolveEx.call(upper, mT(half)))
        if rest is not None:
            out = Cat.call(out, rest, dim=-1 if n > k else -2)
        return _rows(out, self.back)


def _lu_factor_ex(A: Any, *, pivot: bool = True, check_errors: bool = False) -> Any:
    """LU factors of (*, m, n) matrices in one matrix, pivots, and where U has a zero on its diagonal.

    Args:
        A: matrices.
        pivot: exchange rows (else the factors may not exist).
        check_errors: raise where an info is not 0.

    Raises:
        RuntimeError: no matrix; a zero on the diagonal of U with `check_errors`.
    """
    check_matrix("linalg.lu_factor_ex", A)
    found = LinalgLuFactorEx.apply(A, bool(pivot))
    if check_errors:
        _refuse_zeros("linalg.lu_factor_ex", found[2])
    return lu_factor_ex_result(found)


def _refuse_zeros(op: str, info: Tensor) -> None:
    if info._array.any():
        raise LinAlgError(
            f"{op}: U[{info._array.max()},{info._array.max()}] is zero and using it on lu_solve would result in a "
            "division by zero."
        )


def _lu_factor(A: Any, *, pivot: bool = True) -> Any:
    """`linalg.lu_factor_ex` without infos; a zero on the diagonal of U is an error."""
    check_matrix("linalg.lu_factor", A)
    found = LinalgLuFactorEx.apply(A, bool(pivot))
    _refuse_zeros("linalg.lu_factor", found[2])
    return lu_factor_result(found[:2])


def _old_lu(A: Any, pivot: bool = True, get_infos: bool = False) -> Any:
    """`linalg.lu_factor` under its older name; with `get_infos` also where U has a zero."""
    found = tuple(_lu_factor_ex(A, pivot=pivot))
    return found if get_infos else found[:2]


def _unpacked(lu: Any, pivots: Any) -> tuple[Tensor, Any, Any]:
    m, n = lu.shape[-2:]
    k = min(m, n)
    order = permutation(pivots._array, m)
    p = np.swapaxes(eye_like(lu, m)[order], -1, -2)
    lower = triangle(Narrow.apply(lu, -1, 0, k), upper=False, unit=True)
    return wrap(p), lower, triangle(Narrow.apply(lu, -2, 0, k), upper=True)


def _lu_unpack(
    LU_data: Any, LU_pivots: Any, unpack_data: bool = True, unpack_pivots: bool = True
) -> Any:
    """P, L and U from the result of `linalg.lu_factor`; what is not wanted is empty.

    Raises:
        RuntimeError: pivots that are not int32.
    """
    if LU_pivots.dtype.name != "int32":
        raise RuntimeError(
            f"torch.lu_unpack: LU_pivots is expected to be a contiguous tensor of torch.int32 dtype, got {LU_pivots.dtype}"
        )
    if LU_data.ndim < 2:
        raise RuntimeError(
            f"lu_unpack: expected LU_data of at least 2 dimensions, got {LU_data.ndim}"
        )
    m, n = LU_data.shape[-2:]
    if LU_pivots.shape != (*LU_data.shape[:-2], min(m, n)):
        raise RuntimeError(
            f"lu_unpack: expected LU_pivots of shape {[*LU_data.shape[:-2], min(m, n)]} for LU_data of shape "
            f"{list(LU_data.shape)}, got {list(LU_pivots.shape)}"
        )
    rows = LU_pivots._array
    if unpack_pivots and rows.size and (rows.min() < 1 or rows.max() > m):
        raise RuntimeError(
            f"lu_unpack: pivots must be between 1 and LU_data.size(-2) = {m} inclusive, got {rows.min()} to {rows.max()}"
        )
    p, lower, upper = _unpacked(LU_data, LU_pivots)
    none = empty_like_type(LU_data)
    return lu_unpack_result(
        (p if unpack_pivots else none, *((lower, upper) if unpack_data else (none, none)))
    )


def _lu(A: Any, *, pivot: bool = True) -> Any:
    """A = P L U: (*, m, n) -> (*, m, m), (*, m, k), (*, k, n) with k = min(m, n); P is empty without pivots."""
    check_matrix("linalg.lu", A)
    lu, pivots, _ = LinalgLuFactorEx.apply(A, bool(pivot))
    p, lower, upper = _unpacked(lu, pivots)
    return lu_result((p if pivot else empty_like_type(A), lower, upper))


def _lu_solve(LU: Any, pivots: Any, B: Any, *, left: bool = True, adjoint: bool = False) -> Any:
    """X with A X = B from the factors of A (*, n, n); X A = B, or A^T in the place of A, on request.

    Raises:
        RuntimeError: shapes or types that do not fit.
    """
    op = "linalg.lu_solve"
    if pivots.dtype.name != "int32":
        raise RuntimeError(
            f"{op}: pivots should be a Tensor of scalar type int32, got {pivots.dtype}"
        )
    check_matrix(op, LU, square=True)
    if pivots.shape != LU.shape[:-1]:
        raise RuntimeError(
            f"{op}: Expected LU.shape[:-1] and pivots.shape to be the same, got {list(LU.shape)} and "
            f"{list(pivots.shape)}"
        )
    check_matrix(op, B)
    check_same_type(op, LU, B)
    n = LU.shape[-1]
    if B.shape[-2 if left else -1] != n:
        raise RuntimeError(
            f"{op}: Incompatible shapes of LU and B for the equation {'AX = B' if left else 'XA = B'} "
            f"({n}x{n} and {B.shape[-2]}x{B.shape[-1]})"
        )
    if not left:
        return mT(_lu_solve(LU, pivots, mT(B), adjoint=not adjoint))
    p, lower, upper = _unpacked(LU, pivots)
    if adjoint:
        inner = LinalgSolveEx.apply(mT(lower), LinalgSolveEx.apply(mT(upper), B))
        return Matmul.apply(p, inner)
    return LinalgSolveEx.apply(upper, LinalgSolveEx.apply(lower, Matmul.apply(mT(p), B)))


def _old_lu_solve(b: Any, LU_data: Any, LU_pivots: Any) -> Any:
    """`linalg.lu_solve` under its older name."""
    return _lu_solve(LU_data, LU_pivots, b)


export("linalg.lu_factor_ex", function=_lu_factor_ex)(LinalgLuFactorEx)
export("linalg.lu_factor", function=_lu_factor)(LinalgLuFactorEx)
export("linalg.lu", function=_lu)(LinalgLuFactorEx)
export("linalg.lu_solve", function=_lu_solve)(LinalgSolveEx)
export("lu", methods=("lu",), function=_old_lu)(LinalgLuFactorEx)
export("lu_unpack", function=_lu_unpack)(LinalgLuFactorEx)
export("lu_solve", methods=("lu_solve",), function=_old_lu_solve)(LinalgSolveEx)
