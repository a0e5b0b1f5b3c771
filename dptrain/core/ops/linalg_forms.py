"""Exponentials, products of reflections, inverses of tensors, powers as columns, older names.

Sources: N. J. Higham, "The scaling and squaring method for the matrix exponential revisited", 2005;
R. Mathias, "A chain rule for matrix functions and applications", 1996 (its derivative); G. H. Golub,
C. F. Van Loan, "Matrix computations", 5.1 (reflections); N. Halko, P.-G. Martinsson, J. A. Tropp,
"Finding structure with randomness", 2011 (low rank).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import greatest, namespace_of
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.join import Cat
from dptrain.core.ops.linalg_decompose import LinalgQr, LinalgSvd, _qr, _svd
from dptrain.core.ops.linalg_solve import LinalgInvEx, LinalgSolveEx, check_matrix, eye_like, mT
from dptrain.core.ops.matmul import Matmul
from dptrain.core.ops.shape import Narrow, Permute, Reshape, wrap_dim
from dptrain.core.random import default_generator
from dptrain.core.results import results
from dptrain.core.tensor import wrap

#: The numerator of the diagonal Pade approximant of degree 13.
_PADE = [
    math.factorial(26 - j) * math.factorial(13) // math.factorial(j) // math.factorial(13 - j)
    for j in range(14)
]
#: The norm up to which that is exact in double precision.
_PADE_REACH = 5.371920351148152


def _exponential(A: np.ndarray) -> np.ndarray:
    """exp by scaling and squaring, in float64."""
    x = A.astype(np.float64)
    norm = greatest(np.abs(x).sum(axis=-2), -1)
    with np.errstate(divide="ignore"):
        steps = np.maximum(np.ceil(np.log2(norm / _PADE_REACH)), 0)
    steps = np.where(np.isfinite(steps), steps, 0).astype(np.int64)
    x = x / np.exp2(steps)[..., None, None]
    square, eye = x @ x, np.broadcast_to(namespace_of(x).eye(x.shape[-1]), x.shape)
    scale = float(_PADE[0])
    odd, even = eye * (_PADE[13] / scale), eye * (_PADE[12] / scale)
    for j in range(11, 0, -2):
        odd = odd @ square + eye * (_PADE[j] / scale)
        even = even @ square + eye * (_PADE[j - 1] / scale)
    odd = x @ odd
    out = np.linalg.solve(even - odd, even + odd)
    for step in range(int(greatest(steps))):
        out = np.where((steps > step)[..., None, None], out @ out, out)
    return out


@export("linalg.matrix_exp", "matrix_exp", methods=("matrix_exp",))
class LinalgMatrixExp(Op):
    """The exponential of square matrices: (*, n, n) -> (*, n, n)."""

    in_float32 = True

    def forward(self, A: Any) -> Any:
        if A.ndim < 2 or A.shape[-1] != A.shape[-2] or A.dtype.kind != "f":
            raise RuntimeError(
                f"linalg.matrix_exp: A must be batches of square floating point matrices, got {A.dtype} of shape "
                f"{list(A.shape)}"
            )
        return _exponential(A).astype(A.dtype)

    def backward(self, grad: Any, A: Any) -> Any:
        # exp([[A^T, G], [0, A^T]]) holds the derivative in its upper right corner.
        t, n = mT(A), A.shape[-1]
        blocks = Cat.call(Cat.call(t, grad, dim=-1), Cat.call(t * 0, t, dim=-1), dim=-2)
        whole = LinalgMatrixExp.call(blocks)
        return Narrow.call(Narrow.call(whole, -2, 0, n), -1, n, n)


def _reflected(input: Any, tau: Any, other: Any, transposed: bool) -> Any:
    """H_1 ... H_k times `other`, H_i = 1 - tau_i v_i v_i^T; in the opposite order if `transposed`."""
    m, k = input.shape[-2], tau.shape[-1]
    below = np.tril(namespace_of(input._array).ones((m, k), input._array.dtype), -1)
    vectors = Narrow.apply(input, -1, 0, k) * wrap(below) + wrap(eye_like(input, m, k))
    for i in range(k) if transposed else range(k - 1, -1, -1):
        v = Narrow.apply(vectors, -1, i, 1)
        factor = Reshape.apply(tau.select(-1, i), (*tau.shape[:-1], 1, 1))
        other = other - v * factor * Matmul.apply(mT(v), other)
    return other


def _householder_product(input: Any, tau: Any) -> Any:
    """The first n columns of a product of reflections: (*, m, n), (*, k) -> (*, m, n).

    Raises:
        RuntimeError: shapes that do not fit.
    """
    op = "linalg.householder_product"
    check_matrix(op, input)
    m, n = input.shape[-2:]
    if m < n or tau.shape[-1] > n or tau.shape[:-1] != input.shape[:-2]:
        raise RuntimeError(
            f"{op}: expected input (*, m, n) with m >= n and tau (*, k) with k <= n, got {list(input.shape)} and "
            f"{list(tau.shape)}"
        )
    start = np.broadcast_to(eye_like(input, m, n), input._array.shape)
    return _reflected(input, tau, wrap(start.copy()), False)


def _ormqr(input: Any, tau: Any, other: Any, left: bool = True, transpose: bool = False) -> Any:
    """Q other, Q^T other, other Q or other Q^T for the product Q of reflections: (*, m, n) `other`.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    check_matrix("ormqr", input)
    if tau.ndim != input.ndim - 1 or other.ndim != input.ndim:
        raise RuntimeError(
            f"ormqr: Expected other to have as many dimensions as input and tau one less, got {other.ndim}, "
            f"{input.ndim} and {tau.ndim}"
        )
    if not input.shape[:-2] == tau.shape[:-1] == other.shape[:-2]:
        raise RuntimeError(
            f"ormqr: Expected input, tau and other to have equal batch shapes, got {list(input.shape)}, "
            f"{list(tau.shape)} and {list(other.shape)}"
        )
    check_matrix("ormqr", other)
    if tau.shape[-1] != min(other.shape[-2 if left else -1], input.shape[-1]):
        raise RuntimeError(
            f"ormqr: tau.shape[-1] must be equal to min(other.shape[{-2 if left else -1}], input.shape[-1]), got "
            f"{list(tau.shape)}, {list(other.shape)} and {list(input.shape)}"
        )
    if other.shape[-2 if left else -1] != input.shape[-2]:
        raise RuntimeError(
            f"ormqr: other.shape[{-2 if left else -1}] must be equal to input.shape[-2], got {list(other.shape)} and "
            f"{list(input.shape)}"
        )
    if left:
        return _reflected(input, tau, other, transpose)
    return mT(_reflected(input, tau, mT(other), not transpose))


