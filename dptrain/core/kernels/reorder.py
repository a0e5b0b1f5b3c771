"""Images from channels first to channels last."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool, reference
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import address, array_at

real: Any = None  # each compiled copy has its own

#: Pixels that are reordered at a time: with few channels they stay in the first cache.
_BLOCK = 128
#: Channels from which NumPy's way is the faster one.
_MANY = 16


@kernel
def _to_last(args, share, shares, worker):
    images, c, pixels, block = args[0], args[1], args[2], args[3]
    x = array_at(args[4], (images, c, pixels), real)
    out = array_at(args[5], (images, pixels * c), real)
    for n in range(share * images // shares, (share + 1) * images // shares):
        to = out[n]
        for start in range(0, pixels, block):
            count = min(block, pixels - start)
            for k in range(c):
                line, first = x[n, k], np.uint64(start * c + k)
                for p in range(count):
                    to[first + np.uint64(p * c)] = line[start + p]


def channels_last(x: np.ndarray) -> np.ndarray:
    """See `reference.channels_last`."""
    if not x.size or not x.flags.c_contiguous or x.shape[1] >= _MANY:
        return reference.channels_last(x)
    n, c, *sizes = x.shape
    out = np.empty((n, *sizes, c), x.dtype)
    args = (n, c, x.size // (n * c), _BLOCK, address(x), address(out))
    pool.run(_to_last.address(x.dtype.type), args, pool.shares(n, 2 * x.nbytes))
    return out
