"""Making tensors: from data, filled, ranges, random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce, wraps
from inspect import CO_VARARGS
from operator import index
from typing import Any

import numpy as np

from dptrain.core.arguments import guarded
from dptrain.core.arrays import as_array, move, namespace_on, to_host
from dptrain.core.device import as_device
from dptrain.core.dtypes import (
    FROM_NUMPY,
    as_dtype,
    dtype,
    float64,
    from_numpy_dtype,
    get_default_dtype,
    int64,
    promote_types,
    result_dtype,
)
from dptrain.core.layout import contiguous_format, empty_in, preserve_format, strided
from dptrain.core.random import Generator, default_generator
from dptrain.core.tensor import Tensor, wrap
from dptrain.core.typed import check_tensor


def factory(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make` with the keyword arguments that all of PyTorch's functions that make tensors have.

    These are `layout` (only `dptrain.strided`), `pin_memory` (only False: it serves copies to a GPU) and
    `out`, a tensor that takes the values; `size=` may stand for the sizes.
    """

    # `def zeros(*size, ...)`, read off the code object: this runs at import.
    gathers_sizes = bool(make.__code__.co_flags & CO_VARARGS)
    checked = guarded(make)

    @wraps(make)
    def create(
        *args: Any, layout: Any = None, pin_memory: bool = False, out: Any = None, **kwargs: Any
    ) -> Tensor:
        if layout is not None and layout is not strided:
            raise TypeError(f"{make.__name__}: layout must be dptrain.strided, got {layout!r}")
        if pin_memory:
            raise RuntimeError(f"{make.__name__}: pin_memory needs a GPU, and there is none")
        if gathers_sizes:
            if "size" in kwargs:
                args = (kwargs.pop("size"), *args)
            elif not args:
                raise TypeError(f"{make.__name__}() missing required argument: 'size'")
        if out is None:
            made: Tensor = checked(*args, **kwargs)
            return made
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


def _finish(array: Any, device: Any, requires_grad: bool) -> Tensor:
    result = wrap(move(array, as_device(device)))
    if requires_grad:
        result.requires_grad = True
    return result


#: Python's own numbers.
_NUMBERS = frozenset([bool, int, float])


