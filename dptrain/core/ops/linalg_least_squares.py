"""Pseudo-inverses, ranks and least squares, from singular values.

Source of the derivatives: G. H. Golub, V. Pereyra, "The differentiation of pseudo-inverses and
nonlinear least squares problems whose variables separate", 1973.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, greatest, namespace_of
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.linalg_decompose import empty_like_type
from dptrain.core.ops.linalg_solve import check_matrix, check_same_type, mT
from dptrain.core.ops.matmul import Matmul
from dptrain.core.ops.shape import Narrow, Reshape, Unsqueeze
from dptrain.core.results import results
from dptrain.core.tensor import wrap


def pinv_gradient(A: Any, p: Any, grad: Any) -> Any:
    """The gradient at A of a function of P = pinv(A) with the gradient `grad` at P."""
    h, ph = mT(grad), mT(p)
    if A.shape[-2] <= A.shape[-1]:
        k = Matmul.call(h, p)
        k_ph = Matmul.call(k, ph)
        return (
            k_ph
            - mT(Matmul.call(p, k))
            - Matmul.call(Matmul.call(A, p), k_ph)
            + Matmul.call(Matmul.call(ph, p), h - Matmul.call(k, A))
        )
    k = Matmul.call(p, h)
    ph_k = Matmul.call(ph, k)
    return (
        ph_k
        - mT(Matmul.call(k, p))
        + Matmul.call(Matmul.call(h - Matmul.call(A, k), p), ph)
        - Matmul.call(Matmul.call(ph_k, p), A)
    )


def _cutoff(largest: Any, shape: Any, kind: Any, atol: Any, rtol: Any) -> Any:
    """max(atol, rtol * largest) per matrix; rtol defaults to eps * max(m, n), or 0 beside an atol."""
    atol, rtol = (getattr(t, "_array", t) for t in (atol, rtol))
    xp = namespace_of(largest)
    if rtol is None:
        default = np.finfo(kind).eps * max(shape[-2:])
        rtol = default if atol is None else np.where(xp.asarray(atol) > 0, 0.0, default)
    return np.maximum(0.0 if atol is None else atol, xp.asarray(rtol) * largest)


class LinalgPinv(Op):
    """The Moore-Penrose inverse: singular values at or below the cutoff count as 0."""

    name = "linalg.pinv"

    def forward(self, A: Any, atol: Any, rtol: Any, hermitian: bool) -> Any:
        self.options = (atol, rtol, hermitian)
        u, s, vh = namespace_of(A).linalg.svd(A, full_matrices=False, hermitian=hermitian)
        cutoff = as_array(_cutoff(greatest(s, -1), A.shape, A.dtype, atol, rtol))
        inverse = np.where(s > cutoff[..., None], 1 / np.where(s == 0, 1, s), 0).astype(A.dtype)
        return np.swapaxes(vh, -1, -2) @ (inverse[..., None] * np.swapaxes(u, -1, -2))

    def backward(self, grad: Any, A: Any, out: Any) -> Any:
        return pinv_gradient(A, out, grad)


def _pinv(
    A: Any, rcond: Any = None, hermitian: bool = False, *, atol: Any = None, rtol: Any = None
) -> Any:
    """The Moore-Penrose inverse: (*, m, n) -> (*, n, m).

    Args:
        A: matrices; symmetric ones with `hermitian`.
        rcond: older name of `rtol`.
        hermitian: the matrices are symmetric.
        atol: singular values up to this count as 0.
        rtol: ... up to this part of the largest; eps * max(m, n) by default.
    """
    check_matrix("linalg.pinv", A, square=hermitian)
    if not A.numel():
        return mT(A).clone()
    return LinalgPinv.apply(A, atol, rcond if rtol is None else rtol, hermitian)


def _pinverse(input: Any, rcond: float = 1e-15) -> Any:
    """The Moore-Penrose inverse, singular values cut at `rcond` times the largest."""
    return _pinv(input, rcond)


_CUTOFFS = dict.fromkeys(["atol", "rtol", "rcond", "tol"], "Tensor | Number | None")
export("linalg.pinv", function=_pinv, kinds={**_CUTOFFS, "rcond": "Tensor | Number!"})(LinalgPinv)
export("pinverse", methods=("pinverse",), function=_pinverse)(LinalgPinv)


class MatrixRank(Op):
    """How many singular values exceed the cutoff."""

    name = "linalg.matrix_rank"
    differentiable = False

    def forward(self, A: Any, atol: Any, rtol: Any, hermitian: bool) -> Any:
        s = self.xp.linalg.svd(A, compute_uv=False, hermitian=hermitian)
        cutoff = as_array(_cutoff(greatest(s, -1), A.shape, A.dtype, atol, rtol))
        return (s > cutoff[..., None]).sum(-1, dtype=np.int64)


def _matrix_rank(
    A: Any, tol: Any = None, hermitian: bool = False, *, atol: Any = None, rtol: Any = None
) -> Any:
    """The number of singular values above max(atol, rtol * largest): (*, m, n) -> (*) int64.

    Args:
        A: matrices; symmetric ones with `hermitian`.
        tol: an absolute bound, as in NumPy.
        hermitian: the matrices are symmetric.
        atol: the absolute bound, 0 by default.
        rtol: the relative bound; eps * max(m, n) by default.
    """
    check_matrix("linalg.matrix_rank", A, square=hermitian)
    if tol is not None:
        atol, rtol = tol, 0.0
    return MatrixRank.apply(A, atol, rtol, hermitian)


export("linalg.matrix_rank", function=_matrix_rank, kinds={**_CUTOFFS, "tol": "Tensor | Number!"})(
    MatrixRank
)


#: `linalg.lstsq`.
lstsq_result = results("linalg_lstsq", "solution", "residuals", "rank", "singular_values")


class LinalgLstsq(Op):
    """The X of least norm that minimises |A X - B|."""

    name = "linalg.lstsq"
    num_tensors = 2

    def forward(self, A: Any, B: Any, rcond: Any) -> Any:
        self.rcond = rcond
        return LinalgPinv().forward(A, None, rcond, False) @ B

    def backward(self, grad: Any, A: Any, B: Any) -> Any:
        p = LinalgPinv.call(A, None, self.rcond, False)
        d_a = pinv_gradient(A, p, Matmul.call(grad, mT(B))) if self.needs[0] else None
        return d_a, Matmul.call(mT(p), grad) if self.needs[1] else None


def _lstsq(A: Any, B: Any, rcond: Any = None, *, driver: str | None = None) -> Any:
    """Least squares: the X that minimises the Frobenius norm of A X - B.

    Args:
        A: (*, m, n).
        B: (*, m, k) or (*, m).
        rcond: singular values up to this part of the largest count as 0; eps * max(m, n) by default.
        driver: PyTorch's names "gels", "gelsy" (default), "gelsd", "gelss". All are answered from the
            singular values; "gels" does not report a rank, "gelsd" and "gelss" report them.

    Returns:
        (solution, residuals, rank, singular_values); residuals are empty unless m > n, every matrix
        has full rank, and the driver is another than "gelsy".
    """
    check_matrix("linalg.lstsq", A)
    check_same_type("linalg.lstsq", A, B)
    names = ("gels", "gelsy", "gelsd", "gelss")
    driver = None if driver is None else driver.lower()
    if driver is not None and driver not in names:
        raise RuntimeError(
            f"linalg.lstsq: parameter `driver` should be one of (gels, gelsy, gelsd, gelss), got {driver!r}"
        )
    if not 0 <= A.ndim - B.ndim <= 1:
        raise RuntimeError(
            f"linalg.lstsq: A must have as many dimensions as B or one more, got {list(A.shape)} and {list(B.shape)}"
        )
    if driver == "gels":  # takes full rank for granted
        rcond = None
    vector = B.ndim == A.ndim - 1 and B.shape == A.shape[:-1]
    right = Unsqueeze.apply(B, -1) if vector else B
    if right.ndim < 2 or right.shape[-2] != A.shape[-2]:
        raise RuntimeError(
            f"linalg.lstsq: input.size(-2) should match other.size(-2), got A of {list(A.shape)} and B of "
            f"{list(B.shape)}"
        )
    solution = LinalgLstsq.apply(A, right, rcond)
    s = np.linalg.svd(A._array, compute_uv=False)
    bound = as_array(_cutoff(greatest(s, -1), A.shape, s.dtype, None, rcond))
    rank = (s > bound[..., None]).sum(-1, dtype=np.int64)
    m, n = A.shape[-2:]
    values, ranks = empty_like_type(A), as_array(rank)
    if m > n and driver not in (None, "gelsy") and (rank == n).all():
        residuals = (Matmul.apply(A, solution) - right).square().sum(-2)
    else:
        residuals = Reshape.apply(Narrow.apply(solution, -1, 0, 0), (0,))
    if driver in ("gelsd", "gelss"):
        values = wrap(s)
    if driver == "gels":
        ranks = namespace_of(s).empty(0, np.int64)
    if vector:
        solution = solution.squeeze(-1)
    return lstsq_result((solution, residuals, wrap(ranks), values))


export("linalg.lstsq", function=_lstsq, kinds={"rcond": "Number"})(LinalgLstsq)
