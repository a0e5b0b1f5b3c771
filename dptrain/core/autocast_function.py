"""Mixed precision in `autograd.Function`: the decorators of its `forward` and `backward`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any

from dptrain.core.autocast import (
    autocast,
    check_text,
    eligible,
    get_autocast_dtype,
    is_autocast_enabled,
)
from dptrain.core.dtypes import dtype
from dptrain.core.tensor import Tensor


def _cast_all(value: Any, target: dtype, device_type: str) -> Any:
    """Eligible tensors in `value` as `target`, in mappings too, and without the cache of weights."""
    if isinstance(value, Tensor):
        return value.to(target) if eligible(value, device_type) else value
    if isinstance(value, Mapping):
        return {k: _cast_all(v, target, device_type) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_cast_all(v, target, device_type) for v in value])
    return value


def custom_fwd(
    fwd: Callable[..., Any] | None = None, *, device_type: str, cast_inputs: dtype | None = None
) -> Callable[..., Any]:
    """Decorate the `forward` of an `autograd.Function` that shall run under autocast.

    Args:
        fwd: the function; without it, a decorator is returned.
        device_type: "cpu", "cuda", ...
        cast_inputs: inside a region, cast floating point arguments to this type and switch autocast off
            in `forward`; by default `forward` runs under the state of the caller.

    Raises:
        ValueError: `device_type` is no text.
    """
    check_text(device_type)
    if fwd is None:
        return partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)
    function = fwd

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        ctx, enabled = args[0], is_autocast_enabled(device_type)
        ctx._dtype = get_autocast_dtype(device_type)
        ctx._fwd_used_autocast = enabled and cast_inputs is None
        if cast_inputs is None or not enabled:
            return function(*args, **kwargs)
        with autocast(device_type, enabled=False):
            return function(
                *_cast_all(args, cast_inputs, device_type),
                **_cast_all(kwargs, cast_inputs, device_type),
            )

    return run


def custom_bwd(bwd: Callable[..., Any] | None = None, *, device_type: str) -> Callable[..., Any]:
    """Decorate the `backward` beside a `custom_fwd`: it runs under the autocast state of `forward`.

    Args:
        bwd: the function; without it, a decorator is returned.
        device_type: "cpu", "cuda", ...

    Raises:
        ValueError: `device_type` is no text.
    """
    check_text(device_type)
    if bwd is None:
        return partial(custom_bwd, device_type=device_type)
    function = bwd

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        ctx = args[0]
        with autocast(device_type, dtype=ctx._dtype, enabled=ctx._fwd_used_autocast):
            return function(*args, **kwargs)

    return run
