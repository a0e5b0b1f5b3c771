"""Which entries a resized dimension is made of: nearest, linear, cubic and antialiased windows.

Sources: R. Keys, "Cubic convolution interpolation for digital image processing", 1981; C. Duchon,
"Lanczos filtering in one and two dimensions", 1979. Antialiased windows grow with the factor of
reduction, as in Pillow and PyTorch; 8-bit images are resized with 16-bit integer weights as there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dptrain.core.ops.stencil import Taps, selection


def nearest(entries: int, out: int, factor: float | None, centre: float) -> Taps:
    """The entry that contains each result (`centre` 0.5: the middle of it)."""
    # In float32, so that ties fall as they do in PyTorch.
    scale = np.float32(entries / out if factor is None else 1 / factor)
    where = np.floor((np.arange(out, dtype=np.float32) + np.float32(centre)) * scale)
    return selection(np.minimum(where.astype(np.int64), entries - 1), entries)


def _scale(entries: int, out: int, factor: float | None, align: bool) -> float:
    """How many entries one result stands for."""
    if align:
        return (entries - 1) / (out - 1) if out > 1 else 0.0
    return entries / out if factor is None else 1 / factor


def _positions(entries: int, out: int, factor: float | None, align: bool) -> np.ndarray:
    scale = _scale(entries, out, factor, align)
    return np.arange(out) * scale if align else (np.arange(out) + 0.5) * scale - 0.5


def linear(entries: int, out: int, factor: float | None, align: bool) -> Taps:
    """The two neighbours of each position."""
    where = np.maximum(_positions(entries, out, factor, align), 0)
    low = np.minimum(where.astype(np.int64), entries - 1)
    part = np.minimum(where - low, 1.0)
    rows = np.arange(out)
    return Taps(
        np.concatenate([rows, rows]),
        np.concatenate([low, np.minimum(low + 1, entries - 1)]),
        np.concatenate([1 - part, part]),
        (out, entries),
    )


def cubic(entries: int, out: int, factor: float | None, align: bool) -> Taps:
    """The four neighbours of each position."""
    where = _positions(entries, out, factor, align)
    low = np.floor(where).astype(np.int64)
    near = np.arange(-1, 3)[:, None] + low
    rows = np.broadcast_to(np.arange(out), near.shape)
    # The coefficient is PyTorch's and OpenCV's choice.
    weights = cubic_kernel(where - near, -0.75)
    return Taps(rows.ravel(), near.clip(0, entries - 1).ravel(), weights.ravel(), (out, entries))


def cubic_kernel(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel of four entries."""
    d = np.abs(distance)
    inner = ((a + 2) * d - (a + 3)) * d * d + 1
    outer = (((d - 5) * d + 8) * d - 4) * a
    return np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _keys(x: np.ndarray) -> np.ndarray:
    return cubic_kernel(x, -0.5)  # Pillow's coefficient


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


#: Mode -> kernel and its reach on either side.
_KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_keys, 2),
    "lanczos": (_lanczos, 3),
}


def antialiased(mode: str, entries: int, out: int, factor: float | None, align: bool) -> Taps:
    """All entries under the kernel of `mode`, stretched where the size is reduced."""
    kernel, reach = _KERNELS[mode]
    scale = _scale(entries, out, factor, align)
    stretch = max(scale, 1.0)
    centres = scale * (np.arange(out) + 0.5)
    first = np.maximum((centres - reach * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach * stretch + 0.5).astype(np.int64), entries)
    counts = last - first
    rows = np.repeat(np.arange(out), counts)
    cols = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + first[rows]
    weights = kernel((cols - centres[rows] + 0.5) / stretch)
    totals = np.bincount(rows, weights, out)
    return Taps(rows, cols, weights / np.where(totals == 0, 1, totals)[rows], (out, entries))


#: An 8-bit value times a weight of that many bits, summed, fits 32 bits.
_WEIGHT_BITS = 15


def resample_bytes(x: np.ndarray, dim: int, taps: Taps) -> np.ndarray:
    """`taps` along `dim` of a uint8 array, with rounded integer weights and a rounded, clipped result."""
    # An entry that stands twice at the edge has one weight.
    numbers, inverse = np.unique(taps.rows * taps.shape[1] + taps.cols, return_inverse=True)
    weights = np.bincount(inverse.ravel(), taps.weights)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**_WEIGHT_BITS:
        bits += 1
    whole = np.trunc(weights * 2**bits + np.copysign(0.5, weights))
    rows, cols = np.divmod(numbers, taps.shape[1])
    sums = Taps(rows, cols, whole, taps.shape).run(x.astype(np.int32), dim)
    return ((sums + (1 << bits >> 1)) >> bits).clip(0, 255).astype(np.uint8)
