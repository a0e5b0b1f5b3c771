"""Orthogonal matrices as functions of free ones: the parametrization `orthogonal`.

Owns: the three maps onto orthogonal matrices, composed of operations, so that they have derivatives.

Sources: Lezcano-Casado & Martinez-Rubio, "Cheap orthogonal constraints in neural networks", 2019
(matrix exponential, Cayley map); Lezcano-Casado, "Trivializations for gradient-based optimization on
manifolds", 2019.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from dptrain.core.arrays import greatest, namespace_of
from dptrain.core.export import FUNCTIONS
from dptrain.core.failures import telling
from dptrain.core.grad_mode import no_grad
from dptrain.core.op import Op
from dptrain.core.random import default_generator
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.module import Module
from dptrain.nn.utils.parametrize import register_parametrization

_M = TypeVar("_M", bound=Module)
_MAPS = ("matrix_exp", "cayley", "householder")


class _Inverse(Op):
    """Inverses of matrices that have one: d(M^-1) = -M^-1 dM M^-1."""

    def forward(self, input: Any) -> Any:
        return np.linalg.inv(input)

    def backward(self, grad: Any, out: Any) -> Any:
        flipped = out.swapaxes(-1, -2)
        return -(flipped @ grad @ flipped)


def _constant(values: np.ndarray, like: Tensor) -> Tensor:
    return wrap(namespace_of(like._array).asarray(values.astype(like._array.dtype)))


def _matrix_exp(a: Tensor) -> Tensor:
    """The exponential of matrices, by a Taylor series of a part and repeated squaring."""
    size = float(greatest(np.abs(a._array).sum(axis=-1)))
    squarings = max(0, math.ceil(math.log2(size)) + 1) if 0 < size < math.inf else 0
    part = a / 2.0**squarings
    unit = _constant(np.eye(a.shape[-1]), a)
    # Horner's scheme; the part is at most 1/2, so that 18 terms leave nothing to double precision.
    result = unit + part / 18
    for k in range(17, 0, -1):
        result = unit + (part @ result) / k
    for _ in range(squarings):
        result = result @ result
    return result


def _cayley(a: Tensor) -> Tensor:
    unit = _constant(np.eye(a.shape[-1]), a)
    inverse: Tensor = _Inverse.apply(unit - a * 0.5)
    return inverse @ (unit + a * 0.5)


def _reflections(x: Tensor) -> Tensor:
    """The first columns of the product of the reflections whose directions are below the diagonal."""
    rows, columns = x.shape[-2:]
    below = x * _constant(np.tril(np.ones((rows, columns)), -1), x)
    tau = 2.0 / (1.0 + (below * below).sum(-2, keepdim=True))
    unit = _constant(np.eye(rows, columns), x)
    directions = below + unit
    q: Tensor = unit
    for i in reversed(range(columns)):
        v = directions[..., i : i + 1]
        q = q - tau[..., i : i + 1] * (v @ (v.transpose(-2, -1) @ q))
    return q


def _flipped(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


def _orthogonal_basis(a: np.ndarray) -> np.ndarray:
    """The Q of the QR decomposition whose R has a positive diagonal."""
    q, r = np.linalg.qr(a)
    return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


class _Orthogonal(Module):
    base: Any

    def __init__(self, weight: Tensor, orthogonal_map: str, *, use_trivialization: bool) -> None:
        super().__init__()
        self.shape = weight.shape
        self.orthogonal_map = orthogonal_map
        self.use_trivialization = use_trivialization
        if use_trivialization:
            self.register_buffer("base", None)

    def forward(self, X: Tensor) -> Tensor:
        """The orthogonal matrix that belongs to X, of its shape."""
        wide = X.shape[-2] < X.shape[-1]
        x = X.transpose(-2, -1) if wide else X
        n, k = x.shape[-2:]
        if self.orthogonal_map == "householder":
            signs = np.trunc(np.diagonal(x._array, axis1=-2, axis2=-1))[..., None, :]
            q = _reflections(x) * _constant(signs, x)
        else:
            x = x * _constant(np.tril(np.ones((n, k))), x)
            if n != k:
                x = FUNCTIONS["cat"]([x, _constant(np.zeros((*x.shape[:-1], n - k)), x)], dim=-1)
            skew = x - x.transpose(-2, -1)
            q = _matrix_exp(skew) if self.orthogonal_map == "matrix_exp" else _cayley(skew)
            if n != k:
                q = q[..., :k]
        if self.use_trivialization:
            q = self.base @ q
        return q.transpose(-2, -1) if wide else q

    @no_grad()
    def right_inverse(self, Q: Tensor) -> Tensor:
        """The X of the orthogonal matrix (nearest to) Q."""
        if Q.shape != self.shape:
            raise ValueError(
                f"Expected a matrix or batch of matrices of shape {self.shape}. "
                f"Got a tensor of shape {Q.shape}."
            )
        wide = Q.shape[-2] < Q.shape[-1]
        q = _flipped(Q._array) if wide else Q._array
        n, k = q.shape[-2:]
        xp = namespace_of(q)
        if self.use_trivialization:
            if n != k:
                more = xp.empty((*q.shape[:-1], n - k), q.dtype)
                wrap(more).normal_(0, 1, generator=default_generator())
                q = np.concatenate([q, more], axis=-1)
            self.base = wrap(xp.ascontiguousarray(_orthogonal_basis(q)))
            # The maps take it (below, minus the identity) to the identity: Q is the base itself.
            x = xp.zeros(Q.shape, q.dtype)
            diagonal = xp.arange(min(n, k))
            x[..., diagonal, diagonal] = -1
            return wrap(x)
        if self.orthogonal_map != "householder":
            raise NotImplementedError(
                "It is not possible to assign to the matrix exponential or the Cayley parametrizations when "
                "use_trivialization=False."
            )
        raw, tau = np.linalg.qr(q, mode="raw")
        a = _flipped(raw).copy(order="K")
        diagonal = xp.arange(k)
        signs = np.sign(a[..., diagonal, diagonal])
        a[..., diagonal, diagonal] = np.where(tau == 0, -signs, signs)
        return wrap(xp.ascontiguousarray(_flipped(a) if wide else a))


@telling
def orthogonal(
    module: _M,
    name: str = "weight",
    orthogonal_map: str | None = None,
    *,
    use_trivialization: bool = True,
) -> _M:
    """Let a matrix stay orthogonal (its rows or columns orthonormal, where it is not square).

    Args:
        module: that has the parameter or buffer; of more than two dimensions the last two count.
        name: of the tensor.
        orthogonal_map: "matrix_exp", "cayley" or "householder"; None: the first for square matrices,
            the last for others.
        use_trivialization: keep the matrix that was assigned last as a buffer `base`, and map onto its
            neighbourhood. Needed to assign with the first two maps.

    Raises:
        ValueError: there is no such tensor, it is no matrix, or an unknown map.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if weight.ndim < 2:
        raise ValueError(
            f"Expected a matrix or batch of matrices. Got a tensor of {weight.ndim} dimensions."
        )
    if orthogonal_map is None:
        orthogonal_map = "matrix_exp" if weight.shape[-2] == weight.shape[-1] else "householder"
    if orthogonal_map not in _MAPS:
        raise ValueError(
            'orthogonal_map has to be one of "matrix_exp", "cayley", "householder". '
            f"Got: {orthogonal_map}"
        )
    part = _Orthogonal(weight, orthogonal_map, use_trivialization=use_trivialization)
    register_parametrization(module, name, part, unsafe=True)
    return module
