"""Arrays of the virtual host devices `cpu:1`, `cpu:2`, ...: NumPy arrays that know where they live.

Owns: `HostArray`, and `HostNamespace`, which is for one of these devices what `numpy` is for
`cpu:0`. Must not know: tensors.

A `HostArray` is to the rest of the core what a CuPy array is: it is no `numpy.ndarray`, NumPy's
functions and operators reach it through the `__array_function__` and `__array_ufunc__` protocols,
it refuses to meet an array of another device, and nothing turns it into a NumPy array implicitly.
Code that computes on virtual devices has thereby been shown not to go through the host in secret.
The memory is ordinary host memory; a move between devices copies it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from dptrain.core.transfers import report


class DeviceMismatchError(RuntimeError):
    """Arrays of two devices met in one computation."""


def mismatch(first: Any, second: Any) -> DeviceMismatchError:
    """The error for values on two devices, in PyTorch's words."""
    return DeviceMismatchError(
        f"Expected all tensors to be on the same device, but found at least two devices, {first} and "
        f"{second}! Move one of them first: tensor.to('{first}')"
    )


def _open(value: Any, index: int) -> Any:
    """The host memory behind the arrays of device `index` in an argument of any nesting."""
    if type(value) is HostArray:
        if value.index != index:
            raise mismatch(f"cpu:{index}", f"cpu:{value.index}")
        return value.host
    if isinstance(value, np.ndarray):
        raise mismatch(f"cpu:{index}", "cpu:0")
    if type(value) in (list, tuple):
        return type(value)(_open(v, index) for v in value)
    return value


def _close(value: Any, index: int) -> Any:
    """Results as arrays of device `index`; reductions stay arrays (of no dimension), as CuPy's."""
    if isinstance(value, (np.ndarray, np.generic)):
        return HostArray(np.asarray(value), index)
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        closed = [_close(v, index) for v in value]
        return type(value)(*closed) if hasattr(value, "_fields") else type(value)(closed)
    return value


def run_on_host(function: Callable[..., Any], index: int, args: Any, kwargs: Any) -> Any:
    """Call a function of host arrays with arrays of device `index`, and give its results back there.

    Raises:
        DeviceMismatchError: one of the arrays lives elsewhere.
    """
    opened = [_open(a, index) for a in args]
    return _close(function(*opened, **{k: _open(v, index) for k, v in kwargs.items()}), index)


def _giving_way(method: Any) -> Any:
    def operator(self: Any, other: Any) -> Any:
        return (
            NotImplemented if getattr(other, "__array_priority__", 0) > 0 else method(self, other)
        )

    return operator


class Operators(NDArrayOperatorsMixin):
    """The operators, which leave it to a Tensor on the right to answer, as those of NumPy and CuPy do."""


for _name in (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift"),
    *("rshift", "and", "xor", "or", "lt", "le", "eq", "ne", "gt", "ge"),
):
    setattr(Operators, f"__{_name}__", _giving_way(getattr(NDArrayOperatorsMixin, f"__{_name}__")))


class HostArray(Operators):
    """An array on virtual device `index`; `host` is its memory, for explicit copies only."""

    __slots__ = ("host", "index")

    def __init__(self, host: np.ndarray, index: int) -> None:
        self.host = host
        self.index = index

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if out is None:
            return run_on_host(getattr(ufunc, method), self.index, args, kwargs)
        run_on_host(getattr(ufunc, method), self.index, args, {**kwargs, "out": out})
        return out[0] if len(out) == 1 else out  # the very array, as NumPy returns it

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return run_on_host(function, self.index, args, kwargs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError(
            f"Implicit conversion of an array on cpu:{self.index} to a NumPy array is not allowed; "
            "move it to the host explicitly"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # no array interface, no buffer: they would be implicit ways out
            raise AttributeError(name)
        if name in ("item", "tolist"):
            report("read", self)
        value = getattr(self.host, name)
        if callable(value):
            return lambda *args, **kwargs: run_on_host(value, self.index, args, kwargs)
        return _close(value, self.index)

    def __getitem__(self, place: Any) -> Any:
        place = _open(place, self.index)
        found = self.host[place]
        if isinstance(found, np.generic):  # stays a view, as of an array of CuPy
            found = self.host[(*place, ...) if type(place) is tuple else (place, ...)]
        return _close(found, self.index)

    def __setitem__(self, place: Any, value: Any) -> None:
        self.host[_open(place, self.index)] = _open(value, self.index)

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        report("read", self)
        return bool(self.host)

    def __int__(self) -> int:
        report("read", self)
        return int(self.host)

    def __float__(self) -> float:
        report("read", self)
        return float(self.host)

    def __index__(self) -> int:
        report("read", self)
        return self.host.__index__()

    def __deepcopy__(self, memo: dict[int, Any]) -> HostArray:
        return HostArray(self.host.copy(order="K"), self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return HostArray, (self.host, self.index)

    def __repr__(self) -> str:
        return f"{self.host!r} on cpu:{self.index}"


class HostNamespace:
    """What `numpy` is for `cpu:0`, for another host device: `namespace.zeros(3)` lives there.

    Args:
        index: the device.
        module: where the functions come from.
    """

    def __init__(self, index: int, module: ModuleType | Any = np) -> None:
        self._index = index
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, ModuleType):
            value = HostNamespace(self._index, value)
        elif callable(value) and not isinstance(value, type):
            value = _Function(value, self._index)
        setattr(self, name, value)  # found directly from now on
        return value

    def asarray(self, value: Any, dtype: Any = None) -> Any:
        """The value on this device; host arrays are moved there (copied)."""
        if type(value) is HostArray:
            return run_on_host(np.asarray, self._index, (value, dtype), {})
        if not isinstance(value, np.ndarray):
            value = _open(value, self._index)
        return HostArray(np.array(value, dtype=dtype), self._index)

    array = asarray

    def ascontiguousarray(self, value: Any, dtype: Any = None) -> Any:
        """Likewise, in row-major order."""
        return run_on_host(np.ascontiguousarray, self._index, (value, dtype), {})


class _Function:
    """A function of NumPy (or one of its ufuncs, with its methods) on one host device."""

    __slots__ = ("_function", "_index")

    def __init__(self, function: Callable[..., Any], index: int) -> None:
        self._function = function
        self._index = index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return run_on_host(self._function, self._index, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return _Function(getattr(self._function, name), self._index)


@cache
def host_namespace(index: int, module: Any = np) -> HostNamespace:
    """The functions of a module on virtual device `index` (from 1: device 0 is NumPy itself)."""
    return HostNamespace(index, module)
