"""Parameters as one vector. Must not know: optimizers."""

from __future__ import annotations

from collections.abc import Iterable

from dptrain.core.export import FUNCTIONS
from dptrain.core.failures import telling
from dptrain.core.tensor import Tensor


@telling
def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All values after one another, with gradients.

    Raises:
        TypeError: what is no tensor.
        RuntimeError: no parameters.
    """
    params = list(parameters)
    for p in params:
        if not isinstance(p, Tensor):
            raise TypeError(
                f"parameters_to_vector expected tensors, but one of them is {type(p).__name__}"
            )
    if not params:
        raise RuntimeError("parameters_to_vector expected a non-empty list of parameters")
    joined: Tensor = FUNCTIONS["cat"]([p.reshape(-1) for p in params])
    return joined


@telling
def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Take the values of the parameters from one vector; they share its memory afterwards.

    Args:
        vec: at least as many values as the parameters have together.
        parameters: what is filled.

    Raises:
        TypeError: no tensor.
        RuntimeError: too few values; nothing is changed then.
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"expected dptrain.Tensor, but got: {type(vec).__name__}")
    params = list(parameters)
    needed = sum(p.numel() for p in params)
    if vec.dim() != 1 or vec.numel() < needed:
        raise RuntimeError(
            f"vector_to_parameters expected a vector of {needed} elements, but got shape {list(vec.shape)}"
        )
    start = 0
    for p in params:
        p.data = vec.detach()[start : start + p.numel()].reshape(p.shape)
        start += p.numel()
