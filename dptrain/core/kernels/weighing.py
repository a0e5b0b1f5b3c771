"""Weighted sums of a few entries along one dimension, as interpolation and padding need them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels import pool
from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.memory import address, array_at

real: Any = None  # each compiled copy has its own


@kernel
def _sums(args, share, shares, worker):
    outer, entries, results, inner, taps = args[0], args[1], args[2], args[3], args[4]
    x, out = (
        array_at(args[5], (outer, entries, inner), real),
        array_at(args[6], (outer, results, inner), real),
    )
    starts, cols = array_at(args[7], (results + 1,), np.int64), array_at(args[8], (taps,), np.int64)
    weights, plain = array_at(args[9], (taps,), real), args[9] == 0
    for line in range(share * outer * results // shares, (share + 1) * outer * results // shares):
        o, r = line // results, line % results
        to, first, last = out[o, r], starts[r], starts[r + 1]
        if first == last:
            for k in range(inner):
                to[k] = 0
            continue
        source, w = x[o, cols[first]], real(1) if plain else weights[first]
        if last - first == 2:
            other, v = x[o, cols[first + 1]], real(1) if plain else weights[first + 1]
            for k in range(inner):
                to[k] = source[k] * w + other[k] * v
            continue
        for k in range(inner):
            to[k] = source[k] * w
        for t in range(first + 1, last):
            source, w = x[o, cols[t]], real(1) if plain else weights[t]
            for k in range(inner):
                to[k] += source[k] * w


def weighted_sums(
    x: np.ndarray, starts: np.ndarray, cols: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """See `reference.weighted_sums`; the same bits."""
    outer, entries, inner = x.shape
    x, results = np.ascontiguousarray(x), len(starts) - 1
    out = np.empty((outer, results, inner), x.dtype)
    factors = None if weights is None else weights.astype(x.dtype)
    args = (
        *(outer, entries, results, inner, len(cols), address(x), address(out)),
        *(address(starts), address(cols), 0 if factors is None else address(factors)),
    )
    shares = pool.shares(outer * results, x.itemsize * outer * inner * len(cols))
    pool.run(_sums.address(x.dtype.type), args, shares)
    return out
