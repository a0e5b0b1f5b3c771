"""What the C library does with memory: what was freed, and in which pages the heap lies.

Owns: `prepare`, `give_back_freed_pages`. Both are without effect where the C library is not glibc.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

#: Of <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
#: Of <sys/mman.h>.
_HUGE_PAGES = 14
#: The heap grows by so many bytes at least; they are addresses, which take no memory until they are written to.
_GROWTH = 64 << 20


def _from_c_library(name: str, result: Any = ctypes.c_int) -> Any:
    try:
        found = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    found.restype = result
    return found


@cache
def prepare() -> None:
    """Make the heap of this process one for arrays that come and go with every step.

    Freed memory stays for the next array instead of going back to the system: a step frees and allocates
    the same large arrays as the one before, and a page that comes fresh from the system costs as much as
    several passes over it. What is kept is what the process has used at its peak.

    The heap lies in large pages, where the system has them to give: a step goes through more small ones
    than the processor remembers the places of.
    """
    adjust = _from_c_library("mallopt")
    if adjust is None:
        return
    adjust(_MMAP_THRESHOLD, 32 << 20)
    adjust(_TRIM_THRESHOLD, 1 << 30)
    adjust(_TOP_PAD, _GROWTH)
    allocate, free = _from_c_library("malloc", ctypes.c_void_p), _from_c_library("free", None)
    end_of_heap, advise = _from_c_library("sbrk", ctypes.c_void_p), _from_c_library("madvise")
    # More than lies freed in the heap of a process that has just started: makes the heap grow.
    start = allocate(ctypes.c_size_t(16 << 20))
    free(ctypes.c_void_p(start))
    size = (end_of_heap(ctypes.c_ssize_t(0)) or 0) - (start or 0)
    if start and 0 < size < 2 * _GROWTH:  # else this is not where the heap grows
        page = -(-start // 4096) * 4096
        advise(ctypes.c_void_p(page), ctypes.c_size_t(size), ctypes.c_int(_HUGE_PAGES))


def give_back_freed_pages() -> None:
    """Give what was freed back to the system, where no step will need as much again."""
    trim = _from_c_library("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))
