"""Another process of this host: whether it lives, and reading and writing its memory.

Owns: `Peer`, over /proc, process_vm_readv(2) and process_vm_writev(2), called through ctypes. Must not
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


class Peer:
    """The process `pid`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def has_ended(self) -> bool:
        """Whether the process is gone, or only waits for its parent to take note of that."""
        try:
            with open(f"/proc/{self._pid}/stat") as facts:
                return facts.read().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            pass
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # Somebody else's: it is there.
        return False

    def read(self, begin: int, into: Array) -> None:
        """Copy what lies at address `begin` there into the contiguous array `into`.

        Raises:
            OSError: the process has ended, or the system does not allow it.
        """
        self._copy(_read, begin, into)

    def write(self, begin: int, array: Array) -> None:
        """Copy the contiguous `array` to address `begin` there.

        Raises:
            OSError: as `read`.
        """
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
