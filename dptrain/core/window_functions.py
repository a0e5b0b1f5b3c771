"""Windows of signal processing: `hann_window` and its family.

Source: Oppenheim and Schafer, "Discrete-Time Signal Processing", 7.5.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arguments import guarded
from dptrain.core.factory import finish, numpy_type
from dptrain.core.ops.special_bessel import bessel_i
from dptrain.core.tensor import Tensor


def _window(
    name: str, length: int, periodic: bool, shape: Any, dtype: Any, device: Any, grad: bool
) -> Tensor:
    """`shape` of the angle (0 to 2 pi); a periodic window is one longer, with its end left off."""
    kind = numpy_type(dtype)
    if kind.kind in "biu":
        raise RuntimeError(f"{name} expects floating point dtypes, got: {kind}")
    if length < 0:
        raise RuntimeError(
            f"{name} requires non-negative window_length, got window_length={length}"
        )
    if length < 2:
        return finish(np.ones(length, kind), device, grad)
    angle = np.arange(length) * (2 * np.pi / (length if periodic else length - 1))
    return finish(np.asarray(shape(angle)).astype(kind), device, grad)


@guarded
def hann_window(
    window_length: int,
    periodic: bool = True,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """(1 - cos) / 2: a raised cosine that ends in 0."""
    return _window(
        "hann_window",
        window_length,
        periodic,
        lambda a: 0.5 - 0.5 * np.cos(a),
        dtype,
        device,
        requires_grad,
    )


@guarded
def hamming_window(
    window_length: int,
    periodic: bool = True,
    alpha: float = 0.54,
    beta: float = 0.46,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """alpha - beta cos: a raised cosine on a pedestal."""
    return _window(
        "hamming_window",
        window_length,
        periodic,
        lambda a: alpha - beta * np.cos(a),
        dtype,
        device,
        requires_grad,
    )


@guarded
def blackman_window(
    window_length: int,
    periodic: bool = True,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """0.42 - 0.5 cos + 0.08 cos of twice the angle, never negative."""

    def shape(a: Any) -> Any:
        return np.maximum(0.42 - 0.5 * np.cos(a) + 0.08 * np.cos(2 * a), 0)

    return _window("blackman_window", window_length, periodic, shape, dtype, device, requires_grad)


@guarded
def bartlett_window(
    window_length: int,
    periodic: bool = True,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A triangle."""
    return _window(
        "bartlett_window",
        window_length,
        periodic,
        lambda a: 1 - np.abs(a / np.pi - 1),
        dtype,
        device,
        requires_grad,
    )


@guarded
def kaiser_window(
    window_length: int,
    periodic: bool = True,
    beta: float = 12.0,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """I0(beta * sqrt(1 - t^2)) / I0(beta) for t from -1 to 1."""

    def shape(a: Any) -> Any:
        t = a / np.pi - 1
        inner = beta * np.sqrt(np.maximum(1 - t * t, 0))
        return bessel_i(0, inner) / bessel_i(0, np.asarray(beta))

    return _window("kaiser_window", window_length, periodic, shape, dtype, device, requires_grad)
