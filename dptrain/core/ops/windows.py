"""Windows over images of one to three spatial dimensions, and those of two as rows of a matrix and back.

Images are (N, C, *sizes) for the user and channels-last in memory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dptrain.core.arrays import HOST_TYPES, namespace_of, on_gpu
from dptrain.core.kernels import kernels_for
from dptrain.core.kernels.reference import Geometry

Sizes = tuple[int, ...]


class Window(NamedTuple):
    """Kernel, stride, padding and dilation, each with one size per spatial dimension."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes

    def outputs(self, sizes: Sizes) -> Sizes:
        """How many windows fit along each dimension."""
        return _outputs(self, sizes)

    def geometry(self) -> Geometry:
        """What the two-dimensional kernels take; a line is an image of height one."""
        if len(self.kernel) == 2:
            (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self
            return kh, kw, sh, sw, ph, pw, dh, dw
        (k,), (s,), (p,), (d,) = self
        return 1, k, 1, s, 0, p, 1, d


@lru_cache(maxsize=1024)
def _outputs(window: Window, sizes: Sizes) -> Sizes:
    return tuple(
        (s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in zip(sizes, *window, strict=True)
    )


def sizes_of(value: Any, rank: int, op: str, what: str) -> Sizes:
    """One size per dimension, from one number or a sequence.

    Raises:
        RuntimeError: another number of ints.
        TypeError: anything else.
    """
    if type(value) is int:
        return (value,) * rank
    if type(value) is tuple and len(value) == rank and {*map(type, value)} == {int}:
        return value  # as modules keep them
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(sizes) == 1:
        sizes *= rank
    are_ints = all(isinstance(s, (int, np.integer)) for s in sizes)
    if len(sizes) != rank or not are_ints:
        numbers = ("one int", "two ints", "three ints")[rank - 1]
        kind = RuntimeError if are_ints else TypeError
        raise kind(f"{op}: {what} must be an int or {numbers}, got {value!r}")
    return tuple(int(s) for s in sizes)


def channels_last(image: np.ndarray) -> np.ndarray:
    """(N, C, *sizes) -> (N, *sizes, C), contiguous."""
    # Not `moveaxis`, whose checks cost more than the reordering of a small image.
    last = image.transpose(_LAST[image.ndim])
    if last.flags.c_contiguous:
        return last
    if type(image) in HOST_TYPES or on_gpu(image):
        copy: np.ndarray = kernels_for(image).channels_last(image)
        return copy
    return namespace_of(image).ascontiguousarray(last)


def is_channels_last(image: np.ndarray) -> bool:
    """Whether `channels_last` copies nothing."""
    return image.ndim > 1 and image.transpose(_LAST[image.ndim]).flags.c_contiguous


def channels_first(image: np.ndarray) -> np.ndarray:
    """(N, *sizes, C) -> (N, C, *sizes), as a view."""
    return image.transpose(_FIRST[image.ndim])


#: What images have at most: a batch of volumes.
MOST_DIMENSIONS = 5
#: By the number of dimensions: where the channels go last, and first again.
_LAST = tuple(
    (0, *range(2, rank), 1) if rank > 1 else (0,) * rank for rank in range(MOST_DIMENSIONS + 1)
)
_FIRST = tuple(
    (0, rank - 1, *range(1, rank - 1)) if rank > 1 else (0,) * rank
    for rank in range(MOST_DIMENSIONS + 1)
)


def columns(image: np.ndarray, outs: Sizes, window: Window) -> np.ndarray:
    """Windows as rows: (N, C, H, W) -> (N * outs, taps * C), taps in row-major order."""
    x = channels_last(image)
    return kernels_for(x).im2col(x, *outs, window.geometry())


def image_of(rows: np.ndarray, shape: Sizes, outs: Sizes, window: Window) -> np.ndarray:
    """The transpose of `columns`: windows added back to an image of `shape` (N, C, H, W)."""
    n, c, h, w = shape
    # The compiled kernel reads rows as they lie in memory.
    image = kernels_for(rows).col2im(
        namespace_of(rows).ascontiguousarray(rows), (n, h, w, c), *outs, window.geometry()
    )
    return channels_first(image)
