"""What all functions that make tensors have in common: their keyword arguments, their sizes, where they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import CO_VARARGS
from operator import index
from typing import Any

from dptrain.core.arguments import guarded
from dptrain.core.arrays import device_of, move
from dptrain.core.device import as_device
from dptrain.core.dtypes import as_dtype, get_default_dtype
from dptrain.core.layout import strided
from dptrain.core.pinning import check_can_pin, pin_in_place
from dptrain.core.tensor import Tensor, wrap


def factory(
    make: Callable[..., Tensor], kinds: dict[str, str] | None = None
) -> Callable[..., Tensor]:
    """`make` with the keyword arguments that all of PyTorch's functions that make tensors have.

    These are `layout` (only `dptrain.strided`), `pin_memory` (page-locked memory, for copies to a GPU) and `out`,
    a tensor that takes the values; `size=` may stand for the sizes.

    Args:
        make: the function.
        kinds: parameters of other kinds than annotations and names say; see `core/arguments.py`.
    """
    # `def zeros(*size, ...)`, read off the code object: this runs at import.
    gathers_sizes = bool(make.__code__.co_flags & CO_VARARGS)
    make.__name__ = make.__name__.rstrip("_")  # `range_` is found as `range`
    checked = guarded(make, **(kinds or {}))

    @wraps(make)
    def create(
        *args: Any, layout: Any = None, pin_memory: bool = False, out: Any = None, **kwargs: Any
    ) -> Tensor:
        if layout is not None and layout is not strided:
            raise TypeError(f"{make.__name__}: layout must be dptrain.strided, got {layout!r}")
        if pin_memory:
            check_can_pin(make.__name__)
        if gathers_sizes:
            if "size" in kwargs:
                args = (kwargs.pop("size"), *args)
            elif not args:
                raise TypeError(f"{make.__name__}() missing required argument: 'size'")
        if out is None:
            made: Tensor = checked(*args, **kwargs)
            return pin_in_place(made) if pin_memory else made
        if not isinstance(out, Tensor):
            raise TypeError(
                f"{make.__name__}(): argument 'out' must be Tensor, not {type(out).__name__}"
            )
        made = checked(*args, **{"dtype": out.dtype, **kwargs})
        if made.dtype is not out.dtype:
            raise RuntimeError(
                f"{make.__name__}: dtype {made.dtype} does not match dtype of out parameter ({out.dtype})"
            )
        return out.resize_(made.shape).copy_(made)

    return create


def finish(array: Any, device: Any, requires_grad: bool) -> Tensor:
    place = as_device(device)
    result = wrap(array if place is device_of(array) else move(array, place))
    if requires_grad:
        result.requires_grad = True
    return result


def sizes_of(size: tuple[Any, ...], op: str) -> tuple[int, ...]:
    if len(size) == 1 and type(size[0]) is not int:
        given = size[0]
        size = tuple(given) if type(given) is tuple or isinstance(given, Sequence) else size
    shape = size
    if not _INTS.issuperset(map(type, size)):
        try:
            shape = tuple(map(index, size))
        except TypeError:
            raise TypeError(f"{op}: sizes must be ints, got {size}") from None
    if shape and min(shape) < 0:
        raise RuntimeError(f"{op}: trying to create tensor with negative dimension: {list(shape)}")
    return shape


_INTS = frozenset([int])


def numpy_type(given: Any) -> Any:
    return (get_default_dtype() if given is None else as_dtype(given)).numpy
