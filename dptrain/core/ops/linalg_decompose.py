"""QR, singular values, eigenvalues of symmetric matrices.

Sources of the derivatives: S. F. Walter, L. Lehmann, "Algorithmic differentiation of linear algebra
functions with application in optimum experimental design", 2010 (QR, tall); H.-J. Liao et al.,
"Differentiable programming tensor networks", 2019 (QR, wide); J. Townsend, "Differentiating the
singular value decomposition", 2016; M. B. Giles, 2008 (eigenvalues).

Backward takes the factors of the forward pass; under create_graph they are computed anew from the
input, which gives them a history.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.join import Cat
from dptrain.core.ops.linalg_solve import (
    LinAlgError,
    LinalgSolveEx,
    check_matrix,
    eye_like,
    mT,
    triangle,
)
from dptrain.core.ops.matmul import Matmul
from dptrain.core.ops.shape import Narrow, Unsqueeze
from dptrain.core.results import results
from dptrain.core.tensor import Tensor, wrap


class _Factors(Op):
    """An operation whose backward needs all of its results."""

    factors: tuple[Any, ...]

    def _again(self, A: Any, *args: Any) -> tuple[Any, ...]:
        return type(self).call(A, *args) if isinstance(A, Tensor) else self.factors


def empty_like_type(A: Tensor) -> Tensor:
    """A tensor of no elements, of the type of `A`: what is not computed."""
    return wrap(namespace_of(A._array).empty(0, A._array.dtype))


#: `linalg.qr`.
qr_result = results("linalg_qr", "Q", "R")


class LinalgQr(_Factors):
    """Reduced QR: (*, m, n) -> (*, m, k), (*, k, n) with k = min(m, n)."""

    name = "linalg.qr"

    def forward(self, A: Any) -> Any:
        self.factors = tuple(self.xp.linalg.qr(A, mode="reduced"))
        return self.factors

    def backward(self, grads: Any, A: Any) -> Any:
        q, r = self._again(A)
        d_q, d_r = grads
        if d_q is None:
            d_q = q * 0
        if d_r is None:
            d_r = r * 0
        m, n = A.shape[-2:]
        if m >= n:
            return _qr_gradient(q, r, d_q, d_r)
        # A = [X | Y]: X = Q U is square, and Y = Q V follows from Q.
        u = Narrow.call(r, -1, 0, m)
        d_u, d_v = Narrow.call(d_r, -1, 0, m), Narrow.call(d_r, -1, m, n - m)
        y = Narrow.call(A, -1, m, n - m)
        d_x = _qr_gradient(q, u, d_q + Matmul.call(y, mT(d_v)), d_u)
        return Cat.call(d_x, Matmul.call(q, d_v), dim=-1)


def _qr_gradient(q: Any, r: Any, d_q: Any, d_r: Any) -> Any:
    """Of tall matrices: (dQ + Q copyltu(R dR^T - dQ^T Q)) R^-T."""
    m = Matmul.call(r, mT(d_r)) - Matmul.call(mT(d_q), q)
    symmetric = triangle(m, upper=False) + mT(triangle(m, upper=False, strict=True))
    b = d_q + Matmul.call(q, symmetric)
    return mT(LinalgSolveEx.call(r, mT(b)))


class _CompleteQr(Op):
    """QR with a square Q; has no derivative where that is not determined by A."""

    name = "linalg.qr"

    def forward(self, A: Any) -> Any:
        return tuple(self.xp.linalg.qr(A, mode="complete"))

    def backward(self, grads: Any) -> Any:
        raise RuntimeError(
            "linalg.qr: The derivative of linalg.qr with mode='complete' is not implemented when nrows > ncols"
        )


def _qr(A: Any, mode: str = "reduced") -> Any:
    """The QR decomposition A = Q R.

    Args:
        A: (*, m, n).
        mode: "reduced" (Q is (*, m, k), k = min(m, n)), "complete" (Q is (*, m, m)), or "r" (Q is empty;
            not differentiable).

    Raises:
        RuntimeError: an unknown mode, or no matrix.
    """
    check_matrix("linalg.qr", A)
    if mode not in ("reduced", "complete", "r"):
        raise RuntimeError(
            f"qr received unrecognized mode '{mode}' but expected one of 'reduced' (default), 'r', or 'complete'"
        )
    if mode == "complete" and A.shape[-2] > A.shape[-1]:
        return qr_result(_CompleteQr.apply(A))
    if mode == "r":
        _, r = LinalgQr.apply(A.detach())
        return qr_result((empty_like_type(A), r))
    return qr_result(LinalgQr.apply(A))


export("linalg.qr", function=_qr)(LinalgQr)


#: `linalg.svd`.
svd_result = results("linalg_svd", "U", "S", "Vh")


class LinalgSvd(_Factors):
    """Singular values and vectors: (*, m, n) -> U, S (*, k), Vh; only the first k vectors count."""

    name = "linalg.svd"

    def forward(self, A: Any, full_matrices: bool) -> Any:
        self.full = full_matrices
        try:
            self.factors = tuple(self.xp.linalg.svd(A, full_matrices=full_matrices))
        except np.linalg.LinAlgError:
            raise LinAlgError("linalg.svd: The algorithm failed to converge.") from None
        return self.factors

    def backward(self, grads: Any, A: Any) -> Any:
        u, s, vh = self._again(A, self.full)
        d_u, d_s, d_vh = grads
        k = s.shape[-1]
        if self.full:
            u, vh = Narrow.call(u, -1, 0, k), Narrow.call(vh, -2, 0, k)
            d_u = None if d_u is None else Narrow.call(d_u, -1, 0, k)
            d_vh = None if d_vh is None else Narrow.call(d_vh, -2, 0, k)
        column, row = Unsqueeze.call(s, -1), Unsqueeze.call(s, -2)
        inner: Any = None
        if d_u is not None or d_vh is not None:
            gaps = _off_diagonal(row * row - column * column)
            if d_u is not None:
                x = Matmul.call(mT(u), d_u)
                inner = (x - mT(x)) / gaps * row
            if d_vh is not None:
                x = Matmul.call(d_vh, mT(vh))
                term = column * ((mT(x) - x) / gaps)
                inner = term if inner is None else inner + term
        if d_s is not None:
            diagonal = Unsqueeze.call(d_s, -2) * eye_like(s, k)
            inner = diagonal if inner is None else inner + diagonal
        out = Matmul.call(Matmul.call(u, inner), vh)
        m, n = A.shape[-2:]
        if d_u is not None and m > k:
            rest = (d_u - Matmul.call(u, Matmul.call(mT(u), d_u))) / row
            out = out + Matmul.call(rest, vh)
        if d_vh is not None and n > k:
            rest = (d_vh - Matmul.call(Matmul.call(d_vh, mT(vh)), vh)) / column
            out = out + Matmul.call(u, rest)
        return out


def _off_diagonal(gaps: Any) -> Any:
    """Differences to divide by, with ones where a value meets itself."""
    return gaps + eye_like(gaps, gaps.shape[-1])


def _svd(A: Any, full_matrices: bool = True, *, driver: str | None = None) -> Any:
    """The singular value decomposition A = U diag(S) Vh, S descending.

    Args:
        A: (*, m, n).
        full_matrices: U (*, m, m) and Vh (*, n, n) instead of (*, m, k) and (*, k, n).
        driver: GPU only.

    Raises:
        RuntimeError: no matrix, or a driver on the CPU.
    """
    check_matrix("linalg.svd", A)
    if driver is not None:
        raise RuntimeError(
            "linalg.svd: keyword argument `driver=` is only supported on CUDA inputs"
        )
    return svd_result(LinalgSvd.apply(A, bool(full_matrices)))


export("linalg.svd", function=_svd)(LinalgSvd)


def _svdvals(A: Any, *, driver: str | None = None) -> Any:
    """The singular values, descending: (*, m, n) -> (*, min(m, n))."""
    check_matrix("linalg.svdvals", A)
    return LinalgSvd.apply(A, False)[1]


export("linalg.svdvals", function=_svdvals)(LinalgSvd)


#: `linalg.eigh`.
eigh_result = results("linalg_eigh", "eigenvalues", "eigenvectors")


class LinalgEigh(_Factors):
    """Eigenvalues (ascending) and eigenvectors of symmetric matrices."""

    name = "linalg.eigh"

    def forward(self, A: Any, UPLO: str) -> Any:
        self.uplo = UPLO
        try:
            self.factors = tuple(self.xp.linalg.eigh(A, UPLO=UPLO))
        except np.linalg.LinAlgError:
            raise LinAlgError("linalg.eigh: The algorithm failed to converge.") from None
        return self.factors

    def backward(self, grads: Any, A: Any) -> Any:
        values, v = self._again(A, self.uplo)
        d_values, d_v = grads
        n = v.shape[-1]
        inner: Any = None
        if d_v is not None:
            gaps = _off_diagonal(Unsqueeze.call(values, -2) - Unsqueeze.call(values, -1))
            off = 1 - eye_like(v, n)
            inner = Matmul.call(mT(v), d_v) / gaps * off
        if d_values is not None:
            diagonal = Unsqueeze.call(d_values, -2) * eye_like(v, n)
            inner = diagonal if inner is None else inner + diagonal
        return Matmul.call(Matmul.call(v, inner), mT(v))


def _check_symmetric(op: str, A: Any, UPLO: str) -> str:
    check_matrix(op, A, square=True)
    if UPLO.upper() not in ("L", "U"):
        raise RuntimeError(f"Expected UPLO argument to be 'L' or 'U', but got {UPLO}")
    return UPLO.upper()


def _eigh(A: Any, UPLO: str = "L") -> Any:
    """Eigenvalues (ascending) and eigenvectors (columns) of symmetric matrices.

    Args:
        A: (*, n, n), of which only one triangle is read.
        UPLO: that triangle, "L" or "U".

    Raises:
        RuntimeError: not square, or another UPLO.
    """
    return eigh_result(LinalgEigh.apply(A, _check_symmetric("linalg.eigh", A, UPLO)))


def _eigvalsh(A: Any, UPLO: str = "L") -> Any:
    """The eigenvalues of symmetric matrices, ascending: (*, n, n) -> (*, n)."""
    return LinalgEigh.apply(A, _check_symmetric("linalg.eigvalsh", A, UPLO))[0]


export("linalg.eigh", function=_eigh)(LinalgEigh)
export("linalg.eigvalsh", function=_eigvalsh)(LinalgEigh)