export("linalg.householder_product", "orgqr", methods=("orgqr",), function=_householder_product)(
    Matmul
)
export("ormqr", methods=("ormqr",), function=_ormqr)(Matmul)

geqrf_result = results("geqrf", "a", "tau")


class Geqrf(Op):
    """R above, the vectors of the reflections below the diagonal, and their factors."""

    name = "geqrf"

    def forward(self, input: Any) -> Any:
        check_matrix("geqrf", input)
        raw, tau = np.linalg.qr(input, mode="raw")
        return self.xp.ascontiguousarray(np.swapaxes(raw, -1, -2)), tau


def _geqrf(input: Any) -> Any:
    """QR as LAPACK keeps it: (*, m, n) -> (*, m, n), (*, min(m, n)). Has no derivative."""
    return geqrf_result(Geqrf.apply(input))


export("geqrf", methods=("geqrf",), function=_geqrf)(Geqrf)


def _tensorinv(A: Any, ind: int = 2) -> Any:
    """The inverse of `tensordot` by A over its last dimensions: (*left, *right) -> (*right, *left).

    Args:
        A: both groups of dimensions have the same number of elements.
        ind: how many dimensions are on the left.

    Raises:
        RuntimeError: groups that differ in size, or `ind` is not positive.
    """
    if ind <= 0:
        raise RuntimeError("Expected a strictly positive integer for 'ind'")
    if ind > A.ndim:
        raise RuntimeError(
            f"linalg.tensorinv: the input has {A.ndim} dimensions, fewer than ind={ind}"
        )
    left, right = tuple(A.shape[:ind]), tuple(A.shape[ind:])
    n = math.prod(right)
    if math.prod(left) != n:
        raise RuntimeError(
            f"Expected self to satisfy the requirement prod(self.shape[ind:]) == prod(self.shape[:ind]), but got "
            f"{n} != {math.prod(left)}"
        )
    return Reshape.apply(LinalgInvEx.apply(Reshape.apply(A, (n, n))), (*right, *left))


def _tensorsolve(A: Any, B: Any, dims: Any = None) -> Any:
    """X with tensordot(A, X, X.ndim) = B: (*B.shape, *X.shape) with B.

    Args:
        A: as many elements over B's dimensions as over the others.
        B: the right-hand side.
        dims: dimensions of A to move to its end first.

    Raises:
        RuntimeError: numbers of elements that differ.
    """
    if dims is not None:
        last = [wrap_dim(d, A.ndim, "linalg.tensorsolve") for d in dims]
        A = Permute.apply(A, tuple(d for d in range(A.ndim) if d not in last) + tuple(last))
    wanted = tuple(A.shape[B.ndim :])
    n = math.prod(wanted)
    if n * n != A.numel() or n != B.numel():
        raise RuntimeError(
            f"Expected self to satisfy the requirement prod(self.shape[other.ndim:]) == prod(self.shape[:other.ndim]), "
            f"but got {list(A.shape)} with other of shape {list(B.shape)}"
        )
    solution = LinalgSolveEx.apply(Reshape.apply(A, (n, n)), Reshape.apply(B, (n, 1)))
    return Reshape.apply(solution, wanted)


