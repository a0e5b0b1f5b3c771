"""Raw memory for kernels: addresses of arrays, copies of bytes, arrays over an address, scratch.

Owns: what a kernel needs between the 64-bit integers it is given and the numbers it computes with.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.core.kernels.deferred import carray, cgutils, intrinsic, ir, njit, types

_LINE = 64


def _by_interface(array: np.ndarray) -> int:
    if isinstance(array, np.generic):  # its address is that of a copy, which is gone by now
        raise TypeError(f"the address of a number of NumPy's, {array!r}, was asked for")
    return int(array.__array_interface__["data"][0])


#: NumPy's public C structure of an array begins with the address, behind what every Python object begins with.
_HEAD = object.__basicsize__
_WORD = ctypes.sizeof(ctypes.c_size_t)
#: All memory as one array of words: an item of it is read by one call.
_words = (ctypes.c_size_t * (sys.maxsize // _WORD)).from_address(0)
_Array = np.ndarray
_PLAIN = {_Array}


def _in_structure(array: np.ndarray) -> int:
    if type(array) is _Array:
        return _words[(id(array) + _HEAD) // _WORD]
    return _by_interface(array)  # which refuses what is no array


def _structure_is_known() -> bool:
    samples = np.zeros(3), np.zeros((2, 2), np.float32)[1:]
    return sys.implementation.name == "cpython" and all(
        _in_structure(a) == _by_interface(a) for a in samples
    )


#: Where the first element of an array lies. A call of a kernel asks for some ten addresses, and the
#: interface takes ten times as long.
address = _in_structure if _structure_is_known() else _by_interface


_is_in_structure = address is _in_structure


def addresses(arrays: Sequence[np.ndarray]) -> list[int]:
    """`address` of each of some arrays, in one call, as there is one for each kernel that runs."""
    if _is_in_structure and set(map(type, arrays)) == _PLAIN:
        return [_words[(number + _HEAD) // _WORD] for number in map(id, arrays)]
    return [address(array) for array in arrays]


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.provide(0)

    def provide(self, nbytes: int) -> None:
        """Hold `nbytes` from a cache line on."""
        self.held, self.size = np.empty(nbytes + _LINE, np.uint8), nbytes
        self.start = -(-address(self.held) // _LINE) * _LINE


_scratch = _Scratch()


def scratch(nbytes: int) -> int:
    """Memory of this thread for the kernel that is called next, at a cache line; its contents are anything."""
    if _scratch.size < nbytes:
        _scratch.provide(nbytes)
    return _scratch.start


def lines(nbytes: int) -> int:
    """`nbytes` rounded up to whole cache lines, so that no two threads write to one."""
    return -(-nbytes // _LINE) * _LINE


@intrinsic
def move(typing_context: Any, target: Any, source: Any, nbytes: Any) -> Any:
    """Copy bytes between addresses that do not overlap."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to, start = (builder.inttoptr(v, ir.IntType(8).as_pointer()) for v in values[:2])
        cgutils.raw_memcpy(builder, to, start, values[2], 1)
        return context.get_dummy_value()

    return types.void(target, source, nbytes), generate


@intrinsic
def zero(typing_context: Any, target: Any, nbytes: Any) -> Any:
    """Fill bytes with zeros."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        to = builder.inttoptr(values[0], ir.IntType(8).as_pointer())
        cgutils.memset(builder, to, values[1], ir.IntType(8)(0))
        return context.get_dummy_value()

    return types.void(target, nbytes), generate


@intrinsic
def _pointer(typing_context: Any, start: Any, real: Any) -> Any:
    kind = types.CPointer(real.dtype)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(kind))

    return kind(start, real), generate


@njit(inline="always")
def array_at(start, shape, real):
    """An array of numbers of type `real` over an address; `shape` is a tuple."""
    return carray(_pointer(start, real), shape)
