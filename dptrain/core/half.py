"""16-bit floating point: computed in float32 and rounded once.

Owns: the lifting of float16 and bfloat16 values, and `rounded_once`, which an operation asks for with
`in_float32 = True`. Must not know: any particular operation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import ml_dtypes
import numpy as np

from dptrain.core.arrays import on_gpu
from dptrain.core.dtypes import as_dtype

HALVES = frozenset([np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)])
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_NO_TENSOR: dict[str, Any] = {}


def lift(value: Any) -> Any:
    """A 16-bit floating point array or Tensor as float32; anything else as it is."""
    kind = getattr(value, "dtype", None)
    if kind in HALVES:
        return value.astype(_FLOAT32)
    array = getattr(value, "_array", None)
    return value.to(_FLOAT32) if array is not None and array.dtype in HALVES else value


def computed_in(kind: np.dtype[Any]) -> np.dtype[Any]:
    """What numbers of a type are computed in: float32 for those of 16 bits."""
    return _FLOAT32 if kind in HALVES else kind


def lifted_after_all(op: Any, *args: Any) -> Any:
    """The `forward` of an operation that takes 16-bit values of a GPU as they are (`halves_on_gpu`), but not these."""
    op.halves_on_gpu = False
    return op.forward(*args)


def lifted(values: Any) -> Any:
    """`lift` of each value of a list or tuple."""
    for value in values:
        if value is not None:
            # A Tensor has a type of another kind, its array (which it may still wait for) NumPy's.
            array = getattr(value, "__dict__", _NO_TENSOR).get("_array", value)
            kind = getattr(array, "dtype", None)
            if kind is not _FLOAT32 and kind is not _FLOAT64:  # mostly all are
                return [lift(v) for v in values]
    return values


def rounded_once(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` with 16-bit arguments lifted to float32 and its float32 results brought back.

    A 16-bit intermediate result would be rounded at every step, and a sum of many such numbers stops
    growing. The type of the first floating point argument is that of the results, unless the call names
    its own by `dtype=`: then the first argument is converted to that one first.
    """
    code = forward.__code__
    names = code.co_varnames[1 : code.co_argcount]
    place = names.index("dtype") if "dtype" in names else len(names)
    by_name = "dtype" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

    @wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = None
        if by_name:
            given = args[place] if place < len(args) else kwargs.get("dtype")
        if given is None:  # the case of nearly every call, before any search
            kind = args[0].dtype if type(args[0]) is np.ndarray else getattr(args[0], "dtype", None)
            if kind is _FLOAT32 or kind is _FLOAT64:
                return forward(self, *args, **kwargs)
        if given is None and self.halves_on_gpu and any(map(on_gpu, args)):
            return forward(self, *args, **kwargs)
        kind = _first_floating(args) if given is None else as_dtype(given).numpy
        if kind not in HALVES:
            return forward(self, *args, **kwargs)
        if self.alike:  # what is lifted looks alike
            refuse_mixed(self.name, args[: self.alike])
        if given is not None:
            args = (args[0].astype(kind), *args[1:place], *(None for _ in args[place:]))
            kwargs.pop("dtype", None)
        out = forward(self, *[lift(a) for a in args], **{k: lift(v) for k, v in kwargs.items()})
        if type(out) is tuple:
            return tuple([_lower(o, kind) for o in out])
        return _lower(out, kind)

    if not by_name:  # a first argument of 32 or 64 bits is enough to go there directly
        run.of_wide = forward  # type: ignore[attr-defined]
    return run


def times(value: Any, number: float) -> Any:
    """A raw array or Tensor times a number, in its type; beside CuPy's bfloat16 a Python float is float32."""
    product = value * number
    return product if product.dtype == value.dtype else product.astype(value.dtype)


def refuse_mixed(op: str, arrays: tuple[Any, ...]) -> None:
    """Refuse arrays of different types.

    Raises:
        RuntimeError: naming the types.
    """
    first = arrays[0].dtype
    for array in arrays:
        if array.dtype != first:
            kinds = " and ".join(str(a.dtype) for a in arrays)
            raise RuntimeError(
                f"{op}: expected both operands to have the same dtype, but got {kinds}; convert one with .to()"
            )


def _first_floating(values: tuple[Any, ...]) -> Any:
    for value in values:
        kind = getattr(value, "dtype", None)
        if isinstance(kind, np.dtype) and kind.kind in "fV":
            return kind
    return None


def _lower(value: Any, kind: np.dtype[Any]) -> Any:
    return value.astype(kind) if getattr(value, "dtype", None) == _FLOAT32 else value
