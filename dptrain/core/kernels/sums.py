"""The sum or the average of two arrays, written into both in one pass over memory, with the bits of the ufuncs.

Two ranks of a host reduce a gradient bucket so. Of more arrays than two the memory gives no more than NumPy's
passes over blocks take. Serial: the ranks share the memory's bandwidth.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import address, array_at

real: Any = None  # each compiled copy has its own


@kernel
def _add_into_both(args, share, shares, worker):
    size, factor = args[0], real(1) / real(args[1])
    a, b = array_at(args[2], (size,), real), array_at(args[3], (size,), real)
    for k in range(size):
        total = (a[k] + b[k]) * factor
        a[k] = total
        b[k] = total


def prepare() -> None:
    """Compile, or load what was compiled."""
    for kind in (np.float32, np.float64):
        add_into_both(np.zeros(1, kind), np.zeros(1, kind), average=True)


def add_into_both(a: np.ndarray, b: np.ndarray, average: bool) -> None:
    """a + b, or half of it, in the place of both.

    Args:
        a, b: contiguous, of one length and type, float32 or float64; they do not overlap.
        average: halve the sum, which is exact.
    """
    args = (a.size, 2 if average else 1, address(a), address(b))
    pool.run(_add_into_both.address(a.dtype.type), args, 1)
