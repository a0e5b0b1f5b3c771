"""What the C library does with memory that was freed.

Owns: `keep_freed_pages`, `give_back_freed_pages`. Both are without effect where the C library is not glibc.
"""

from __future__ import annotations

import ctypes
from typing import Any


def _from_c_library(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None


def keep_freed_pages() -> None:
    """Let the C library keep freed memory for the next array instead of giving it back to the system.

    A step frees and allocates the same large arrays as the one before; a page that comes fresh from the
    system costs as much as several passes over it. What is kept is what the process has used at its
    peak.
    """
    adjust = _from_c_library("mallopt")
    if adjust is None:
        return
    most_from_heap, keep_at_top = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of <malloc.h>
    adjust(most_from_heap, 32 << 20)
    adjust(keep_at_top, 1 << 30)


def give_back_freed_pages() -> None:
    """Give what was freed back to the system, where no step will need as much again."""
    trim = _from_c_library("malloc_trim")
    if trim is not None:
        trim(0)
