"""Large arrays of this process, moved onto memory that its workers have mapped, too.

Owns: `move`. Must not know: datasets, workers.

A dataset of a gigabyte would otherwise be there twice: in the training process, and in the memory that the
workers share. The array stays where it is: its address keeps its meaning, only the pages behind it become
those of the shared memory, mapped privately. Who writes to the array gets a page of its own, as after a
fork, and the others do not see it.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import numpy as np

#: Smaller arrays are copied. The C library's allocator gives every larger block a mapping of its own.
LEAST_BYTES = 32 << 20
PAGE = mmap.PAGESIZE
#: Copied and moved at a time, so that memory never holds much of an array twice.
_STEP_BYTES = 4 << 20
_MAP_FIXED = 0x10


def move(source: np.ndarray, descriptor: int, target: np.ndarray, offset: int) -> None:
    """Copy an array's bytes into shared memory and put the copy's pages behind the array itself.

    Where that cannot be done, because the memory is not this process's alone (a mapped file, memory shared
    with others), the bytes are only copied.

    Args:
        source: uint8, contiguous.
        descriptor: of the shared memory.
        target: where the bytes go; a mapping of the shared memory, of the same length.
        offset: of `target` in the shared memory.
    """
    address = source.ctypes.data
    head = -address % PAGE
    pages = (source.size - head) // PAGE * PAGE
    if source.size < LEAST_BYTES or (offset - address) % PAGE or not _private(address, source.size):
        target[:] = source
        return
    target[:head] = source[:head]
    target[head + pages :] = source[head + pages :]
    for start in range(head, head + pages, _STEP_BYTES):
        nbytes = min(_STEP_BYTES, head + pages - start)
        # Neither call releases the GIL, so that no Python thread writes to the array in between.
        _libc().memmove(target.ctypes.data + start, address + start, nbytes)
        found = _libc().mmap(
            address + start,
            nbytes,
            mmap.PROT_READ | mmap.PROT_WRITE,
            mmap.MAP_PRIVATE | _MAP_FIXED,
            descriptor,
            offset + start,
        )
        if found != address + start:
            raise OSError(ctypes.get_errno(), f"mmap of {nbytes:,} bytes for workers failed")


@cache
def _libc() -> Any:
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    libc.memmove.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    libc.mmap.restype = ctypes.c_void_p
    return libc


def _private(address: int, nbytes: int) -> bool:
    """Whether these bytes are ordinary memory of this process, or what `move` made of it before."""
    try:
        with open("/proc/self/maps") as maps:
            lines = maps.readlines()
    except OSError:
        return False
    end = address
    for line in lines:
        # address-address permissions offset device inode path
        place, permissions, _, _, inode, *path = line.split(maxsplit=5)
        first, last = (int(part, 16) for part in place.split("-"))
        if first <= end < last:
            ordinary = inode == "0" and not path
            if permissions != "rw-p" or not (ordinary or "/memfd:dptrain" in path[0]):
                return False
            end = last
            if end >= address + nbytes:
                return True
    return False
