"""Element types and PyTorch's promotion rules over NumPy arrays.

Owns: the `dtype` values, their NumPy twins, `promote_types`, `result_type`, the default dtype.
Must not know: tensors beyond "an array and its number of dimensions".

Source of the rules: PyTorch's documentation, "Tensor Attributes", type promotion.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

_BOOL, _INTEGER, _FLOAT = 0, 1, 2


class dtype:
    """An element type, as `dptrain.float32`. Compare with `is` or `==`; not to be constructed."""

    __slots__ = ("category", "itemsize", "name", "numpy")

    def __init__(self, name: str, numpy_type: Any, category: int) -> None:
        self.name = name
        self.numpy = np.dtype(numpy_type)
        self.category = category
        self.itemsize = self.numpy.itemsize

    @property
    def is_floating_point(self) -> bool:
        """Whether values of this type can require gradients."""
        return self.category == _FLOAT

    @property
    def is_complex(self) -> bool:
        """Always False: dptrain has no complex types."""
        return False

    @property
    def is_signed(self) -> bool:
        """Whether the type holds negative values."""
        return self.name not in ("uint8", "bool")

    def to_real(self) -> dtype:
        """The type itself: no type is complex."""
        return self

    def __repr__(self) -> str:
        return f"dptrain.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _by_name, (self.name,)


float64 = double = dtype("float64", np.float64, _FLOAT)
float32 = float_ = dtype("float32", np.float32, _FLOAT)
float16 = half = dtype("float16", np.float16, _FLOAT)
bfloat16 = dtype("bfloat16", ml_dtypes.bfloat16, _FLOAT)
uint8 = dtype("uint8", np.uint8, _INTEGER)
int8 = dtype("int8", np.int8, _INTEGER)
int16 = short = dtype("int16", np.int16, _INTEGER)
int32 = int_ = dtype("int32", np.int32, _INTEGER)
int64 = long = dtype("int64", np.int64, _INTEGER)
bool_ = dtype("bool", np.bool_, _BOOL)

ALL_DTYPES = (float64, float32, float16, bfloat16, uint8, int8, int16, int32, int64, bool_)
FROM_NUMPY: dict[np.dtype[Any], dtype] = {d.numpy: d for d in ALL_DTYPES}
_PYTHON_TYPES: dict[Any, dtype] = {float: float32, int: int64, bool: bool_}
_default_dtype: ContextVar[dtype] = ContextVar("default_dtype", default=float32)


def _by_name(name: str) -> dtype:
    return next(d for d in ALL_DTYPES if d.name == name)


def from_numpy_dtype(numpy_type: Any) -> dtype:
    """The dtype that stands for a NumPy element type.

    Raises:
        TypeError: tensors cannot hold such elements (complex, strings, objects, ...).
    """
    found = FROM_NUMPY.get(np.dtype(numpy_type))
    if found is None:
        raise TypeError(
            f"can't convert np.ndarray of type {np.dtype(numpy_type)} to a tensor; the supported types "
            f"are {', '.join(d.name for d in ALL_DTYPES)}"
        )
    return found


def as_dtype(value: Any) -> dtype:
    """The dtype that `value` (a dtype, or Python's float, int or bool) names."""
    if isinstance(value, dtype):
        return value
    found = _PYTHON_TYPES.get(value) if isinstance(value, type) else None
    if found is None:
        raise TypeError(f"dtype must be a dptrain dtype such as dptrain.float32, got {value!r}")
    return found


def get_default_dtype() -> dtype:
    """The floating point type of new tensors made from Python floats (float32 unless set)."""
    return _default_dtype.get()


def set_default_dtype(d: dtype) -> None:
    """Set the floating point type of new tensors, for the present context (thread).

    Raises:
        TypeError: `d` is not a floating point dtype.
    """
    if not as_dtype(d).is_floating_point:
        raise TypeError(f"only floating-point types are supported as the default type, got {d}")
    _default_dtype.set(d)


@cache
def promote_types(type1: dtype, type2: dtype) -> dtype:
    """The smallest type of at least the category and size of both, as `torch.promote_types`."""
    if type1 is type2:
        return type1
    if type1.category != type2.category:
        return type1 if type1.category > type2.category else type2
    if type1.category == _FLOAT:
        if type1.itemsize == type2.itemsize:  # float16 with bfloat16
            return float32
        return type1 if type1.itemsize > type2.itemsize else type2
    return FROM_NUMPY[np.promote_types(type1.numpy, type2.numpy)]


def _combine(higher: dtype | None, lower: dtype | None) -> dtype | None:
    """A lower-priority operand counts only through its category."""
    if higher is None or lower is None:
        return lower if higher is None else higher
    if higher.category == _FLOAT:
        return higher
    if higher.category == _BOOL or lower.category == _FLOAT:
        return promote_types(higher, lower)
    return higher


@cache
def _result(operands: tuple[tuple[dtype, int], ...]) -> dtype:
    priority: list[dtype | None] = [None, None, None]
    for d, rank in operands:
        held = priority[rank]
        priority[rank] = d if held is None else promote_types(held, d)
    found = _combine(priority[0], _combine(priority[1], priority[2]))
    assert found is not None, "result_type needs at least one operand"
    return found


def scalar_dtype(value: Any) -> dtype:
    """The type with which a Python number takes part in promotion."""
    if isinstance(value, (bool, np.bool_)):
        return bool_
    if isinstance(value, (int, np.integer)):
        return int64
    if isinstance(value, (float, np.floating)):
        return get_default_dtype()
    raise TypeError(
        f"expected a Tensor or a Python number, got {type(value).__name__}"
        + ("; complex numbers are not supported" if isinstance(value, complex) else "")
    )


_PYTHON_NUMBERS = frozenset([int, float, bool])


def result_dtype(operands: Any) -> dtype:
    """The common type of arrays and Python numbers under PyTorch's rules.

    Tensors with dimensions decide; 0-dimensional tensors and then Python numbers only raise the
    category (bool < integer < floating point).

    Args:
        operands: arrays (with `.dtype` and `.ndim`) and Python numbers.
    """
    types: set[Any] = {getattr(x, "dtype", type(x)) for x in operands}
    arrays = types - _PYTHON_NUMBERS
    if len(arrays) == 1:  # nearly always: of one type, perhaps beside numbers
        found = FROM_NUMPY.get(arrays.pop())
        if found is not None and (len(types) == 1 or found.category == _FLOAT):
            return found
    key = tuple(
        (FROM_NUMPY[x.dtype], 0 if x.ndim else 1)
        if hasattr(x, "ndim") and hasattr(x, "dtype")
        else (scalar_dtype(x), 2)
        for x in operands
    )
    return _result(key)


@cache
def limits(kind: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the greatest number of a type."""
    if kind.kind == "f":
        return float(np.finfo(kind).min), float(np.finfo(kind).max)
    return int(np.iinfo(kind).min), int(np.iinfo(kind).max)


def held(op: str, value: Any, kind: np.dtype[Any]) -> Any:
    """A number as elements of `kind` hold it: cut to an integer; a negative one modulo an unsigned range.

    What is no Python number is returned as it is, and so are numbers for bfloat16, which reaches as far as float32.

    Raises:
        RuntimeError: the type does not reach as far.
    """
    if not isinstance(value, (int, float)) or kind.kind not in "iuf":
        return value
    low, high = limits(kind)
    if kind.kind == "u" and isinstance(value, int):
        low = -high
    infinite = isinstance(value, float) and not math.isfinite(value)
    if (infinite and kind.kind != "f") or not (infinite or low <= value <= high):
        raise RuntimeError(
            f"{op}: value {value} cannot be converted to type {FROM_NUMPY[kind]} without overflow"
        )
    if kind.kind == "f":
        return value
    return int(value) % (high + 1) if kind.kind == "u" else int(value)
