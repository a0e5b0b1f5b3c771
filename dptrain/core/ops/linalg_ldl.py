"""Factors of symmetric indefinite matrices, A = L D L^T with exchanges, and what is solved with them.

Source: J. R. Bunch, L. Kaufman, "Some stable methods for calculating inertia and solving symmetric
linear systems", 1977; the layout of the results is LAPACK's (sytrf).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import greatest, namespace_of, run_beside
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.linalg_solve import LinAlgError, check_matrix, check_same_type
from dptrain.core.results import results

ldl_factor_result = results("linalg_ldl_factor", "LD", "pivots")
ldl_factor_ex_result = results("linalg_ldl_factor_ex", "LD", "pivots", "info")

#: Bounds the growth of the entries for pivots of one and of two rows alike.
_ALPHA = (1 + math.sqrt(17)) / 8


def _choose(a: np.ndarray, k: int) -> tuple[int, int]:
    """The row to exchange, and how many rows the pivot at k has; (-1, 1) where the column is 0."""
    here, below = abs(a[k, k]), np.abs(a[k + 1 :, k])
    largest = greatest(below)
    if max(here, largest) == 0:
        return -1, 1
    if here >= _ALPHA * largest:
        return k, 1
    other = k + 1 + int(below.argmax())
    row = max(np.abs(a[other, k:other]).max(), greatest(np.abs(a[other + 1 :, other])))
    if here >= _ALPHA * largest * (largest / row):
        return k, 1
    return other, 1 if abs(a[other, other]) >= _ALPHA * row else 2


def _factorise(a: np.ndarray) -> tuple[np.ndarray, int]:
    """The factors in place of the lower triangle of one matrix; pivots, and the first that is 0."""
    n, k, info = len(a), 0, 0
    pivots = namespace_of(a).zeros(n, np.int32)
    while k < n:
        other, width = _choose(a, k)
        if other < 0:
            info, other = info or k + 1, k
        last = k + width - 1
        if other != last:
            a[other + 1 :, [last, other]] = a[other + 1 :, [other, last]]
            column = a[last + 1 : other, last].copy()
            a[last + 1 : other, last] = a[other, last + 1 : other]
            a[other, last + 1 : other] = column
            a[[last, other], [last, other]] = a[[other, last], [other, last]]
            if width == 2:
                a[[last, other], k] = a[[other, last], k]
        pivots[k : last + 1] = other + 1 if width == 1 else -(other + 1)
        block, x = _block(a, k, width), a[last + 1 :, k : last + 1].copy()
        if last + 1 < n and (width == 2 or block[0, 0] != 0):
            weights = np.linalg.solve(block, x.T).T
            a[last + 1 :, last + 1 :] -= weights @ x.T
            a[last + 1 :, k : last + 1] = weights
        k += width
    return pivots, info


def _block(a: np.ndarray, k: int, width: int) -> np.ndarray:
    """The pivot of one or two rows, both triangles."""
    lower = np.tril(a[k : k + width, k : k + width])
    return lower + np.tril(lower, -1).T


def _substitute(ld: np.ndarray, pivots: np.ndarray, b: np.ndarray) -> None:
    """b becomes A^-1 b."""
    starts, k = [], 0
    while k < len(ld):
        width = 1 if pivots[k] > 0 else 2
        starts.append((k, k + width))
        last, other = k + width - 1, abs(int(pivots[k])) - 1
        b[[last, other]] = b[[other, last]]
        b[last + 1 :] -= ld[last + 1 :, k : last + 1] @ b[k : last + 1]
        b[k : last + 1] = np.linalg.solve(_block(ld, k, width), b[k : last + 1])
        k += width
    for start, end in reversed(starts):
        b[start:end] -= ld[end:, start:end].T @ b[end:]
        last, other = end - 1, abs(int(pivots[start])) - 1
        if last != other:
            b[[last, other]] = b[[other, last]]


def _factorise_all(A: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    out = np.tril(A)
    lead = A.shape[:-2]
    xp = namespace_of(A)
    pivots, info = xp.zeros(A.shape[:-1], np.int32), xp.zeros(lead, np.int32)
    for place in np.ndindex(*lead):
        pivots[place], info[place] = _factorise(out[place])
    return np.tril(out), pivots, info


def _substitute_all(ld: np.ndarray, pivots: np.ndarray, b: np.ndarray) -> np.ndarray:
    lead = np.broadcast_shapes(b.shape[:-2], ld.shape[:-2])
    out = np.broadcast_to(b, (*lead, *b.shape[-2:])).copy()
    ld = np.broadcast_to(ld, (*lead, *ld.shape[-2:]))
    exchanges = np.broadcast_to(pivots, (*lead, pivots.shape[-1]))
    for place in np.ndindex(*lead):
        _substitute(ld[place], exchanges[place], out[place])
    return out


class LinalgLdlFactorEx(Op):
    """(*, n, n) -> L and D in one lower triangle, pivots, infos. Has no derivative."""

    name = "linalg.ldl_factor_ex"

    def forward(self, A: Any) -> Any:
        return run_beside(A, _factorise_all, A)


class LinalgLdlSolve(Op):
    """A^-1 B from the factors of a symmetric A: its own derivative by B."""

    name = "linalg.ldl_solve"
    num_tensors = 3

    def forward(self, B: Any, LD: Any, pivots: Any) -> Any:
        self.factors = (LD, pivots)
        return run_beside(B, _substitute_all, LD, pivots, B)

    def backward(self, grad: Any) -> Any:
        return LinalgLdlSolve.call(grad, *self.factors)


def _ldl_factor_ex(A: Any, *, hermitian: bool = False, check_errors: bool = False) -> Any:
    """LDL^T factors of symmetric matrices (the lower triangle is read), pivots, zero pivots (0: none).

    Raises:
        RuntimeError: not square; a zero pivot with `check_errors`.
    """
    check_matrix("linalg.ldl_factor_ex", A, square=True)
    found = LinalgLdlFactorEx.apply(A)
    if check_errors:
        _refuse_zeros("linalg.ldl_factor_ex", found[2]._array)
    return ldl_factor_ex_result(found)


def _refuse_zeros(op: str, info: np.ndarray) -> None:
    if info.any():
        raise LinAlgError(f"{op}: the pivot {info.max()} is zero; the factors cannot solve")


def _ldl_factor(A: Any, *, hermitian: bool = False) -> Any:
    """`linalg.ldl_factor_ex` without infos; a zero pivot is an error."""
    check_matrix("linalg.ldl_factor", A, square=True)
    found = LinalgLdlFactorEx.apply(A)
    _refuse_zeros("linalg.ldl_factor", found[2]._array)
    return ldl_factor_result(found[:2])


def _ldl_solve(LD: Any, pivots: Any, B: Any, *, hermitian: bool = False) -> Any:
    """X with A X = B from the result of `linalg.ldl_factor`: (*, n, n), (*, n), (*, n, k).

    Raises:
        RuntimeError: shapes or types that do not fit.
    """
    op = "linalg.ldl_solve"
    check_matrix(op, LD, square=True)
    check_matrix(op, B)
    check_same_type(op, LD, B)
    if pivots.dtype.numpy.kind not in "iu":
        raise RuntimeError(f"{op}: Expected pivots to be integers. Got {pivots.dtype}")
    if B.shape[-2] != LD.shape[-1] or pivots.shape != LD.shape[:-1]:
        raise RuntimeError(
            f"{op}: Incompatible shapes of LD {list(LD.shape)}, pivots {list(pivots.shape)} and B {list(B.shape)}"
        )
    return LinalgLdlSolve.apply(B, LD.detach(), pivots)


_PUBLIC: dict[str, tuple[Callable[..., Any], type[Op]]] = {
    "ldl_factor_ex": (_ldl_factor_ex, LinalgLdlFactorEx),
    "ldl_factor": (_ldl_factor, LinalgLdlFactorEx),
    "ldl_solve": (_ldl_solve, LinalgLdlSolve),
}
for _name, (_function, _cls) in _PUBLIC.items():
    export(f"linalg.{_name}", function=_function)(_cls)
