"""The byte order that is assumed of files that do not state theirs (PyTorch before 2.1).

Owns: that setting. Must not know: files.
"""

from __future__ import annotations

import sys
from enum import Enum


class LoadEndianness(Enum):
    """A byte order, or that of this machine."""

    NATIVE = 1
    LITTLE = 2
    BIG = 3


_assumed: LoadEndianness | None = None


def get_default_load_endianness() -> LoadEndianness | None:
    """What `set_default_load_endianness` was given; None means little-endian."""
    return _assumed


def set_default_load_endianness(endianness: LoadEndianness | None) -> None:
    """Say which byte order files have that do not state theirs.

    Raises:
        TypeError: no LoadEndianness.
    """
    global _assumed
    if not isinstance(endianness, LoadEndianness) and endianness is not None:
        raise TypeError("Invalid argument type in function set_default_load_endianness")
    _assumed = endianness


def assumed_byteorder() -> str:
    """That order as `sys.byteorder` names it."""
    if _assumed is LoadEndianness.NATIVE:
        return sys.byteorder
    return "big" if _assumed is LoadEndianness.BIG else "little"
