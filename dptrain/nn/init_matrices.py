"""Initial values that are more than independent draws without bounds: `dptrain.nn.init` has them all.

Owns: truncated draws, and values by position (identity, Dirac, orthogonal, sparse). Must not know:
modules.

Sources: Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural
networks", 2014 (orthogonal); Martens, "Deep learning via Hessian-free optimization", 2010 (sparse).
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.callers import level_outside
from dptrain.core.device import host_device
from dptrain.core.random import Generator
from dptrain.core.random_tensors import randperm
from dptrain.core.tensor import Tensor, wrap


def _fill(tensor: Tensor, values: np.ndarray) -> Tensor:
    np.copyto(tensor._array, namespace_of(tensor._array).asarray(values), casting="unsafe")
    tensor._bump_version()
    return tensor


def _need(tensor: Tensor, name: str, dims: tuple[int, ...], words: str) -> None:
    if tensor.dim() not in dims:
        raise ValueError(
            f"Only tensors with {words} dimensions are supported; {name} got shape {list(tensor.shape)}"
        )


def _need_floats(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point():
        raise NotImplementedError(f"{name}: not implemented for {tensor.dtype}")


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fill from the normal distribution, limited to [a, b]: what falls outside is drawn anew.

    Args:
        tensor: what is filled.
        mean: of the distribution before it is cut.
        std: likewise.
        a: the smallest value.
        b: the largest value.
        generator: where the draws come from; the default generator if None.

    Raises:
        ValueError: a > b, or a standard deviation that is not positive.
    """
    _need_floats(tensor, "trunc_normal_")
    if not a <= b or not std > 0:
        raise ValueError(
            f"trunc_normal_ expects a <= b and std > 0, but got a={a}, b={b}, std={std}"
        )
    if mean < a - 2 * std or mean > b + 2 * std:
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. "
            "The distribution of values may be incorrect.",
            stacklevel=level_outside(),
        )
    below_b, below_a = ((1.0 + math.erf((x - mean) / std / math.sqrt(2.0))) / 2 for x in (b, a))
    common = below_b - below_a > 0.3
    # The largest density within the bounds: what a uniform draw there is measured against.
    peak = -0.5 * ((max(a, min(mean, b)) - mean) / std) ** 2
    values = np.empty(tensor._array.shape)
    missing = np.ones(values.shape, dtype=bool)
    low, high = (float(tensor._array.dtype.type(x)) for x in (a, b))
    while missing.any():
        draws = wrap(np.empty_like(values))
        if common:
            draws.normal_(mean, std, generator=generator)
            kept = (draws._array >= low) & (draws._array <= high)
        else:
            draws.uniform_(a, b, generator=generator)
            chance = wrap(np.empty_like(values)).uniform_(generator=generator)._array
            kept = chance < np.exp(-0.5 * ((draws._array - mean) / std) ** 2 - peak)
        values[missing & kept] = draws._array[missing & kept]
        missing &= ~kept
    return _fill(tensor, values)


def eye_(tensor: Tensor) -> Tensor:
    """Fill a matrix with 1 on the diagonal and 0 elsewhere.

    Raises:
        ValueError: no matrix.
    """
    _need(tensor, "eye_", (2,), "2")
    return _fill(tensor, np.eye(*tensor.shape))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Fill the weight of a convolution so that it hands on as many channels as it can.

    Args:
        tensor: (out, in, *kernel) with one to three kernel dimensions.
        groups: each group of outputs hands on its own inputs.

    Raises:
        ValueError: another number of dimensions, or outputs that `groups` does not divide.
    """
    _need(tensor, "dirac_", (3, 4, 5), "3, 4, or 5")
    out, channels, *kernel = tensor.shape
    if groups <= 0 or out % groups != 0:
        raise ValueError(f"dim 0 must be divisible by groups, but got {out} and groups={groups}")
    values = np.zeros(tensor.shape)
    centre = tuple(k // 2 for k in kernel)
    for start in range(0, out, out // groups):
        for i in range(min(out // groups, channels)):
            values[(start + i, i, *centre)] = 1
    return _fill(tensor, values)


def orthogonal_(tensor: Tensor, gain: float = 1, generator: Generator | None = None) -> Tensor:
    """Fill with a random (semi) orthogonal matrix, dimensions after the first taken together.

    Args:
        tensor: two or more dimensions.
        gain: factor of the values.
        generator: where the draws come from; the default generator if None.

    Raises:
        ValueError: fewer than two dimensions.
    """
    if tensor.dim() < 2:
        raise ValueError(
            f"Only tensors with 2 or more dimensions are supported; orthogonal_ got shape {list(tensor.shape)}"
        )
    _need_floats(tensor, "orthogonal_")
    if not tensor.numel():
        return tensor
    rows = tensor.shape[0]
    draws = wrap(np.empty((rows, tensor.numel() // rows)))
    matrix = draws.normal_(0, 1, generator=generator)._array
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = np.linalg.qr(matrix.T if wide else matrix)
    # With the signs of the diagonal, the result is uniformly distributed (Mezzadri, 2007).
    q = q * np.sign(np.diagonal(r))
    return _fill(tensor, gain * (q.T if wide else q).reshape(tensor.shape))


def sparse_(
    tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator | None = None
) -> Tensor:
    """Fill from N(0, std) and set a part of every column to 0.

    Args:
        tensor: a matrix.
        sparsity: the part of each column, in [0, 1].
        std: standard deviation of the rest.
        generator: where the draws come from; the default generator if None.

    Raises:
        ValueError: no matrix, or a part outside [0, 1].
    """
    _need(tensor, "sparse_", (2,), "2")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be between 0 and 1, but got {sparsity}")
    rows, columns = tensor.shape
    values = wrap(np.empty((rows, columns))).normal_(0, std, generator=generator)._array
    for column in range(columns):
        order = randperm(rows, generator=generator, device=host_device(0))._array
        values[order[: math.ceil(sparsity * rows)], column] = 0
    return _fill(tensor, values)