def _holds_tensors(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and any(
        isinstance(d, Tensor) or _holds_tensors(d) for d in data
    )


def _holds_float64(data: Any) -> bool:
    """Whether one of the elements is an array, a scalar of NumPy or a tensor of that type."""
    if not isinstance(data, (list, tuple)):
        return getattr(data, "dtype", None) in (np.float64, float64)
    return not _NUMBERS.issuperset(map(type, data)) and any(map(_holds_float64, data))


def _plain(data: Any) -> Any:
    if isinstance(data, Tensor):
        return to_host(data._array)
    return [_plain(d) for d in data] if isinstance(data, (list, tuple)) else data


def _common_type(data: Any) -> dtype:
    """The type of nested data with tensors in it: each has its own, a Python float the default one."""
    if isinstance(data, (list, tuple)):
        return reduce(promote_types, map(_common_type, data)) if data else get_default_dtype()
    return data.dtype if isinstance(data, Tensor) else result_dtype([data])


def _from_data(data: Any, kind: dtype | None) -> np.ndarray:
    """A new array from Python data: floats become the default dtype, as in PyTorch."""
    if isinstance(data, (Tensor, np.ndarray, np.generic)):
        source = to_host(data._array) if isinstance(data, Tensor) else np.asarray(data)
        return source.astype((kind or from_numpy_dtype(source.dtype)).numpy)
    tensors = _holds_tensors(data)
    try:
        array = np.array(_plain(data) if tensors else data)
    except ValueError:
        raise ValueError("tensor: the nested sequences are of unequal lengths") from None
    if array.dtype.kind == "c":
        raise TypeError(
            "tensor: complex numbers are not supported; split them into real and imaginary parts"
        )
    if array.dtype not in FROM_NUMPY:
        # PyTorch fails to infer a type from objects; given one, it fails to convert them.
        raise (RuntimeError if array.dtype == object and kind is None else TypeError)(
            f"tensor: cannot make a tensor from {type(data).__name__} holding {array.dtype} values"
        )
    if kind is None and tensors:
        kind = _common_type(data)
    elif kind is None:
        of_floats = array.dtype == np.float64 and not _holds_float64(data)
        kind = get_default_dtype() if of_floats or not array.size else FROM_NUMPY[array.dtype]
    return array.astype(kind.numpy, copy=False)


@guarded
def tensor(
    data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """A new tensor with a copy of `data` (numbers, nested sequences, arrays, tensors).

    Python floats become the default dtype, ints int64, bools bool; arrays keep their type.

    Raises:
        TypeError: complex numbers or text.
        ValueError: ragged sequences.
        RuntimeError: other objects, and integers that should require gradients.
    """
    if device is None and isinstance(data, Tensor):
        device = data.device
    return _finish(
        _from_data(data, None if dtype is None else as_dtype(dtype)), device, requires_grad
    )


@guarded
def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """A tensor of `data`, sharing memory where data is a tensor or an array of that dtype."""
    kind = None if dtype is None else as_dtype(dtype)
    if isinstance(data, Tensor):
        return data.to(data.dtype if kind is None else kind).to(
            data.device if device is None else device
        )
    if isinstance(data, np.ndarray):
        return _finish(
            data.astype((kind or from_numpy_dtype(data.dtype)).numpy, copy=False), device, False
        )
    return _finish(_from_data(data, kind), device, False)


@guarded
def asarray(
    obj: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    copy: bool | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of `obj`, sharing memory where it is a tensor, an array or a buffer of that dtype.

    Args:
        obj: a tensor, an array, an object with DLPack's or the buffer protocol, a number or sequences.
        dtype: element type; that of the data by default.
        device: where to; only the CPU.
        copy: True never shares, False only shares, None as the data allow.
        requires_grad: whether the result requires gradients.

    Raises:
        ValueError: `copy=False` where a copy is needed.
    """
    source = _alias(obj, dtype)
    if source is None:
        if copy is False:
            raise ValueError("can't alias arbitrary sequence into a tensor")
        return tensor(obj, dtype=dtype, device=device, requires_grad=requires_grad)
    as_device(device)
    result = source if dtype is None else source.to(as_dtype(dtype))
    if copy is False and result is not source:
        raise ValueError(f"can't alias tensor with dtype {source.dtype} into dtype {result.dtype}")
    if copy and result is source:
        result = source.clone()
    if result.requires_grad == requires_grad:
        return result
    return result.detach().requires_grad_(requires_grad)


def _alias(obj: Any, dtype: Any) -> Tensor | None:
    """A tensor over the memory of `obj`, if it lends any."""
    if isinstance(obj, Tensor):
        return obj
    if isinstance(obj, np.ndarray):
        return from_numpy(obj)
    if hasattr(obj, "__dlpack__"):
        return from_dlpack(obj)
    if isinstance(obj, (bytes, bytearray, memoryview)):
        return frombuffer(obj, dtype=get_default_dtype() if dtype is None else dtype)
    return None


@guarded
def frombuffer(
    buffer: Any, *, dtype: Any, count: int = -1, offset: int = 0, requires_grad: bool = False
) -> Tensor:
    """A one-dimensional tensor over the memory of a buffer (bytearray, memoryview, array.array).

    Args:
        buffer: an object with Python's buffer protocol.
        dtype: element type.
        count: number of elements; all by default.
        offset: bytes to skip.
        requires_grad: whether the result requires gradients.

    Raises:
        ValueError: the buffer is too short, or its length fits no number of elements.
        TypeError: no buffer.
    """
    kind = as_dtype(dtype)
    try:
        length = memoryview(buffer).nbytes
    except TypeError:
        raise ValueError("object does not implement Python buffer protocol.") from None
    left = length - offset
    if length <= 0 or count == 0:
        raise ValueError(f"both buffer length ({length}) and count ({count}) must not be 0")
    if not 0 <= offset < length:
        raise ValueError(
            f"offset ({offset} bytes) must be non-negative and no greater than buffer length ({length} bytes) minus 1"
        )
    if count < 0 and left % kind.itemsize:
        raise ValueError(
            f"buffer length ({left} bytes) after offset ({offset} bytes) must be a multiple of element size "
            f"({kind.itemsize})"
        )
    if count > 0 and count * kind.itemsize > left:
        raise ValueError(
            f"requested buffer length ({count} * {kind.itemsize} bytes) after offset ({offset} bytes) must not be "
            f"greater than actual buffer length ({length} bytes)"
        )
    flat = np.frombuffer(buffer, np.uint8)[offset:]
    used = flat[: (count if count > 0 else left // kind.itemsize) * kind.itemsize]
    return _finish(used.view(kind.numpy), None, requires_grad)


def from_numpy(ndarray: np.ndarray) -> Tensor:
    """A tensor over the array's own memory: changes on either side are seen on the other.

    Raises:
        TypeError: not an array, or an element type that tensors do not have.
    """
    if not isinstance(ndarray, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(ndarray).__name__})")
    from_numpy_dtype(ndarray.dtype)
    return wrap(ndarray)


def from_dlpack(ext_tensor: Any) -> Tensor:
    """A tensor over the memory of another library's array, on the CPU or a GPU (DLPack protocol)."""
    kind, index = ext_tensor.__dlpack_device__()
    if kind == _DLPACK_CUDA:
        return wrap(namespace_on(as_device(f"cuda:{index}")).from_dlpack(ext_tensor))
    return from_numpy(np.from_dlpack(ext_tensor))


#: DLPack's number for CUDA's devices.
_DLPACK_CUDA = 2


def _shape(size: tuple[Any, ...], op: str) -> tuple[int, ...]:
    if len(size) == 1 and isinstance(size[0], Sequence):
        size = tuple(size[0])
    try:
        shape = tuple(index(s) for s in size)
    except TypeError:
        raise TypeError(f"{op}: sizes must be ints, got {size}") from None
    if any(s < 0 for s in shape):
        raise RuntimeError(f"{op}: trying to create tensor with negative dimension: {list(shape)}")
    return shape


def _kind(given: Any) -> Any:
    return (get_default_dtype() if given is None else as_dtype(given)).numpy


@factory
def zeros(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the given sizes, filled with 0."""
    return _finish(np.zeros(_shape(size, "zeros"), _kind(dtype)), device, requires_grad)


@factory
def ones(*size: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the given sizes, filled with 1."""
    return _finish(np.ones(_shape(size, "ones"), _kind(dtype)), device, requires_grad)


@factory
def empty(
    *size: Any,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = contiguous_format,
) -> Tensor:
    """A tensor of the given sizes with whatever values the memory holds."""
    array = np.empty(_shape(size, "empty"), _kind(dtype))
    if memory_format is preserve_format:
        raise RuntimeError("empty: preserve_format needs a tensor to be like; use empty_like")
    if memory_format is not contiguous_format:
        array = empty_in(array, memory_format)
    return _finish(array, device, requires_grad)


@factory
def full(
    size: Sequence[int],
    fill_value: float,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of the given sizes, filled with one value (whose type decides the dtype)."""
    value = fill_value.item() if isinstance(fill_value, (Tensor, np.generic)) else fill_value
    kind = _from_data(value, None).dtype if dtype is None else as_dtype(dtype).numpy
    shape = _shape((size,), "full")
    return _finish(np.full(shape, _fill_value(value, kind), kind), device, requires_grad)


def _fill_value(value: Any, kind: np.dtype[Any]) -> Any:
    """A number as `kind` takes it: cut to an integer, and negative ones modulo an unsigned range."""
    if kind.kind not in "iu" or isinstance(value, complex):
        return value
    limits = np.iinfo(kind)
    lowest = limits.min or -limits.max
    if not (np.isfinite(value) and lowest <= int(value) <= limits.max):
        raise RuntimeError(
            f"full: value {value} cannot be converted to type {FROM_NUMPY[kind]} without overflow"
        )
    return int(value) % (limits.max + 1) if limits.min == 0 else int(value)


@factory
def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """The n x m matrix with ones on its diagonal."""
    for name, size in (("n", n), ("m", n if m is None else m)):
        if not isinstance(size, (int, np.integer)):
            raise TypeError(f"eye(): argument {name!r} must be int, not {type(size).__name__}")
        if size < 0:
            raise RuntimeError(f"eye: {name} must be greater or equal to 0, got {size}")
    return _finish(np.eye(n, m, dtype=_kind(dtype)), device, requires_grad)


def _like(
    make: Any, input: Tensor, dtype: Any, device: Any, requires_grad: bool, memory_format: Any
) -> Tensor:
    check_tensor(f"{make.__name__}_like", input)
    kind = input.dtype if dtype is None else as_dtype(dtype)
    place = input.device if device is None else device
    if memory_format is contiguous_format or (
        memory_format is preserve_format and input.is_contiguous()
    ):
        return make(input._array.shape, dtype=kind, device=place, requires_grad=requires_grad)
    array = empty_in(input._array, memory_format, kind.numpy)
    if make is not empty:
        np.copyto(array, make(array.shape, dtype=kind, device=input.device)._array)
    return _finish(array, place, requires_grad)


@factory
def zeros_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Zeros with the shape and dtype of `input`."""
    return _like(zeros, input, dtype, device, requires_grad, memory_format)


@factory
def ones_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Ones with the shape and dtype of `input`."""
    return _like(ones, input, dtype, device, requires_grad, memory_format)


@factory
def empty_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Uninitialised, with the shape and dtype of `input`."""
    return _like(empty, input, dtype, device, requires_grad, memory_format)


@factory
def full_like(
    input: Tensor,
    fill_value: float,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """One value everywhere, with the shape and dtype of `input`."""

    def make(size: Any, **options: Any) -> Tensor:
        return full(size, fill_value, **options)

    make.__name__ = "full"
    return _like(make, input, dtype, device, requires_grad, memory_format)


def _floating(op: str, given: Any) -> Any:
    kind = _kind(given)
    if kind.kind in "biu":
        raise NotImplementedError(
            f"{op}: not implemented for {FROM_NUMPY[kind]}; expected floating point"
        )
    return kind


@factory
def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Uniform draws from [0, 1)."""
    kind = _floating("rand", dtype)
    values = (generator or default_generator()).stream().random(_shape(size, "rand"))
    # Rounding to fewer digits may reach 1, which the half-open range excludes.
    below_one = np.nextafter(kind.type(1), kind.type(0)) if kind.itemsize > 2 else kind.type(0.99)
    return _finish(as_array(np.minimum(values.astype(kind), below_one)), device, requires_grad)


@factory
def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Draws from the standard normal distribution."""
    kind = _floating("randn", dtype)
    values = (generator or default_generator()).stream().standard_normal(_shape(size, "randn"))
    return _finish(np.asarray(values).astype(kind), device, requires_grad)


@factory
def randint(
    low: int | None = None,
    high: int | Sequence[int] | None = None,
    size: Sequence[int] | None = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """Integers drawn uniformly from [low, high): `randint(high, size)` or `randint(low, high, size)`."""
    if isinstance(high, (tuple, list)) and size is None:
        high, size = None, high
    if high is None:
        low, high = None, low
    low = 0 if low is None else low
    if size is None or not isinstance(high, int):
        raise TypeError(
            f"randint(): expected (high, size) or (low, high, size), got {low}, {high}, {size}"
        )
    if high <= low:
        raise RuntimeError(
            f"randint: random_ expects 'from' to be less than 'to', but got from={low} >= to={high}"
        )
    values = (
        (generator or default_generator()).stream().integers(low, high, _shape((size,), "randint"))
    )
    return _finish(
        values.astype((int64 if dtype is None else as_dtype(dtype)).numpy), device, False
    )


@factory
def randperm(
    n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None
) -> Tensor:
    """A random permutation of 0 .. n-1.

    Raises:
        RuntimeError: `n` is negative.
    """
    if n < 0:
        raise RuntimeError(f"randperm: n must be non-negative, got {n}")
    values = (generator or default_generator()).stream().permutation(n)
    return _finish(
        values.astype((int64 if dtype is None else as_dtype(dtype)).numpy), device, False
    )


@factory
def rand_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Uniform draws with the shape and dtype of `input`."""
    return _like(rand, input, dtype, device, requires_grad, memory_format)


@factory
def randn_like(
    input: Tensor,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    memory_format: Any = preserve_format,
) -> Tensor:
    """Normal draws with the shape and dtype of `input`."""
    return _like(randn, input, dtype, device, requires_grad, memory_format)


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a Tensor."""
    return isinstance(obj, Tensor)
