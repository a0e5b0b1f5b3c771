"""What the core asks of an array, whichever library made it: is it one, where does it live, who computes with it.

Owns: the list of array types and the three questions. Must not know: tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.device import device, host_device
from dptrain.core.host_array import HostArray, host_namespace, mismatch, run_on_host

#: Types of arrays that live elsewhere than in NumPy's memory, the `cpu:0` of all devices.
REMOTE = {HostArray}


def is_array(value: Any) -> bool:
    """Whether `value` is an array (and not a number, a list or None)."""
    return isinstance(value, np.ndarray) or type(value) in REMOTE


def device_of(array: Any) -> device:
    """Where an array lives."""
    return host_device(array.index if type(array) is HostArray else 0)


def namespace_of(array: Any) -> Any:
    """What makes arrays beside this one and computes with them: `numpy` on `cpu:0`."""
    return host_namespace(array.index) if type(array) is HostArray else np


def functions_beside(array: Any, module: Any) -> Any:
    """The functions of a module over NumPy arrays, for arrays that live where this one does."""
    return host_namespace(array.index, module) if type(array) is HostArray else module


def run_beside(array: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function over NumPy arrays with arrays that live where `array` does."""
    return (
        run_on_host(function, array.index, args, {})
        if type(array) is HostArray
        else function(*args)
    )


def namespace_on(place: device) -> Any:
    """What makes arrays on a device."""
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


def as_array(value: Any) -> Any:
    """`value` itself if it is an array, else (a NumPy number) an array of no dimension."""
    return value if is_array(value) else np.asarray(value)


def to_host(array: Any) -> np.ndarray:
    """The values in NumPy's memory: the array itself if it is there, else a copy."""
    return array.host.copy(order="K") if type(array) is HostArray else array


def move(array: Any, place: device) -> Any:
    """The values on another device: the array itself if it lives there, else a copy."""
    if device_of(array) == place:
        return array
    host = to_host(array)
    return (
        HostArray(host.copy(order="K") if host is array else host, place.index)
        if place.index
        else host
    )


def address(array: Any) -> int:
    """Where the first element lies in memory."""
    host = array.host if type(array) is HostArray else array
    return int(host.__array_interface__["data"][0])
