"""Changing element type and device: `to`, `float`, `long`, `type_as`, ..."""

from __future__ import annotations

from types import NoneType
from typing import Any

import numpy as np

from dptrain.core import dtypes
from dptrain.core.arrays import beside, device_of, move, on_gpu
from dptrain.core.device import as_device, device
from dptrain.core.dtypes import FROM_NUMPY, as_dtype, dtype
from dptrain.core.export import export
from dptrain.core.half import computed_in
from dptrain.core.kernels import kernels_for
from dptrain.core.layout import contiguous_format, copy_in, preserve_format, suggested
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor


class Cast(Op):
    """The values in another element type and place; gradients come back in the old ones."""

    name = "to"
    direct = 0

    def forward(
        self,
        input: Any,
        target: np.dtype[Any],
        memory_format: Any = preserve_format,
        place: Any = None,
        non_blocking: bool = False,
    ) -> Any:
        self.source, self.origin = input.dtype, None if place is None else device_of(input)
        self.order_asked = memory_format is not preserve_format
        if place is None:
            return _converted(input, target, memory_format, copy=True)
        moved = move(input, place, non_blocking)
        with beside(moved):
            return _converted(moved, target, memory_format, copy=False)

    def backward(self, grad: Any) -> Any:
        target = self.target
        if target is not None and self.origin is None and on_gpu(grad):
            return kernels_for(grad).convert(grad, self.source, target)
        return Cast.call(grad, self.source, preserve_format, self.origin)

    def release(self) -> None:
        """Keep what it knows: no values, and autocast lets several graphs share the cast of a weight."""


def _converted(input: Any, target: np.dtype[Any], memory_format: Any, copy: bool) -> Any:
    alike = computed_in(input.dtype) == computed_in(target)  # but for their bits
    if memory_format is preserve_format and on_gpu(input) and alike and input.dtype != target:
        return kernels_for(input).convert(input, target)
    if memory_format is preserve_format and input.flags.c_contiguous:
        return input.astype(target, copy=copy)
    return copy_in(input, memory_format, target)


def _cast(
    self: Tensor,
    target: dtype,
    copy: bool = False,
    memory_format: Any = preserve_format,
    place: device | None = None,
    non_blocking: bool = False,
) -> Tensor:
    if place is not None and place == self.device:
        place = None
    kept = memory_format is preserve_format
    if not kept:
        order = contiguous_format if self._unseen is not None else suggested(self._array)
        kept = order is memory_format
    if self._array.dtype == target.numpy and kept and place is None and not copy:
        return self
    return Cast.apply(self, target.numpy, memory_format, place, non_blocking)


def _to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The tensor as another dtype and/or on another device: `to(dtype)`, `to(device)`, `to(other)`.

    Args:
        args: a dtype, a device (or its name), both in that order, or a tensor to be like.
        kwargs: dtype=, device=, tensor=, copy=, non_blocking=, memory_format=.

    Returns:
        The tensor itself where nothing changes (unless `copy`), else a copy.
    """
    if len(args) == 1 and not kwargs and type(args[0]) is dtype:
        return _cast(self, args[0])
    given = _to_arguments(args, kwargs)
    other, kind, place = given.get("other"), given.get("dtype"), given.get("device")
    if other is not None:
        kind, place = other.dtype, other.device
    return _cast(
        self,
        self.dtype
        if kind is None
        else FROM_NUMPY[kind]
        if isinstance(kind, np.dtype)
        else as_dtype(kind),
        given.get("copy", False),
        given.get("memory_format") or preserve_format,
        None if place is None else as_device(place),
        given.get("non_blocking", False),
    )


def _to_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `to` by name; what the first is tells the order of those by position.

    Raises:
        TypeError: too many, unknown, twice, or of another kind.
    """
    if "tensor" in kwargs:
        kwargs = {"other": kwargs["tensor"], **{k: v for k, v in kwargs.items() if k != "tensor"}}
    first: Any = args[0] if args else kwargs.get("other")
    if isinstance(first, Tensor):
        names: tuple[str, ...] = ("other",)
    elif isinstance(first, (dtype, np.dtype)) or first in (float, int, bool):
        names = ("dtype",)
    else:
        names = ("device", "dtype")
    names = (*names, "non_blocking", "copy")
    if len(args) > len(names):
        raise TypeError(f"to() takes {len(names)} positional arguments but {len(args)} were given")
    given = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in given or name not in (*names, "memory_format"):
            what = (
                "got multiple values for argument" if name in given else "got an unexpected keyword"
            )
            raise TypeError(f"to() {what} {name!r}")
        given[name] = value
    for name in ("non_blocking", "copy"):
        if not isinstance(given.get(name, False), bool):
            raise TypeError(
                f"to(): argument {name!r} must be bool, not {type(given[name]).__name__}"
            )
    if not isinstance(given.get("dtype"), (dtype, np.dtype, type, NoneType)):
        raise TypeError(
            f"to(): argument 'dtype' must be dtype, not {type(given['dtype']).__name__}"
        )
    return given


export(methods=("to",), function=_to)(Cast)


def _converter(target: dtype) -> Any:
    def convert(self: Tensor, memory_format: Any = preserve_format) -> Tensor:
        return _cast(self, target, memory_format=memory_format)

    convert.__doc__ = f"The tensor as {target}."
    return convert


for _name, _target in {
    "double": dtypes.float64,
    "float": dtypes.float32,
    "half": dtypes.float16,
    "bfloat16": dtypes.bfloat16,
    "long": dtypes.int64,
    "int": dtypes.int32,
    "short": dtypes.int16,
    "char": dtypes.int8,
    "byte": dtypes.uint8,
    "bool": dtypes.bool_,
}.items():
    export(methods=(_name,), function=_converter(_target))(Cast)


def _type_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor with the dtype of `other`, on its device."""
    return _cast(self, other.dtype, place=other.device)


export(methods=("type_as",), function=_type_as)(Cast)
