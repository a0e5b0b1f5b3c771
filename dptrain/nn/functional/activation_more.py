"""The activations that core defines under their own names, their in-place forms, and the random ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.callers import level_outside
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.activation import Softmax
from dptrain.core.random import default_generator
from dptrain.core.tensor import Tensor, wrap
from dptrain.nn.functional.activation import given_dim

celu = FUNCTIONS["nn.functional.celu"]
elu = FUNCTIONS["nn.functional.elu"]
gelu = FUNCTIONS["nn.functional.gelu"]
glu = FUNCTIONS["nn.functional.glu"]
hardshrink = FUNCTIONS["nn.functional.hardshrink"]
hardsigmoid = FUNCTIONS["nn.functional.hardsigmoid"]
hardswish = FUNCTIONS["nn.functional.hardswish"]
hardtanh = FUNCTIONS["nn.functional.hardtanh"]
leaky_relu = FUNCTIONS["nn.functional.leaky_relu"]
logsigmoid = FUNCTIONS["nn.functional.logsigmoid"]
mish = FUNCTIONS["nn.functional.mish"]
prelu = FUNCTIONS["nn.functional.prelu"]
relu6 = FUNCTIONS["nn.functional.relu6"]
rrelu = FUNCTIONS["nn.functional.rrelu"]
selu = FUNCTIONS["nn.functional.selu"]
silu = FUNCTIONS["nn.functional.silu"]
softplus = FUNCTIONS["nn.functional.softplus"]
softshrink = FUNCTIONS["nn.functional.softshrink"]
softsign = FUNCTIONS["nn.functional.softsign"]
tanhshrink = FUNCTIONS["nn.functional.tanhshrink"]
threshold = FUNCTIONS["nn.functional.threshold"]


def _changing(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def changing(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return run(input, *args, **kwargs, inplace=True)

    changing.__name__ = changing.__qualname__ = f"{run.__name__.rsplit('.', 1)[-1]}_"
    changing.__doc__ = f"`{run.__name__.rsplit('.', 1)[-1]}` in place."
    return changing


celu_ = _changing(celu)
elu_ = _changing(elu)
hardtanh_ = _changing(hardtanh)
leaky_relu_ = _changing(leaky_relu)
rrelu_ = _changing(rrelu)
selu_ = _changing(selu)
threshold_ = _changing(threshold)


def softmin(
    input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor:
    """softmax(-input) along `dim`; without it, along 0 or 1 with a warning."""
    return Softmax.apply(-input, given_dim("softmin", input, dim), dtype)


def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """Draws from the Gumbel-Softmax distribution. Source: Jang et al., 2016; Maddison et al., 2016.

    Args:
        logits: unnormalised log-probabilities of any shape.
        tau: temperature > 0.
        hard: one-hot results, with the gradient of the soft ones.
        eps: without effect, as in PyTorch.
        dim: the dimension along which the results sum to 1.
    """
    if eps != 1e-10:
        warnings.warn(
            "`eps` parameter is deprecated and has no effect.", stacklevel=level_outside()
        )
    draws = default_generator().stream().standard_exponential(logits.shape)
    # standard_exponential may draw 0 with probability 2^-53: keep the logarithm finite.
    noise = -np.log(np.maximum(draws, np.finfo(np.float64).tiny))
    added = namespace_of(logits._array).asarray(noise.astype(logits._array.dtype))
    soft = Softmax.apply((logits + wrap(added)) / tau, dim)
    if not hard:
        return soft
    values = soft._array
    one_hot = np.zeros_like(values)
    chosen = values.argmax(axis=dim, keepdims=True)
    np.put_along_axis(one_hot, chosen, values.dtype.type(1), axis=dim)
    return wrap(one_hot) - soft.detach() + soft
