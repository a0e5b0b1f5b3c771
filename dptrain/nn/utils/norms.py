"""The mathematics of weight and spectral normalisation, for both of their interfaces.

Sources: Salimans & Kingma, "Weight normalization", 2016; Miyato et al., "Spectral normalization for
generative adversarial networks", 2018.
"""

from __future__ import annotations

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.module import Module


def norm_except_dim(v: Tensor, dim: int) -> Tensor:
    """The 2-norms over all dimensions but one, which are kept with size 1; over all for dim = -1."""
    if dim == -1:
        return (v * v).sum().sqrt()
    if not isinstance(dim, int):
        raise TypeError(f"weight_norm(): argument 'dim' must be int, not {type(dim).__name__}")
    if not -v.ndim <= dim < v.ndim:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [-{v.ndim}, {v.ndim - 1}], but got {dim})"
        )
    dim %= v.ndim
    dims = tuple(d for d in range(v.ndim) if d != dim)
    return (v * v).sum(dims, keepdim=True).sqrt() if dims else v.abs()


def weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
    """v with the norms g."""
    return v * (g / norm_except_dim(v, dim))


def as_matrix(weight: Tensor, dim: int) -> Tensor:
    """The weight with `dim` in front and the others together."""
    if dim != 0:
        weight = weight.permute(dim, *(d for d in range(weight.ndim) if d != dim))
    return weight.reshape(weight.shape[0], -1)


def normalized(values: np.ndarray, eps: float) -> np.ndarray:
    """A vector of length 1, or shorter where it is shorter than eps."""
    return values / values.dtype.type(max(float(np.linalg.norm(values)), eps))


def random_direction(like: Tensor, size: int, eps: float) -> Tensor:
    """A random vector of length 1, of the type of `like`."""
    draws = wrap(namespace_of(like._array).empty(size, like._array.dtype)).normal_(0, 1)
    return wrap(normalized(draws._array, eps))


def power_iteration(
    matrix: Tensor, u: Tensor, v: Tensor, iterations: int, eps: float, *, u_first: bool
) -> None:
    """Turn u and v, in place, towards the singular vectors of the largest singular value.

    Both interfaces of PyTorch start with another of the two.
    """
    m = matrix._array
    for _ in range(iterations):
        if u_first:
            u._array[...] = normalized(m @ v._array, eps)
        v._array[...] = normalized(m.T @ u._array, eps)
        if not u_first:
            u._array[...] = normalized(m @ v._array, eps)
    u._bump_version()
    v._bump_version()


def spectral_norm(matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """u' M v, of copies: the vectors change in the next forward, before backward may need them."""
    return u.clone() @ (matrix @ v.clone())


def output_dim(module: Module) -> int:
    """The dimension of the weight that counts outputs."""
    return 1 if any(c.__name__.startswith("ConvTranspose") for c in type(module).__mro__) else 0
