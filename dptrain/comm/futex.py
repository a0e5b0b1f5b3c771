"""Sleeping until a word of shared memory changes, across processes.

Owns: `wait` and `wake`. Must not know: what the words mean.

On Linux this is futex(2), called through ctypes, which lets other threads of this process run
meanwhile. A rank that waits costs no processor time that way, which matters where ranks outnumber
cores and where the waiting thread shares a process with one that computes. Elsewhere `wait` sleeps
for a moment and lets its caller look again.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import time

_FUTEX_WAIT = 0  # Without FUTEX_PRIVATE_FLAG: the word is shared between processes.
_FUTEX_WAKE = 1
_EVERYBODY = 2**31 - 1
_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_PAUSE_S = 100e-6


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _syscall() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        return None
    function = ctypes.CDLL(None).syscall
    function.restype = ctypes.c_long
    function.argtypes = (
        ctypes.c_long,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint32,
        ctypes.c_void_p,
    )
    return function


_call = _syscall()
_number = _NUMBERS.get(platform.machine(), 0)


def wait(address: int, expected: int, timeout_s: float) -> None:
    """Sleep while the 32-bit word at `address` is `expected`.

    Returns when somebody wakes the word, after `timeout_s`, at once if the word differs, or for no
    reason: the caller has to look at the word again.
    """
    if _call is None:
        time.sleep(min(timeout_s, _PAUSE_S))
        return
    seconds = int(timeout_s)
    timeout = _Timespec(seconds, int((timeout_s - seconds) * 1e9))
    _call(_number, address, _FUTEX_WAIT, expected, ctypes.addressof(timeout))


def wake(address: int) -> None:
    """Wake everybody who sleeps on the word at `address`."""
    if _call is not None:
        _call(_number, address, _FUTEX_WAKE, _EVERYBODY, None)
