"""Exponentials that loops can vectorise: no branch, no call.

float32: exp within 1.1 units in the last place of the exact value over the whole range, subnormal results
within one of theirs. float64 has no such form yet: there `exp_of` gives the C library's.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types

from dptrain.core.kernels.compiled import intrinsic


@intrinsic
def _from_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], ir.FloatType())

    return types.float32(types.int32), generate


@numba.njit(inline="always")
def exp32(x):
    """exp of a float32.

    2^k times the polynomial of the rest, which is at most log(2) / 2 in size: Taylor's, whose remainder
    lies below 1e-8. The power is put on in two steps, so that infinite and subnormal results come out.
    """
    f = np.float32
    y = x if x > f(-104) else f(-104)  # what is no number goes on as a number until the end
    y = y if y < f(89) else f(89)
    k = np.floor(y * f(1.4426950408889634) + f(0.5))
    r = y - k * f(0.693145751953125) - k * f(1.42860682030941723e-6)  # log(2) in two parts
    p = f(1 / 5040)
    p = p * r + f(1 / 720)
    p = p * r + f(1 / 120)
    p = p * r + f(1 / 24)
    p = p * r + f(1 / 6)
    p = p * r + f(1 / 2)
    p = (p * r * r + r) + f(1)
    power = np.int32(k)
    half = power >> np.int32(1)
    p = p * _from_bits((half + np.int32(127)) << np.int32(23))
    p = p * _from_bits((power - half + np.int32(127)) << np.int32(23))
    return p if x == x else x


@numba.njit(inline="always")
def _exp64(x):
    return math.exp(x)


def exp_of(real: Any) -> Any:
    """exp for kernels of an element type."""
    return exp32 if real is np.float32 else _exp64
