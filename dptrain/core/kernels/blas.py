"""Products of matrices that a BLAS library makes, on the calling thread alone.

Owns: `alone`. Must not know: which products those are; `gemm` does.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dptrain.core.kernels import reference

#: Products up to which OpenBLAS stays on the calling thread: each thread gets 2^18 at least.
_ALONE = (1 << 19) - 1


@lru_cache(4096)
def _piece(m: int, k: int, n: int) -> int:
    """How much of the longer side OpenBLAS does not divide; 0 where that is no question."""
    step = _ALONE // max(1, k * min(m, n))
    whole = min(m, n) < 2 or not 0 < step < max(m, n)  # of vectors OpenBLAS divides almost all
    return 0 if whole else step


def alone(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The product of matrices by a BLAS library, in pieces that it does not divide among threads of its own.

    Those would go on spinning for the next product, some 25 ms, in the place of the threads of `pool`; and their
    number may change bits.
    """
    (m, k), n = a.shape, b.shape[1]
    step = _piece(m, k, n)
    if not step:
        return reference.matmul(a, b, out)
    if out is None:
        out = np.empty((m, n), a.dtype)
    for first in range(0, max(m, n), step):
        piece = slice(first, first + step)
        if m > n:
            np.matmul(a[piece], b, out=out[piece])
        else:
            np.matmul(a, b[:, piece], out=out[:, piece])
    return out
