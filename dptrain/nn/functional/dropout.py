"""Dropping elements, channels or activations at random."""

from __future__ import annotations

import numpy as np

from dptrain.core.ops.activation import Dropout
from dptrain.core.random import DROPOUT, default_generator
from dptrain.core.tensor import Tensor, wrap

#: The value that SELU tends to for large negative inputs: -lambda * alpha (Klambauer et al., 2017).
_SATURATED = -1.7580993408473766


def _check(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def _store(input: Tensor, result: Tensor, name: str, inplace: bool) -> Tensor:
    if not inplace:
        return result
    input._check_inplace(name)
    input._assign_result(result, name)
    return input


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability `p` and scale the rest by 1 / (1 - p).

    The masks come from the dropout stream of the default generator (one per rank), apart from all
    other draws.

    Args:
        input: values of any shape.
        p: probability of an element to be zeroed.
        training: if False, the input is returned as it is.
        inplace: change `input` itself.

    Raises:
        ValueError: `p` is outside [0, 1].
    """
    _check(p)
    if not training or p == 0 or input.numel() == 0:
        return input
    return _store(input, Dropout.apply(input, p), "dropout_", inplace)


def _channels(op: str, input: Tensor, rank: int) -> tuple[int, ...]:
    """The shape of a mask with one value per channel."""
    if input.ndim not in (rank + 1, rank + 2):
        raise RuntimeError(
            f"{op}: Expected {rank + 1}D or {rank + 2}D input, but received a {input.ndim}D input of shape "
            f"{list(input.shape)}"
        )
    return (*input.shape[:-rank], *(1,) * rank)


def _feature_dropout(
    rank: int, input: Tensor, p: float, training: bool, inplace: bool, mask_shape: tuple[int, ...]
) -> Tensor:
    if not training or p == 0 or input.numel() == 0:
        return input
    result = Dropout.apply(input, p, tuple(int(s) for s in mask_shape))
    return _store(input, result, f"dropout{rank}d_", inplace)


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """`dropout` of whole channels: (N, C, L) or (C, L)."""
    _check(p)
    shape = _channels("dropout1d", input, 1)
    return _feature_dropout(1, input, p, training, inplace, shape)


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """`dropout` of whole channels: (N, C, H, W).

    A tensor of three dimensions is taken as (N, C, L), as in PyTorch.
    """
    _check(p)
    shape = _channels("dropout2d", input, 2)
    if input.ndim == 3:
        shape = (*input.shape[:2], 1)
    return _feature_dropout(2, input, p, training, inplace, shape)


def dropout3d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """`dropout` of whole channels: (N, C, D, H, W) or (C, D, H, W)."""
    _check(p)
    shape = _channels("dropout3d", input, 3)
    return _feature_dropout(3, input, p, training, inplace, shape)


def _alpha(input: Tensor, p: float, mask_shape: tuple[int, ...]) -> Tensor:
    if p == 1:
        return input * 0
    kept = default_generator().uniform_beside(input._array, mask_shape, DROPOUT) >= p
    # Factor and shift that keep mean and variance; Klambauer et al., "Self-normalizing neural
    # networks", 2017, section 3.
    scale = ((1 - p) * (1 + p * _SATURATED**2)) ** -0.5
    shift = -scale * p * _SATURATED
    kind = input._array.dtype
    factor = wrap((kept * scale).astype(kind))
    summand = wrap((np.where(kept, 0, _SATURATED * scale) + shift).astype(kind))
    return input * factor + summand


def alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """Set each element to SELU's negative limit with probability `p`, keeping mean and variance.

    Raises:
        ValueError: `p` is outside [0, 1].
    """
    _check(p)
    if not training or p == 0 or input.numel() == 0:
        return input
    return _store(input, _alpha(input, p, tuple(input.shape)), "alpha_dropout_", inplace)


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """`alpha_dropout` of whole channels: (N, C, ...).

    Raises:
        ValueError: `p` is outside [0, 1].
        RuntimeError: fewer than two dimensions.
    """
    _check(p)
    if not training or p == 0 or input.numel() == 0:
        return input
    if input.ndim < 2:
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")
    shape = (*input.shape[:2], *(1,) * (input.ndim - 2))
    return _store(input, _alpha(input, p, shape), "feature_alpha_dropout_", inplace)
