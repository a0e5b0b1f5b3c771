"""What the core asks of an array, whichever library made it: is it one, where does it live, who computes with it.

Owns: the list of array types and the questions, which the library of each type answers. Must not know: tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from dptrain.core.device import device, host_device
from dptrain.core.host_array import HostArray, host_namespace, mismatch, run_on_host
from dptrain.core.transfers import report


class Library:
    """What is asked about the arrays of one library that live elsewhere than in NumPy's memory."""

    #: Whether its arrays live on a GPU.
    gpu = False

    def device_of(self, array: Any) -> device:
        """Where an array lives."""
        raise NotImplementedError

    def namespace_of(self, array: Any) -> Any:
        """What makes arrays beside this one."""
        raise NotImplementedError

    def functions_beside(self, array: Any, module: Any) -> Any:
        """The functions of a module over NumPy arrays, for arrays that live where this one does."""
        raise NotImplementedError

    def run_beside(self, array: Any, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function over NumPy arrays with arrays that live where `array` does."""
        raise NotImplementedError

    def elsewhere(self, array: Any) -> AbstractContextManager[Any] | None:
        """A guard under which work on the array has to run, if it has to."""
        return None

    def to_host(self, array: Any, non_blocking: bool = False) -> np.ndarray:
        """A copy in NumPy's memory."""
        raise NotImplementedError

    def receive(self, array: Any, place: device, non_blocking: bool = False) -> Any:
        """A copy of an array that lives anywhere else, on `place`."""
        raise NotImplementedError

    def address(self, array: Any) -> int:
        """Where the first element lies in memory."""
        raise NotImplementedError


class _HostLibrary(Library):
    """The virtual host devices but the first."""

    def device_of(self, array: Any) -> device:
        return host_device(array.index)

    def namespace_of(self, array: Any) -> Any:
        return host_namespace(array.index)

    def functions_beside(self, array: Any, module: Any) -> Any:
        return host_namespace(array.index, module)

    def run_beside(self, array: Any, function: Callable[..., Any], *args: Any) -> Any:
        return run_on_host(function, array.index, args, {})

    def to_host(self, array: Any, non_blocking: bool = False) -> np.ndarray:
        copy: np.ndarray = array.host.copy(order="K")
        return copy

    def receive(self, array: Any, place: device, non_blocking: bool = False) -> Any:
        host = to_host(array)
        return HostArray(host.copy(order="K") if host is array else host, place.index or 0)

    def address(self, array: Any) -> int:
        return address(array.host)


_HOST = _HostLibrary()

#: Types of arrays that live elsewhere than in NumPy's memory, the `cpu:0` of all devices. CuPy's joins
#: when a CUDA device is used for the first time; see `core/cuda.py`.
REMOTE: dict[type, Library] = {HostArray: _HOST}

#: Types of arrays in the host's memory that meet plain numbers as NumPy's do.
HOST_TYPES: set[type] = {np.ndarray}


def _no_cuda() -> Any:
    raise RuntimeError("a CUDA device is used before `dptrain.core.cuda` was imported")


#: Gives the library whose arrays live on CUDA devices; core/cuda.py puts here what loads it on first use.
cuda_library: Callable[[], Any] = _no_cuda

#: Whether work has to mind which GPU is the current one.
several_gpus = False


def register_cuda(several: bool) -> None:
    """Say that CUDA devices are used, and whether there are several."""
    global several_gpus
    several_gpus = several


def is_array(value: Any) -> bool:
    """Whether `value` is an array (and not a number, a list or None)."""
    return isinstance(value, np.ndarray) or type(value) in REMOTE


def on_gpu(value: Any) -> bool:
    """Whether `value` is an array on a GPU."""
    library = REMOTE.get(type(value))
    return library is not None and library.gpu


def is_writeable(array: Any) -> bool:
    """Whether values can be stored: NumPy says so; elsewhere, where no two elements share memory."""
    found = getattr(array.flags, "writeable", None)
    if found is None:
        return all(step or size < 2 for size, step in zip(array.shape, array.strides, strict=True))
    return bool(found)


def allow_writing(view: Any, wanted: bool) -> None:
    """Let values be stored through a view, or forbid it; only NumPy's arrays ask."""
    if hasattr(view.flags, "writeable"):
        view.flags.writeable = wanted


def shares_memory(view: Any, source: Any) -> bool:
    """Whether an array looks at the memory of another one: of what may have been made as a view of it."""
    base = view.base if type(view) is np.ndarray else None
    if base is not None and (base is source or base is source.base):
        return True
    return bool(np.may_share_memory(view, source))


def broadcast_to(array: Any, shape: tuple[int, ...]) -> Any:
    """`np.broadcast_to`: a view, which cannot be written, as large as `shape`."""
    lead = len(shape) - array.ndim
    if type(array) is np.ndarray and array.dtype.kind in "fiub" and array.flags.c_contiguous:
        # By hand: NumPy makes it with an iterator, which takes ten times as long.
        fits, steps = lead >= 0, [0] * lead
        for size, wanted, step in zip(array.shape, shape[lead:], array.strides, strict=fits):
            fits = fits and size in (1, wanted)
            steps.append(0 if size == 1 else step)
        if fits and 0 not in shape:
            view: Any = np.ndarray(shape, array.dtype, array, 0, tuple(steps))
            view.flags.writeable = False
            return view
    return namespace_of(array).broadcast_to(array, shape)


def device_of(array: Any) -> device:
    """Where an array lives."""
    library = REMOTE.get(type(array))
    return host_device(0) if library is None else library.device_of(array)


def namespace_of(array: Any) -> Any:
    """What makes arrays beside this one and computes with them: `numpy` on `cpu:0`."""
    library = REMOTE.get(type(array))
    return np if library is None else library.namespace_of(array)


def functions_beside(array: Any, module: Any) -> Any:
    """The functions of a module over NumPy arrays, for arrays that live where this one does."""
    library = REMOTE.get(type(array))
    return module if library is None else library.functions_beside(array, module)


def run_beside(array: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function over NumPy arrays with arrays that live where `array` does."""
    library = REMOTE.get(type(array))
    return function(*args) if library is None else library.run_beside(array, function, *args)


def elsewhere(values: Any) -> AbstractContextManager[Any] | None:
    """The guard under which work on the arrays among `values` has to run; None if it can run now.

    Work on a GPU's arrays has to run while that GPU is the current one.
    """
    if not several_gpus:
        return None
    for value in values:
        library = REMOTE.get(type(value))
        if library is not None:
            return library.elsewhere(value)
    return None


def beside(array: Any) -> AbstractContextManager[Any]:
    """Inside this `with` block work on arrays that live where `array` does can run."""
    return elsewhere((array,)) or _HERE


_HERE = nullcontext()


def namespace_on(place: device) -> Any:
    """What makes arrays on a device."""
    if place.type == "cuda":
        return cuda_library().namespace(place.index)
    return host_namespace(place.index) if place.index else np


def common_namespace(arrays: Any) -> Any:
    """The namespace of arrays that have to live on one device.

    Raises:
        DeviceMismatchError: they do not.
    """
    first = None
    for array in arrays:
        if is_array(array):
            if first is None:
                first = array
            elif device_of(array) != device_of(first):
                raise mismatch(device_of(first), device_of(array))
    return np if first is None else namespace_of(first)


def grid(shape: tuple[int, ...], xp: Any) -> list[Any]:
    """The places of an array of that shape: one index array per dimension, broadcast against each other."""
    return [
        xp.arange(size).reshape([-1 if d == k else 1 for k in range(len(shape))])
        for d, size in enumerate(shape)
    ]


def greatest(values: Any, axis: int | None = None) -> Any:
    """The largest of values that are not negative, 0 where there are none (`initial=` is NumPy's alone)."""
    if values.size:
        return values.max(axis)
    shape = () if axis is None else np.delete(values.shape, axis).tolist()
    return namespace_of(values).zeros(shape, values.dtype)


def as_array(value: Any) -> Any:
    """`value` itself if it is an array, else (a NumPy number) an array of no dimension."""
    return value if is_array(value) else np.asarray(value)


def placed_beside(values: Any, array: Any) -> Any:
    """Values from the host (an array or a number) as an array where `array` lives."""
    on_host = type(array) is np.ndarray  # in a recording the values are no array of NumPy's
    return as_array(values) if on_host else namespace_of(array).asarray(values)


def to_host(array: Any, non_blocking: bool = False) -> np.ndarray:
    """The values in NumPy's memory: the array itself if it is there, else a copy.

    With `non_blocking` a copy from a GPU may not be complete before its stream is.
    """
    library = REMOTE.get(type(array))
    if library is None:
        host: np.ndarray = array
        return host
    report("copy", array)
    return library.to_host(array, non_blocking)


def move(array: Any, place: device, non_blocking: bool = False) -> Any:
    """The values on another device: the array itself if it lives there, else a copy."""
    here = device_of(array)
    if here is place or here == place:
        return array
    if place.type == "cuda":
        return cuda_library().receive(array, place, non_blocking)
    return _HOST.receive(array, place) if place.index else to_host(array, non_blocking)


def address(array: Any) -> int:
    """Where the first element lies in memory."""
    library = REMOTE.get(type(array))
    if library is None:
        return int(array.__array_interface__["data"][0])
    return library.address(array)


def span(array: Any) -> tuple[int, int]:
    """Address of the first byte that an array looks at, and of that after the last."""
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    start = address(array)
    if not array.size:
        return start, start
    return start + sum(min(r, 0) for r in reach), start + sum(
        max(r, 0) for r in reach
    ) + array.itemsize