export("linalg.tensorinv", function=_tensorinv)(LinalgInvEx)
export("linalg.tensorsolve", function=_tensorsolve)(LinalgSolveEx)


def _powers(x: Any, N: int | None = None) -> Any:
    """1, x, x^2, ... as columns: (*, n) -> (*, n, N), N = n by default.

    Raises:
        RuntimeError: N is not greater than 1.
    """
    if x.ndim == 0:
        x = Reshape.apply(x, (1,))
    count = x.shape[-1] if N is None else N
    if N is not None and N <= 1:
        raise RuntimeError(f"N must be greater than 1, got {N}")
    if not x.is_floating_point():
        x = x.to(np.dtype(np.int64))
    ones = wrap(namespace_of(x._array).ones((*x.shape, 1), x._array.dtype))
    if count < 2:
        return Narrow.apply(ones, -1, 0, count)
    repeated = x.unsqueeze(-1).expand(*x.shape, count - 1)
    return Cat.apply(ones, repeated.cumprod(-1), dim=-1)


def _vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    """Powers of a vector as columns, the highest first unless `increasing`: (n,) -> (n, N)."""
    if x.ndim != 1:
        raise RuntimeError("x must be a one-dimensional tensor.")
    count = x.shape[0] if N is None else N
    if count < 0:
        raise RuntimeError(f"N must be non-negative, got {count}")
    table = Narrow.apply(_powers(x, max(count, 2)), -1, 0, count)
    return table if increasing else table.flip(-1)


export("linalg.vander", function=_powers)(Cat)
export("vander", function=_vander)(Cat)

qr_result = results("qr", "Q", "R")
svd_result = results("svd", "U", "S", "V")


def _old_qr(input: Any, some: bool = True) -> Any:
    """`linalg.qr`, reduced unless `some` is False."""
    return qr_result(_qr(input, "reduced" if some else "complete"))


def _old_svd(input: Any, some: bool = True, compute_uv: bool = True) -> Any:
    """`linalg.svd` with V in the place of its transpose; zeros for vectors that are not computed."""
    if not compute_uv:
        s = LinalgSvd.apply(input, False)[1]
        m, n = input.shape[-2:]
        xp = namespace_of(input._array)
        none = [xp.zeros((*input.shape[:-2], d, d), input._array.dtype) for d in (m, n)]
        return svd_result((wrap(none[0]), s, wrap(none[1])))
    u, s, vh = _svd(input, not some)
    return svd_result((u, s, mT(vh)))


export("qr", methods=("qr",), function=_old_qr)(LinalgQr)
export("svd", methods=("svd",), function=_old_svd)(LinalgSvd)


def _svd_lowrank(A: Any, q: int | None = 6, niter: int | None = 2, M: Any = None) -> Any:
    """The leading q singular values and vectors of A (of A - M), from products with random vectors.

    Args:
        A: (*, m, n).
        q: how many; a few more than the rank that is asked for.
        niter: iterations that sharpen the vectors.
        M: a mean to take off, of A's shape or broadcast to it.

    Returns:
        U (*, m, q), S (*, q), V (*, n, q).
    """
    q, niter = 6 if q is None else q, 2 if niter is None else niter
    check_matrix("svd_lowrank", A)
    if M is not None:
        A = A - M
    m, n = A.shape[-2:]
    if m < n:
        u, s, v = _svd_lowrank(mT(A), q, niter)
        return v, s, u
    drawn = default_generator().stream().standard_normal((n, q)).astype(A._array.dtype)
    basis = _qr(Matmul.apply(A, wrap(namespace_of(A._array).asarray(drawn))))[0]
    for _ in range(niter):
        basis = _qr(Matmul.apply(mT(A), basis))[0]
        basis = _qr(Matmul.apply(A, basis))[0]
    u, s, vh = _svd(Matmul.apply(mT(basis), A), False)
    return Matmul.apply(basis, u), s, mT(vh)


def _pca_lowrank(A: Any, q: int | None = None, center: bool = True, niter: int = 2) -> Any:
    """Principal components: `svd_lowrank` of A (*, m, n), its columns' means taken off if `center`.

    Raises:
        ValueError: q or niter out of range.
    """
    m, n = A.shape[-2:]
    count = min(6, m, n) if q is None else q
    if not 0 <= count <= min(m, n):
        raise ValueError(
            f"q(={count}) must be non-negative integer and not greater than min(m, n)={min(m, n)}"
        )
    if niter < 0:
        raise ValueError(f"niter(={niter}) must be non-negative integer")
    return _svd_lowrank(A, count, niter, A.mean(-2, keepdim=True) if center else None)


export("svd_lowrank", function=_svd_lowrank)(LinalgSvd)
export("pca_lowrank", function=_pca_lowrank)(LinalgSvd)
