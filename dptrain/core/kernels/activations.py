"""Activations element by element, and their gradients: one pass each, on the threads of `pool`."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np

from dptrain.core.kernels import curves, pool, reference, reference_activations
from dptrain.core.kernels.compiled import KEEP_NAN, kernel, whole_registers
from dptrain.core.kernels.dense import dense, lying_as
from dptrain.core.kernels.memory import address, addresses, array_at

real: Any = None  # each compiled copy has its own
curve: Any = None  # likewise
slope: Any = None

#: Elements from which a copy without gaps is better than NumPy's several passes.
_WORTH_A_COPY = 1 << 10

#: An activation costs about as much as moving so many numbers.
_COST = 6


@kernel(fastmath=KEEP_NAN)
def _map(args, share, shares, worker):
    whole_registers()
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    first = share * args[0] // shares * args[1]  # bytes
    x, to = array_at(args[2] + first, (size,), real), array_at(args[3] + first, (size,), real)
    parameters = array_at(args[4], (2,), real)
    p, q = parameters[0], parameters[1]
    for k in range(size):
        to[k] = curve(x[k], p, q)


@kernel(fastmath=KEEP_NAN)
def _map_grad(args, share, shares, worker):
    whole_registers()
    size = (share + 1) * args[0] // shares - share * args[0] // shares
    first = share * args[0] // shares * args[1]  # bytes
    grad = array_at(args[2] + first, (size,), real)
    kept, to = array_at(args[3] + first, (size,), real), array_at(args[4] + first, (size,), real)
    parameters = array_at(args[5], (2,), real)
    p, q = parameters[0], parameters[1]
    for k in range(size):
        to[k] = grad[k] * slope(kept[k], p, q)


# Made by functions that keep what they make, so that a recording of drivers does not look into the compiling.
@cache
def _curve_code(name: str, real: Any) -> int:
    return _map.address(real, name, curve=curves.curve(name, real))


@cache
def _slope_code(name: str, real: Any) -> int:
    return _map_grad.address(real, name, slope=curves.slope(name, real))


@lru_cache(256)
def _held(parameters: tuple[float, ...], kind: np.dtype[Any]) -> np.ndarray:
    """Where kernels find the parameters of a curve."""
    held = np.zeros(2, kind)
    held[: len(parameters)] = parameters
    return held


def _run(code: int, parameters: tuple[float, ...], *arrays: np.ndarray) -> None:
    x = arrays[0]
    held = _held(parameters, x.dtype)
    args = (x.size, x.itemsize, *addresses(arrays), address(held))
    pool.run(code, args, pool.shares(x.size, _COST * x.nbytes))


def _without_gaps(x: np.ndarray) -> np.ndarray:
    """A dense copy of a part of something, such as one of several gates beside each other."""
    return x if dense(x) else np.array(x, order="K")


def activation(name: str, x: np.ndarray, *parameters: float) -> np.ndarray:
    """See `reference_activations.activation`."""
    if not x.size or isinstance(x, np.generic):
        return reference_activations.activation(name, x, *parameters)
    x = _without_gaps(x)
    real: Any = x.dtype.type
    out = np.empty_like(x)
    _run(_curve_code(name, real), parameters, x, out)
    return out


def activation_grad(
    name: str, grad: np.ndarray, kept: np.ndarray, *parameters: float
) -> np.ndarray:
    """See `reference_activations.activation_grad`."""
    unlike = grad.dtype != kept.dtype or grad.shape != kept.shape
    if unlike or not kept.size or isinstance(kept, np.generic):
        return reference_activations.activation_grad(name, grad, kept, *parameters)
    kept = _without_gaps(kept)
    real: Any = grad.dtype.type
    out = np.empty_like(kept)
    _run(_slope_code(name, real), parameters, lying_as(kept, grad), kept, out)
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    """See `reference.gelu`."""
    served = dense(x) or x.size >= _WORTH_A_COPY
    return activation("gelu", x) if served else reference.gelu(x)


def gelu_grad(grad: np.ndarray, x: np.ndarray) -> np.ndarray:
    """See `reference.gelu_grad`."""
    if grad.dtype != x.dtype or grad.shape != x.shape or not dense(x):
        return reference.gelu_grad(grad, x)
    return activation_grad("gelu", grad, x)
