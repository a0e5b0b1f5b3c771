"""What distributions do with their arguments: numbers become tensors, shapes are brought together.

Owns: `broadcast_all`, `number_or_tensor_shape`, logits and probabilities of each other. Must not know: any distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import numpy as np

from dptrain.core.creation import tensor
from dptrain.core.dtypes import get_default_dtype
from dptrain.core.export import FUNCTIONS
from dptrain.core.grad_mode import enable_grad
from dptrain.core.size import Size
from dptrain.core.tensor import Tensor
from dptrain.core.typed import finfo

Number = (int, float, bool, np.number)

#: Shapes as users give them.
Shape = Any


def broadcast_all(*values: Any) -> tuple[Tensor, ...]:
    """Tensors of one shape; numbers take the type of the first tensor, or the default type.

    Raises:
        ValueError: something that is neither.
    """
    if not all(isinstance(v, (Tensor, *Number)) for v in values):
        raise ValueError(
            "Input arguments must all be instances of Number, torch.Tensor or objects implementing __torch_function__; got "
            f"{[type(v).__name__ for v in values]}"
        )
    like = next((v for v in values if isinstance(v, Tensor)), None)
    kind = get_default_dtype() if like is None else like.dtype
    place = None if like is None else like.device
    tensors = [v if isinstance(v, Tensor) else tensor(v, dtype=kind, device=place) for v in values]
    if len({t._array.shape for t in tensors}) == 1:
        return tuple(tensors)
    return tuple(FUNCTIONS["broadcast_tensors"](*tensors))


def are_numbers(*values: Any) -> bool:
    """Whether all of them are plain numbers, so that the distribution is of one number."""
    return all(isinstance(v, Number) for v in values)


def shape_of(first: Tensor, *numbers: Any) -> Size:
    """The batch shape of a distribution whose arguments were `numbers`."""
    return Size() if are_numbers(*numbers) else first.size()


_finfo = cache(finfo)


def eps_of(values: Tensor) -> float:
    """The distance from 1 to the next number of the type."""
    return float(_finfo(values.dtype).eps)


def tiny_of(values: Tensor) -> float:
    """The smallest normal number of the type."""
    return float(_finfo(values.dtype).tiny)


def lowest_of(values: Tensor) -> float:
    """The most negative finite number of the type."""
    return float(_finfo(values.dtype).min)


def clamp_probs(probs: Tensor) -> Tensor:
    """Probabilities with finite logarithms: kept an epsilon away from 0 and 1."""
    eps = eps_of(probs)
    return probs.clamp(eps, 1 - eps)


def logits_to_probs(logits: Tensor, is_binary: bool = False) -> Tensor:
    """Probabilities of log-odds, or over the last dimension of unnormalised log-probabilities."""
    return logits.sigmoid() if is_binary else logits.softmax(-1)


def probs_to_logits(probs: Tensor, is_binary: bool = False) -> Tensor:
    """Log-odds, or log-probabilities."""
    clamped = clamp_probs(probs)
    return clamped.log() - (-clamped).log1p() if is_binary else clamped.log()


def sum_rightmost(value: Tensor, count: int) -> Tensor:
    """The sum over the last `count` dimensions."""
    return value if count == 0 else value.reshape((*value.shape[: value.dim() - count], -1)).sum(-1)


def one_of(probs: Any, logits: Any) -> None:
    """Refuse both and neither.

    Raises:
        ValueError: either.
    """
    if (probs is None) == (logits is None):
        raise ValueError("Either `probs` or `logits` must be specified, but not both.")


def lazy_property(function: Callable[[Any], Any]) -> Any:
    """A property that is computed at most once, recorded even where that is first under `no_grad`."""

    def compute(self: Any) -> Any:
        with enable_grad():
            return function(self)

    compute.__doc__ = function.__doc__
    return cached_property(compute)
