"""Passes element by element in plain NumPy, which a GPU makes in one each. Part of the definition in `reference`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.half import computed_in


def add(x: np.ndarray, y: np.ndarray, alpha: float = 1) -> np.ndarray:
    """x + alpha * y; 16-bit types are computed in float32 and rounded once. One may be of 16 bits beside float32."""
    if alpha == 1:  # rounded once in any type
        return np.add(x, y)
    wide = computed_in(y.dtype)
    scaled = y.astype(wide, copy=False) * wide.type(alpha)
    out = x.astype(computed_in(x.dtype), copy=False) + scaled
    return out.astype(x.dtype, copy=False) if x.dtype == y.dtype else out


def multiply(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x * y."""
    return np.multiply(x, y)


def convert(x: np.ndarray, kind: np.dtype[Any], out: np.ndarray | None = None) -> np.ndarray:
    """A copy in another element type that lies in memory as `x` does; in `out` if it is given."""
    if out is None:
        return x.astype(kind)
    out[...] = x
    return out


def assign(out: np.ndarray, x: np.ndarray) -> None:
    """Put the values of `x` into `out`, of one shape and type."""
    out[...] = x


def dropout(x: np.ndarray, draws: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """Elements whose number drawn (float32, in [0, 1)) is not below p, times 1 / (1 - p); zero for the others.

    Returns:
        The result, and as uint8 what was kept.
    """
    kept = (draws >= np.float32(p)).astype(np.uint8)
    return keep(x, kept, 1 / (1 - p)), kept


def keep(x: np.ndarray, kept: np.ndarray, scale: float) -> np.ndarray:
    """The elements of `x` where `kept` (uint8) is not 0, times `scale`; zero for the others."""
    wide = computed_in(x.dtype)
    return (x.astype(wide, copy=False) * (kept.astype(wide) * wide.type(scale))).astype(x.dtype)


def follow(
    running_mean: np.ndarray,
    running_var: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    momentum: float,
    correction: float,
) -> None:
    """Running averages follow the statistics of a batch, in place.

    Args:
        running_mean, running_var: (C,).
        mean, var: C numbers each.
        momentum: share of the batch.
        correction: factor of its variance (Bessel's).
    """
    for held, value in ((running_mean, mean), (running_var, var * correction)):
        held[...] = (1 - momentum) * held + momentum * value.reshape(held.shape).astype(held.dtype)
