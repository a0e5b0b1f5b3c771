"""Reading and writing the memory of another process of this host.

Owns: `PeerMemory`, over process_vm_readv(2) and process_vm_writev(2), called through ctypes. Must not
know: MPI, ranks' calls.

One copy by the kernel takes the place of two through a staging area, and no meeting is needed in
between. Whether it is allowed depends on the system (ptrace rules, containers), so it is tried first.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    found = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if found is not None:
        pieces = (ctypes.POINTER(_Piece), ctypes.c_ulong)
        found.restype = ctypes.c_ssize_t
        found.argtypes = (ctypes.c_int, *pieces, *pieces, ctypes.c_ulong)
    return found


_read, _write = _function("process_vm_readv"), _function("process_vm_writev")


class PeerMemory:
    """The memory of the process `pid`.

    Raises:
        OSError: from its methods: the process has ended, or the system does not allow it.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def read(self, begin: int, into: Array) -> None:
        """Copy what lies at address `begin` there into the contiguous array `into`."""
        self._copy(_read, begin, into)

    def write(self, begin: int, array: Array) -> None:
        """Copy the contiguous `array` to address `begin` there."""
        self._copy(_write, begin, array)

    def _copy(self, function: ctypes._NamedFuncPointer | None, begin: int, array: Array) -> None:
        if function is None:
            raise OSError("this system has no access to the memory of other processes")
        here, done = array.__array_interface__["data"][0], 0
        while done < array.nbytes:  # one call moves 2 GiB at most, and stops where pages end
            left = array.nbytes - done
            own, theirs = _Piece(here + done, left), _Piece(begin + done, left)
            moved = function(self._pid, own, 1, theirs, 1, 0)
            if moved <= 0:
                code = ctypes.get_errno()
                raise OSError(code, f"process {self._pid}: {os.strerror(code)}")
            done += moved
