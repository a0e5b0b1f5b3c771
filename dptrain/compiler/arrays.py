"""Arrays of a step that is being recorded: they compute at once and tell the recording what was computed.

Owns: `TracedArray`, `Address`, `TracedNamespace` (what `numpy` is for other arrays), and what the core asks of both.
Must not know: how a recording keeps what it is told.

To the core a `TracedArray` is what an array of a GPU is: no `numpy.ndarray`; NumPy's functions, operators and
methods reach it through protocols and attributes, and kernels through `kernels_for`. Nothing turns it into
numbers of Python without the recording noticing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dptrain.core.arrays import HOST_TYPES, REMOTE, Library
from dptrain.core.device import device, host_device
from dptrain.core.host_array import Operators

if TYPE_CHECKING:
    from dptrain.compiler.trace import Block, Trace

#: Attributes that are the same whatever the values.
_FACTS = frozenset(["shape", "ndim", "dtype", "size", "nbytes", "itemsize", "strides", "flags"])
_VIEWS = frozenset(["T", "mT", "real", "imag"])


def place_in(host: np.ndarray, place: Any) -> Any:
    """`host[place]`, as an array even where it is one element."""
    found = host[place]
    if isinstance(found, np.generic):
        return host[(*place, ...) if type(place) is tuple else (place, ...)]
    return found


def put_in(host: np.ndarray, place: Any, value: Any) -> None:
    """`host[place] = value`."""
    host[place] = value


class Place(NamedTuple):
    """An address as it is the same in every recording: how many bytes into which block."""

    block: int
    offset: int


class Address(int):
    """An address that knows whose it is, so that two recordings can be compared."""

    place: Place

    def __new__(cls, value: int, block: int, offset: int) -> Address:
        made = super().__new__(cls, value)
        made.place = Place(block, offset)
        return made

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, (int, np.integer)):
            return NotImplemented
        block, offset = self.place
        return Address(int(self) + int(other), block, offset + int(other))

    __radd__ = __add__


class TracedArray(Operators):
    """An array whose uses are recorded.

    Attributes:
        host: the values, in memory that belongs to the recording (or to what existed before it).
        block: that memory.
        trace: the recording.
    """

    __slots__ = ("block", "host", "trace")

    def __init__(self, host: np.ndarray, block: Block, trace: Trace) -> None:
        self.host, self.block, self.trace = host, block, trace

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        return self.trace.call(function, args, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return self.trace.call(function, args, kwargs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.trace.refuse("a tensor's memory was handed out as a NumPy array")
        return np.array(self.host, dtype=dtype, copy=copy)

    def __getattr__(self, name: str) -> Any:
        if name in _FACTS:
            return getattr(self.host, name)
        if name.startswith("__"):  # no array interface, no buffer
            raise AttributeError(name)
        if name in _VIEWS:
            return TracedArray(getattr(self.host, name), self.block, self.trace)
        if name == "base":
            return self.host.base
        method = getattr(np.ndarray, name)
        if not callable(method):
            self.trace.refuse(f"the attribute {name!r} of an array was read")
            return getattr(self.host, name)
        if name in ("item", "tolist", "tobytes", "dump", "dumps", "tofile"):
            self.trace.refuse(f"values were read (.{name}())")
            return getattr(self.host, name)
        return lambda *args, **kwargs: self.trace.call(method, (self, *args), kwargs)

    def __getitem__(self, place: Any) -> Any:
        return self.trace.call(place_in, (self, place), {})

    def __setitem__(self, place: Any, value: Any) -> None:
        self.trace.call(put_in, (self, place, value), {})

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return self.trace.decide(self)

    def __int__(self) -> int:
        self.trace.refuse("a value was read (int)")
        return int(self.host)

    def __float__(self) -> float:
        self.trace.refuse("a value was read (float, .item())")
        return float(self.host)

    def __index__(self) -> int:
        self.trace.refuse("a value was used as an index")
        return self.host.__index__()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.copy(order="K")

    def __reduce__(self) -> Any:
        self.trace.refuse("a tensor was pickled")
        return self.host.__reduce__()

    def __repr__(self) -> str:
        self.trace.refuse("a tensor was printed")
        return repr(self.host)


class _TracedLibrary(Library):
    """What the core asks about traced arrays."""

    def device_of(self, array: Any) -> device:
        return host_device(0)

    def namespace_of(self, array: Any) -> Any:
        return array.trace.namespace

    def functions_beside(self, array: Any, module: Any) -> Any:
        return array.trace.kernels(module)

    def run_beside(self, array: Any, function: Callable[..., Any], *args: Any) -> Any:
        return array.trace.call(function, args, {})

    def to_host(self, array: Any, non_blocking: bool = False) -> np.ndarray:
        array.trace.refuse("values were read (.numpy(), .item(), .tolist() or printing)")
        host: np.ndarray = array.host
        return host

    def address(self, array: Any) -> int:
        array.trace.refuse("the address of a tensor was read")
        return int(array.host.__array_interface__["data"][0])


REMOTE[TracedArray] = _TracedLibrary()
HOST_TYPES.add(TracedArray)


class TracedNamespace:
    """What `numpy` is for NumPy's arrays, for those of a recording.

    Args:
        trace: the recording.
        module: where the functions come from.
    """

    def __init__(self, trace: Trace, module: ModuleType) -> None:
        self._trace = trace
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if isinstance(value, ModuleType):
            value = TracedNamespace(self._trace, value)
        elif callable(value) and not isinstance(value, type):
            value = TracedFunction(self._trace, value)
        setattr(self, name, value)  # found directly from now on
        return value


class TracedFunction:
    """A function (or ufunc, with its methods) whose calls are recorded."""

    __slots__ = ("_function", "_trace")

    def __init__(self, trace: Trace, function: Callable[..., Any]) -> None:
        self._trace = trace
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._trace.call(self._function, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return TracedFunction(self._trace, getattr(self._function, name))
