"""The definition of the activations and of their gradients in plain NumPy, for arrays of any library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of

_CUBIC, _OUTER = 0.044715, math.sqrt(2 / math.pi)


def _sigmoid(xp: Any, x: Any) -> Any:
    decay = xp.exp(-xp.abs(x))  # in (0, 1] whatever the sign
    return xp.where(x >= 0, 1, decay) / (1 + decay)


def _log1p_exp(xp: Any, x: Any) -> Any:
    """log(1 + exp(x)) without overflow; several times faster than logaddexp."""
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def _inner(x: Any) -> Any:
    return x * (1 + _CUBIC * x * x) * _OUTER


def activation(name: str, x: Any, *parameters: float) -> Any:
    """An activation of every element, in the type of `x`.

    Args:
        name: "sigmoid", "tanh", "silu", "gelu_tanh", "softplus" (beta, threshold), "logsigmoid", "mish",
            "elu" (alpha, scale), "leaky_relu" (negative slope) or "hardswish".
        x: float32 or float64 where it matters; any floating type.
        *parameters: those in brackets.
    """
    xp = namespace_of(x)
    p, q = (*parameters, 0, 0)[:2]
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        match name:
            case "sigmoid":
                out = _sigmoid(xp, x)
            case "tanh":
                out = xp.tanh(x)
            case "silu":
                out = x * _sigmoid(xp, x)
            case "gelu_tanh":
                out = x * (xp.tanh(_inner(x)) * 0.5 + 0.5)
            case "softplus":
                scaled = x * p
                out = xp.where(scaled > q, x, _log1p_exp(xp, scaled) / p)
            case "logsigmoid":
                out = -_log1p_exp(xp, -x)
            case "mish":
                out = x * xp.tanh(_log1p_exp(xp, x))
            case "elu":
                out = xp.where(x > 0, x * q, xp.expm1(xp.minimum(x, 0)) * (p * q))
            case "leaky_relu":
                out = xp.where(x > 0, x, x * x.dtype.type(p))
            case "hardswish":
                kind = x.dtype.type
                out = x * xp.clip(x + kind(3), kind(0), kind(6)) / kind(6)
            case _:
                raise ValueError(f"no activation is called {name!r}")
    return out.astype(x.dtype, copy=False)


def activation_grad(name: str, grad: Any, kept: Any, *parameters: float) -> Any:
    """`grad` times the slope of an activation.

    Args:
        name, parameters: as of `activation`.
        grad: the gradient of the result.
        kept: the result of "sigmoid" and "tanh", the input of all others.
    """
    xp = namespace_of(kept)
    p, q = (*parameters, 0, 0)[:2]
    x = y = kept
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        match name:
            case "sigmoid":
                slope = y * (1 - y)
            case "tanh":
                slope = 1 - y * y
            case "silu":
                s = _sigmoid(xp, x)
                slope = s * (x * (1 - s) + 1)
            case "gelu_tanh":
                s = xp.tanh(_inner(x)) * 0.5 + 0.5
                slope = s + x * (s * (1 - s)) * ((x * x * (3 * _CUBIC) + 1) * (2 * _OUTER))
            case "softplus":
                slope = xp.where(x * p > q, 1, _sigmoid(xp, x * p))
            case "logsigmoid":
                slope = _sigmoid(xp, -x)
            case "mish":
                t = xp.tanh(_log1p_exp(xp, x))
                slope = t + x * _sigmoid(xp, x) * (1 - t * t)
            case "elu":
                slope = xp.where(x > 0, q, xp.exp(xp.minimum(x, 0)) * (p * q))
            case "leaky_relu":
                slope = xp.where(x > 0, 1, p)
            case "hardswish":
                inside = (x > -3) & (x < 3)
                slope = xp.where(inside, x / 3 + 0.5, xp.clip(x / 6 + 0.5, 0, 1))
            case _:
                raise ValueError(f"no activation is called {name!r}")
        return (grad * slope).astype(grad.dtype, copy=False)


def clip(x: Any, low: float, high: float) -> tuple[Any, Any]:
    """min(max(x, low), high), and where x lies between the two as a boolean; what is no number stays."""
    xp, low, high = namespace_of(x), x.dtype.type(low), x.dtype.type(high)
    inside = xp.asarray((x > low) & (x < high))  # NumPy makes a number of one without dimensions
    return xp.clip(x, low, high).astype(x.dtype, copy=False), inside


def pass_where(grad: Any, passes: Any, scale: float = 1) -> Any:
    """`grad` * scale where `passes` (boolean), 0 elsewhere, whatever the gradient is there."""
    scaled = grad if scale == 1 else grad * grad.dtype.type(scale)
    return namespace_of(grad).where(passes, scaled, grad.dtype.type(0))


def prelu(x: Any, weight: Any) -> Any:
    """x where positive, else weight * x; the weight broadcasts."""
    return namespace_of(x).where(x > 0, x, weight * x)


def prelu_grad(grad: Any, x: Any, weight: Any) -> tuple[Any, Any]:
    """The gradients of `prelu`'s input and weight, the latter of the weight's shape, which has as many dimensions."""
    xp, positive = namespace_of(x), x > 0
    over = tuple(d for d, n in enumerate(weight.shape) if n == 1)
    d_weight = xp.where(positive, x.dtype.type(0), grad * x).sum(axis=over, keepdims=True)
    return xp.where(positive, grad, grad * weight), d_weight.reshape(weight.shape)


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0); NaN stays NaN."""
    return np.maximum(x, 0)


def relu_grad(grad: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`grad` where the result of the ReLU is not (below or equal to) 0; there, 0 whatever it is."""
    return np.where(out <= 0, grad.dtype.type(0), grad)
