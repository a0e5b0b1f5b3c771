"""What is known of element types: `FloatTensor` and its like, `Tensor.type`, limits, promotion."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from dptrain.core import dtypes
from dptrain.core.arguments import guarded
from dptrain.core.dtypes import as_dtype, dtype, get_default_dtype, result_dtype
from dptrain.core.tensor import Tensor


class _TypedMeta(type):
    """`isinstance(x, FloatTensor)` asks for the element type."""

    kind: dtype

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Tensor) and instance.dtype is cls.kind


def _typed(name: str, kind: dtype) -> Any:
    def make(cls: Any, *data: Any) -> Tensor:
        if len(data) == 1 and not isinstance(data[0], int):
            values = data[0]._array if isinstance(data[0], Tensor) else data[0]
            array = np.array(values, dtype=kind.numpy)
        else:
            array = np.empty(data or (0,), kind.numpy)
        result = Tensor.__new__(Tensor)
        result._array = array
        return result

    doc = f"`{name}(2, 3)` is uninitialised of that shape, `{name}([1, 3])` holds those values, both {kind.name}."
    return _TypedMeta(name, (), {"kind": kind, "__new__": make, "__doc__": doc})


FloatTensor = _typed("FloatTensor", dtypes.float32)
DoubleTensor = _typed("DoubleTensor", dtypes.float64)
HalfTensor = _typed("HalfTensor", dtypes.float16)
BFloat16Tensor = _typed("BFloat16Tensor", dtypes.bfloat16)
ByteTensor = _typed("ByteTensor", dtypes.uint8)
CharTensor = _typed("CharTensor", dtypes.int8)
ShortTensor = _typed("ShortTensor", dtypes.int16)
IntTensor = _typed("IntTensor", dtypes.int32)
LongTensor = _typed("LongTensor", dtypes.int64)
BoolTensor = _typed("BoolTensor", dtypes.bool_)

_CLASSES = {
    cls.__name__: cls
    for cls in (
        FloatTensor,
        DoubleTensor,
        HalfTensor,
        BFloat16Tensor,
        ByteTensor,
        CharTensor,
        ShortTensor,
        IntTensor,
        LongTensor,
        BoolTensor,
    )
}
_NAMES = {cls.kind: name for name, cls in _CLASSES.items()}


def _type(self: Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """The name of the tensor's type; or the tensor as another type (a dtype, a class, its name).

    Raises:
        ValueError: no such type.
    """
    if dtype is None:
        return f"dptrain.{_NAMES[self.dtype]}"
    if isinstance(dtype, str):
        found = _CLASSES.get(dtype.rpartition(".")[2])
        if found is None:
            raise ValueError(f"invalid type: {dtype!r}; expected one of {', '.join(_CLASSES)}")
        return self.to(found.kind)
    return self.to(dtype.kind if isinstance(dtype, _TypedMeta) else as_dtype(dtype))


Tensor.type = _type  # type: ignore[attr-defined]


class finfo:
    """Limits of a floating point dtype (the default one unless given)."""

    def __init__(self, type: Any = None) -> None:
        kind = get_default_dtype() if type is None else as_dtype(type)
        if not kind.is_floating_point:
            raise TypeError(
                f"finfo() requires a floating point input type, got {kind}; use iinfo for integers"
            )
        limits = ml_dtypes.finfo(kind.numpy)
        self.dtype = kind.name
        self.bits = kind.itemsize * 8
        self.min, self.max = float(limits.min), float(limits.max)
        self.eps = float(limits.eps)
        self.resolution = 10.0**-limits.precision
        self.tiny = self.smallest_normal = float(limits.smallest_normal)

    def __repr__(self) -> str:
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, "
            f"smallest_normal={self.smallest_normal:g}, tiny={self.tiny:g}, dtype={self.dtype})"
        )


class iinfo:
    """Limits of an integer dtype."""

    def __init__(self, type: Any) -> None:
        kind = as_dtype(type)
        if kind.numpy.kind not in "iu":
            raise TypeError(
                f"iinfo() requires an integer input type, got {kind}; use finfo for floating point"
            )
        limits = np.iinfo(kind.numpy)
        self.dtype = kind.name
        self.bits = kind.itemsize * 8
        self.min, self.max = int(limits.min), int(limits.max)

    def __repr__(self) -> str:
        return f"iinfo(min={self.min:g}, max={self.max:g}, dtype={self.dtype})"


@partial(guarded, tensor1="Tensor | Number", tensor2="Tensor | Number")
def result_type(tensor1: Any, tensor2: Any) -> dtype:
    """The dtype of an arithmetic operation on both (tensors or numbers)."""
    return result_dtype([t._array if isinstance(t, Tensor) else t for t in (tensor1, tensor2)])


@guarded
def promote_types(type1: dtype, type2: dtype) -> dtype:
    """The smallest dtype of at least the category and the size of both."""
    return dtypes.promote_types(as_dtype(type1), as_dtype(type2))


@guarded
def can_cast(from_: Any, to: Any) -> bool:
    """Whether the promotion rules let a result of one dtype be stored in another."""
    source, target = as_dtype(from_), as_dtype(to)
    return source.category <= target.category


def is_floating_point(input: Any) -> bool:
    """Whether the element type is a floating point type."""
    check_tensor("is_floating_point", input)
    return input.dtype.is_floating_point


def is_complex(input: Any) -> bool:
    """Always False: dptrain has no complex types."""
    check_tensor("is_complex", input)
    return False


def is_nonzero(input: Any) -> bool:
    """Whether the only element is not zero."""
    check_tensor("is_nonzero", input)
    if input._array.size != 1:
        raise RuntimeError(
            f"is_nonzero: Boolean value of Tensor with {input._array.size} values is ambiguous"
        )
    return bool(input._array.reshape(()) != 0)


def numel(input: Any) -> int:
    """Number of elements."""
    check_tensor("numel", input)
    return int(input._array.size)


def check_tensor(op: str, input: Any, name: str = "input", position: int = 1) -> None:
    """Refuse what is no tensor.

    Raises:
        TypeError: naming the operation, the argument and what came.
    """
    if not isinstance(input, Tensor):
        raise TypeError(
            f"{op}(): argument {name!r} (position {position}) must be Tensor, not {type(input).__name__}"
        )


def set_default_tensor_type(t: Any) -> None:
    """Set the default dtype by a tensor class such as `dptrain.DoubleTensor`, or its name.

    Raises:
        TypeError: not a floating point type.
    """
    found = _CLASSES.get(t.rpartition(".")[2]) if isinstance(t, str) else t
    if not isinstance(found, _TypedMeta):
        raise TypeError(
            f"invalid type object: {t!r}; expected a class such as dptrain.DoubleTensor"
        )
    dtypes.set_default_dtype(found.kind)


def typename(obj: Any, /) -> str:
    """The name of an object's type with its module, or of a tensor's type."""
    if isinstance(obj, Tensor):
        return str(obj.type())
    if isinstance(obj, type) or (callable(obj) and hasattr(obj, "__qualname__")):
        named: Any = obj
    else:
        named = type(obj)
    module = getattr(named, "__module__", None)
    return (
        named.__qualname__
        if module in (None, "builtins", "__builtin__")
        else f"{module}.{named.__qualname__}"
    )


Tensor.is_complex = is_complex  # type: ignore[attr-defined]
Tensor.is_nonzero = is_nonzero  # type: ignore[attr-defined]
