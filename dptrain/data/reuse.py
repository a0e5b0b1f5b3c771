"""Memory of past batches, used again for the next ones.

Owns: `ReusedArrays`. Must not know: what is kept in them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

#: Smaller arrays are not worth a search: the process has memory for them at hand.
LEAST_BYTES = 64 * 1024
_MOST_KEPT = 4
#: References that the search itself makes: the list's, the variable's and the argument's.
_OWN_REFERENCES = 3
_COUNTS_REFERENCES = (
    sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()
)


class ReusedArrays:
    """Gives out arrays, and gives them out again once nothing else refers to them.

    New memory costs a page fault for every 4 KiB, about as much time as a gather into it. Views, tensors and
    buffers of an array all refer to it, so that it comes back only when none is left.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array with any values."""
        for i in range(len(self._arrays)):
            kept = self._arrays[i]
            if (
                sys.getrefcount(kept) == _OWN_REFERENCES
                and kept.shape == shape
                and kept.dtype == dtype
            ):
                return kept
        array = np.empty(shape, dtype)
        if array.nbytes >= LEAST_BYTES and _COUNTS_REFERENCES:
            self._arrays = [*self._arrays[1 - _MOST_KEPT :], array]
        return array

    def __reduce__(self) -> tuple[Any, ...]:
        return ReusedArrays, ()
