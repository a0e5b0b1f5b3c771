"""Memory that was handed out in parts: which part of a flat buffer an array looks into.

Owns: the list of divided memory. Must not know: tensors, and what the parts are for.

An array that looks into one part has that part as its storage, whoever made the view and by whatever
path, so that what shows, shares or saves storages never meets the whole buffer.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import numpy as np

from dptrain.core.arrays import address, span
from dptrain.core.host_array import HostArray

#: By the owner's id: the owner, and the first and last address of its parts, in order. The owner is
#: held weakly, and its entry goes with it.
_DIVIDED: dict[int, tuple[weakref.ref[np.ndarray], list[int], list[int]]] = {}


def root_of(array: Any) -> np.ndarray:
    """The NumPy array that owns the memory of `array` (or looks into what is no array)."""
    root: Any = array.host if type(array) is HostArray else array
    while isinstance(root.base, np.ndarray):
        root = root.base
    found: np.ndarray = root
    return found


def divide(memory: Any, parts: Iterable[tuple[int, int]]) -> None:
    """Say that elements [start, stop) of `memory` are parts of their own.

    Args:
        memory: a one-dimensional contiguous array.
        parts: start and stop of each in ascending order, without overlap.
    """
    root, first, step = root_of(memory), address(memory), memory.itemsize
    key, last = id(root), first + memory.size * memory.itemsize
    known = _DIVIDED.get(key)
    # What the same memory was divided into before, outside of this stretch, stays.
    spans = (
        [(a, b) for a, b in zip(*known[1:], strict=True) if b <= first or a >= last]
        if known
        else []
    )
    spans += [(first + a * step, first + b * step) for a, b in parts if a < b]
    spans.sort()
    gone = weakref.ref(root, lambda _: _DIVIDED.pop(key, None)) if known is None else known[0]
    _DIVIDED[key] = gone, [a for a, _ in spans], [b for _, b in spans]


def owner_of(array: Any) -> Any:
    """The storage of an array: the part that it lies in, or all of the memory if it lies in none."""
    part = _part_of(array)
    return HostArray(part, array.index) if type(array) is HostArray else part


def _part_of(array: Any) -> np.ndarray:
    root = root_of(array)
    known = _DIVIDED.get(id(root))
    if known is None or not array.size:
        return root
    low, high = span(array)
    place = bisect_right(known[1], low) - 1
    if place < 0 or high > known[2][place]:
        return root
    origin = address(root)
    return root.reshape(-1).view(np.uint8)[known[1][place] - origin : known[2][place] - origin]
