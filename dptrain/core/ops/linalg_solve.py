"""Inverses, determinants, linear systems, Cholesky factors, over batches of square matrices.

Source of the derivatives: M. B. Giles, "An extended collection of matrix derivative results for
forward and reverse mode algorithmic differentiation", Oxford, 2008; the Cholesky factor:
I. Murray, "Differentiation of the Cholesky decomposition", 2016.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.capturing import refuse_if
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.operands import LinAlgError
from dptrain.core.ops.compare import Where
from dptrain.core.ops.matmul import Matmul
from dptrain.core.ops.shape import Reshape, Transpose, Unsqueeze
from dptrain.core.results import results


def mT(value: Any) -> Any:
    """The last two dimensions exchanged, of a raw array or a Tensor."""
    return Transpose.call(value, -2, -1)


def check_matrix(op: str, A: Any, square: bool = False) -> None:
    """Refuse what is no (batch of) floating point matrices.

    Raises:
        RuntimeError: fewer than two dimensions, not square where it must be, or not float32/64.
    """
    if A.ndim < 2:
        raise RuntimeError(
            f"{op}: The input tensor A must have at least 2 dimensions, got shape {list(A.shape)}"
        )
    if square and A.shape[-1] != A.shape[-2]:
        raise RuntimeError(
            f"{op}: A must be batches of square matrices, but they are {A.shape[-2]} by {A.shape[-1]} matrices"
        )
    check_element_type(op, A)


def check_element_type(op: str, A: Any) -> None:
    """Refuse other types than float32 and float64, as LAPACK does.

    Raises:
        RuntimeError: another type.
    """
    if A.dtype.name not in ("float32", "float64"):
        raise RuntimeError(
            f"{op}: Expected a floating point tensor (float32 or float64) as input. Got {A.dtype}"
        )


def _singular(op: str) -> LinAlgError:
    return LinAlgError(
        f"{op}: the inversion could not be completed because the input matrix is singular."
    )


@export("linalg.inv", "inverse", methods=("inverse",))
class LinalgInvEx(Op):
    """The inverse of square matrices: (*, n, n) -> (*, n, n)."""

    def forward(self, A: Any) -> Any:
        check_matrix("linalg.inv", A, square=True)
        try:
            return self.xp.linalg.inv(A)
        except np.linalg.LinAlgError:
            raise _singular("linalg.inv") from None

    def backward(self, grad: Any, out: Any) -> Any:
        t = mT(out)
        return -Matmul.call(Matmul.call(t, grad), t)


def _solve(A: Any, B: Any, *, left: bool = True) -> Any:
    """X with A X = B (or X A = B): (*, n, n) with (*, n) or (*, n, k).

    Raises:
        RuntimeError: shapes or dtypes do not fit, or a matrix is singular.
    """
    check_matrix("linalg.solve", A, square=True)
    check_element_type("linalg.solve", B)
    # A batch of vectors only where B has A's shape without the columns, as in PyTorch.
    vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    if vector and not left:
        raise RuntimeError(
            "linalg.solve: Vector broadcasting of the left hand side is not supported for left=False. "
            "In this case linalg.solve is equivalent to B / A.squeeze(-1)"
        )
    if vector:
        return LinalgSolveEx.apply(A, Unsqueeze.apply(B, -1)).squeeze(-1)
    if B.ndim < 2:
        raise RuntimeError(
            f"linalg.solve: The input tensor B must have at least 2 dimensions, got shape {list(B.shape)}"
        )
    if left:
        return LinalgSolveEx.apply(A, B)
    return mT(LinalgSolveEx.apply(mT(A), mT(B)))


@export("linalg.solve", function=_solve)
class LinalgSolveEx(Op):
    """A^-1 B."""

    num_tensors = 2

    def forward(self, A: Any, B: Any) -> Any:
        check_same_type("linalg.solve", A, B)
        if A.shape[-1] != B.shape[-2]:
            raise RuntimeError(
                f"linalg.solve: Incompatible shapes of A and B for the equation AX = B "
                f"({A.shape[-2]}x{A.shape[-1]} and {B.shape[-2]}x{B.shape[-1]})"
            )
        try:
            return self.xp.linalg.solve(A, B)
        except np.linalg.LinAlgError:
            raise LinAlgError(
                "linalg.solve: The solver failed because the input matrix is singular."
            ) from None

    def backward(self, grad: Any, A: Any, out: Any) -> Any:
        d_b = LinalgSolveEx.call(mT(A), grad)
        return -Matmul.call(d_b, mT(out)) if self.needs[0] else None, d_b


def check_same_type(op: str, A: Any, B: Any) -> None:
    """Refuse operands of two types.

    Raises:
        RuntimeError: the types differ.
    """
    if A.dtype != B.dtype:
        raise RuntimeError(
            f"{op}: Expected A and B to have the same dtype, but got A of {A.dtype} and B of {B.dtype}"
        )


def triangle(value: Any, upper: bool, unit: bool = False, strict: bool = False) -> Any:
    """The upper or lower triangle; with a unit diagonal if asked. Raw arrays and Tensors."""
    n, m = value.shape[-2:]
    mask = (np.triu if upper else np.tril)(
        namespace_beside(value).ones((n, m)), (1 if upper else -1) if unit or strict else 0
    )
    kept = Where.call(mask.astype(bool), value, 0)
    return kept + eye_like(value, n, m) if unit else kept


def namespace_beside(value: Any) -> Any:
    """What makes arrays where a raw array or a Tensor lives."""
    return namespace_of(getattr(value, "_array", value))


def eye_like(value: Any, n: int, m: int | None = None) -> Any:
    """The identity as a raw array, of the type of a raw array or a Tensor and beside it."""
    return namespace_beside(value).eye(n, m, dtype=value_type(value))


def value_type(value: Any) -> np.dtype[Any]:
    """The NumPy element type of a raw array or a Tensor."""
    found: np.dtype[Any] = getattr(value, "_array", value).dtype
    return found


def _solve_triangular(
    A: Any, B: Any, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """X with A X = B (X A = B) for a triangular A, whose other triangle is not looked at.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or a diagonal holds 0.
    """
    check_matrix("linalg.solve_triangular", A, square=True)
    check_matrix("linalg.solve_triangular", B)
    check_same_type("linalg.solve_triangular", A, B)
    rows = B.shape[-2] if left else B.shape[-1]
    if rows != A.shape[-1]:
        raise RuntimeError(
            f"linalg.solve_triangular: Incompatible shapes of A and B for the equation "
            f"{'AX = B' if left else 'XA = B'} ({A.shape[-2]}x{A.shape[-1]} and {B.shape[-2]}x{B.shape[-1]})"
        )
    A = triangle(A, upper, unitriangular)
    return LinalgSolveEx.apply(A, B) if left else mT(LinalgSolveEx.apply(mT(A), mT(B)))


export("linalg.solve_triangular", function=_solve_triangular)(LinalgSolveEx)


def _cofactors(A: Any) -> Any:
    """The gradient of det at a singular matrix: det(U) det(V) U diag(products of the others) V^T."""
    u, s, vh = np.linalg.svd(A)
    n = s.shape[-1]
    others = np.where(namespace_of(s).eye(n, dtype=bool), s.dtype.type(1), s[..., None, :]).prod(-1)
    sign = np.linalg.det(u) * np.linalg.det(vh)
    return (u * others[..., None, :]) @ vh * sign[..., None, None]


@export("linalg.det", "det", methods=("det",))
class LinalgDet(Op):
    """The determinant of square matrices: (*, n, n) -> (*)."""

    def forward(self, A: Any) -> Any:
        check_matrix("linalg.det", A, square=True)
        self.values = out = self.xp.asarray(self.xp.linalg.det(A), dtype=A.dtype)
        return out

    def backward(self, grad: Any, A: Any, out: Any) -> Any:
        g = Reshape.call(grad, (*grad.shape, 1, 1))
        if (self.values == 0).any():
            # The inverse does not exist; first derivatives do.
            return g * _cofactors(getattr(A, "_array", A))
        return g * Reshape.call(out, (*grad.shape, 1, 1)) * mT(LinalgInvEx.call(A))


#: `linalg.slogdet`: sign and logarithm of the absolute value of the determinant.
slogdet_result = results("linalg_slogdet", "sign", "logabsdet")


class LinalgSlogdet(Op):
    """(sign, log|det|) of square matrices; the sign has the gradient 0."""

    name = "linalg.slogdet"

    def forward(self, A: Any) -> Any:
        check_matrix("linalg.slogdet", A, square=True)
        sign, logabsdet = self.xp.linalg.slogdet(A)
        return self.xp.asarray(sign, A.dtype), self.xp.asarray(logabsdet, A.dtype)

    def backward(self, grads: Any, A: Any) -> Any:
        grad = grads[1]
        if grad is None:
            return A * 0
        return Reshape.call(grad, (*grad.shape, 1, 1)) * mT(LinalgInvEx.call(A))


def _slogdet(A: Any) -> Any:
    """Sign and log|det| of square matrices: (*, n, n) -> two tensors of (*)."""
    return slogdet_result(LinalgSlogdet.apply(A))


export("linalg.slogdet", "slogdet", methods=("slogdet",), function=_slogdet)(LinalgSlogdet)


def _logdet(input: Any) -> Any:
    """log(det): nan where the determinant is negative, -inf where it is 0."""
    check_matrix("logdet", input, square=True)
    sign, logabsdet = LinalgSlogdet.apply(input)
    return Where.apply(sign.detach() < 0, float("nan"), logabsdet)


export("logdet", methods=("logdet",), function=_logdet)(LinalgSlogdet)


def not_definite(A: np.ndarray) -> np.ndarray:
    """The order of the first leading minor that is not positive-definite, 0 where all are."""
    flat = A.reshape(math.prod(A.shape[:-2]), *A.shape[-2:])
    xp = namespace_of(A)
    info = xp.zeros(len(flat), np.int32)
    for i, matrix in enumerate(flat):
        for order in range(1, len(matrix) + 1):
            try:  # NaN is no pivot, though not every library says so
                found = bool(np.isnan(xp.linalg.cholesky(matrix[:order, :order])).any())
            except np.linalg.LinAlgError:
                found = True
            if found:
                info[i] = order
                break
    return info.reshape(A.shape[:-2])


def _no_factor(A: np.ndarray) -> LinAlgError:
    info = not_definite(A)
    first = int(np.flatnonzero(info)[0]) if info.any() else 0
    element = f"(Batch element {first}): " if A.ndim > 2 else ""
    return LinAlgError(
        f"linalg.cholesky: {element}The factorization could not be completed because the input is not "
        f"positive-definite (the leading minor of order {info.reshape(-1)[first]} is not positive-definite)."
    )


def _cholesky(A: Any, *, upper: bool = False) -> Any:
    """The triangular factor L of A = L L^T (or U of A = U^T U), A symmetric positive-definite.

    Raises:
        RuntimeError: not square, or not positive-definite.
    """
    check_matrix("linalg.cholesky", A, square=True)
    factor = LinalgCholeskyEx.apply(mT(A) if upper else A)
    return mT(factor) if upper else factor


@export("linalg.cholesky", function=_cholesky)
class LinalgCholeskyEx(Op):
    """The lower Cholesky factor."""

    def forward(self, A: Any) -> Any:
        check_matrix("linalg.cholesky", A, square=True)
        try:
            factor = self.xp.linalg.cholesky(A)
        except np.linalg.LinAlgError:
            raise _no_factor(A) from None
        pivots = self.xp.diagonal(factor, axis1=-2, axis2=-1)
        refuse_if(self.xp.isnan(pivots).any(), _no_factor, A)
        return factor

    def backward(self, grad: Any, out: Any) -> Any:
        # A-bar = sym(L^-T Phi(L^T L-bar) L^-1), Phi: lower triangle with halved diagonal.
        n = out.shape[-1]
        halved = np.tril(self.xp.ones((n, n))) - 0.5 * self.xp.eye(n)
        phi = Matmul.call(mT(out), grad) * halved.astype(value_type(out))
        t = mT(out)
        half = LinalgSolveEx.call(t, phi)  # L^-T Phi
        inner = mT(LinalgSolveEx.call(t, mT(half)))  # ... L^-1
        return (inner + mT(inner)) * 0.5


def _old_cholesky(input: Any, upper: bool = False) -> Any:
    """`linalg.cholesky` under its older name."""
    return _cholesky(input, upper=upper)


export("cholesky", methods=("cholesky",), function=_old_cholesky)(LinalgCholeskyEx)
