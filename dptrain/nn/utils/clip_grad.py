"""Gradient clipping, in place. Must not know: optimizers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, beside, device_of, move, namespace_of, on_gpu
from dptrain.core.callers import level_outside
from dptrain.core.capturing import whole
from dptrain.core.failures import telling
from dptrain.core.flat import refuse_incomplete
from dptrain.core.host_array import DeviceMismatchError
from dptrain.core.tensor import Tensor, wrap


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [p._grad for p in params if p._grad is not None]


def _norm(values: np.ndarray, order: float) -> Any:
    """The p-norm of all values; 16-bit types are summed in float32."""
    if not values.size:
        return namespace_of(values).zeros((), values.dtype)
    wide = values.astype(np.float32) if values.dtype.itemsize == 2 else values
    return np.linalg.norm(wide.ravel(order="K"), ord=order)


def _stacked(norms: list[Any]) -> Any:
    """The norms as a vector where the first one lives."""
    try:
        return namespace_of(norms[0]).stack(norms)
    except DeviceMismatchError:
        place = device_of(norms[0])
        return namespace_of(norms[0]).stack([move(n, place) for n in norms])


@telling
@whole
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients so that their norm, taken together as one vector, is at most `max_norm`.

    Args:
        parameters: one tensor or many; those without a gradient do not count.
        max_norm: the largest norm allowed.
        norm_type: order of the norm; `inf` is the largest absolute value.
        error_if_nonfinite: raise rather than scale by a norm that is infinite or no number.
        foreach: accepted for PyTorch's sake; there is one implementation.

    Returns:
        The norm before clipping.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    refuse_incomplete(params)
    grads = _gradients(params)
    total = get_total_norm(grads, norm_type, error_if_nonfinite)
    _scale(grads, max_norm, total)
    return total


@telling
@whole
def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all values of some tensors, taken together as one vector.

    Args:
        tensors: one tensor or many.
        norm_type: order of the norm; `inf` is the largest absolute value.
        error_if_nonfinite: raise rather than return a norm that is infinite or no number.
        foreach: accepted for PyTorch's sake; there is one implementation.

    Raises:
        RuntimeError: the norm is not finite and `error_if_nonfinite` is set.
    """
    held = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not held:
        return wrap(np.zeros((), np.float32))
    order = float(norm_type)
    with np.errstate(all="ignore"):  # inf and nan are results here
        norms = _stacked([as_array(_norm(t._array, order)) for t in held])
        total = as_array(_norm(norms, order)).astype(norms.dtype, copy=False)
    if error_if_nonfinite and not np.isfinite(total):
        raise RuntimeError(
            f"The total norm of order {order} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    return wrap(total)


@telling
@whole
def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    total_norm: Tensor,
    foreach: bool | None = None,
) -> None:
    """Scale all gradients by max_norm / total_norm, where that is less than 1.

    Args:
        parameters: one tensor or many; those without a gradient do not count.
        max_norm: the largest norm allowed.
        total_norm: their norm, as `get_total_norm` gives it.
        foreach: accepted for PyTorch's sake; there is one implementation.
    """
    _scale(_gradients(parameters), max_norm, total_norm)


def _scale(grads: list[Tensor], max_norm: float, total_norm: Tensor) -> None:
    if on_gpu(total_norm._array):
        _scale_there(grads, float(max_norm), total_norm._array)
        return
    factor = float(max_norm) / (float(total_norm) + 1e-6)
    if not factor >= 1:  # also when it is no number
        with np.errstate(all="ignore"):
            for grad in grads:
                grad._array *= grad._array.dtype.type(factor)
                grad._bump_version()


def _scale_there(grads: list[Tensor], max_norm: float, total_norm: Any) -> None:
    """Likewise by the GPU that knows the norm, for which the host does not wait."""
    with beside(total_norm):
        factor = np.minimum(max_norm / (total_norm.astype(np.float64) + 1e-6), 1.0)  # NaN stays
    for grad in grads:
        array = grad._array
        with beside(array):
            array *= move(factor, device_of(array)).astype(array.dtype)
        grad._bump_version()


@telling
@whole
def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Limit every element of the gradients to [-clip_value, clip_value].

    Args:
        parameters: one tensor or many; those without a gradient do not count.
        clip_value: the largest absolute value allowed.
        foreach: accepted for PyTorch's sake; there is one implementation.
    """
    bound = float(clip_value)
    for grad in _gradients(parameters):
        kind = grad._array.dtype.type
        np.clip(grad._array, kind(-bound), kind(bound), out=grad._array)
        grad._bump_version()


@telling
def clip_grad_norm(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The old name of `clip_grad_norm_`."""
    warnings.warn(
        "`nn.utils.clip_grad_norm` is now deprecated in favor of `nn.utils.clip_grad_norm_`.",
        FutureWarning,
        stacklevel=level_outside(),
    )
    return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
