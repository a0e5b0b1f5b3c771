"""How the channels of grouped convolutions are arranged for products of matrices, in arrays of any library."""

from __future__ import annotations

import math
from typing import Any


def by_group(columns: Any, groups: int, taps: int) -> Any:
    """(windows, taps * C) -> (groups, windows, taps * C / groups)."""
    count, width = columns.shape
    split = columns.reshape(count, taps, groups, width // (taps * groups)).transpose(2, 0, 1, 3)
    return split.reshape(groups, count, width // groups)


def weight_matrix(weight: Any, groups: int) -> Any:
    """(O, C/g, *kernel) -> (g, taps * C/g, O/g), rows in the order of `by_group`."""
    o, c, *kernel = weight.shape
    taps = math.prod(kernel)
    split = weight.reshape(groups, o // groups, c, taps).transpose(0, 3, 2, 1)
    return split.reshape(groups, taps * c, o // groups)


def channel_rows(image: Any, groups: int) -> Any:
    """(N, *sizes, C) -> (g, N * sizes, C/g)."""
    *places, c = image.shape
    return image.reshape(math.prod(places), groups, c // groups).transpose(1, 0, 2)
