"""Exponentials of a row of numbers and their sum, written as vector code.

The loops that a compiler makes leave up to four vectors' worth of numbers at the end of a row to one that
takes them one by one; rows of scores and of classes are often no longer than that. Here the last vector
is masked. exp is that of `exponential`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from dptrain.core.kernels.compiled import intrinsic
from dptrain.core.kernels.exponential import FACTS, series
from dptrain.core.kernels.micro import Emitter
from dptrain.core.kernels.target import target

_INT = ir.IntType(64)


def _exp(emitter: Emitter, real: Any, x: Any) -> Any:
    """exp of a vector, step by step as `exponential.exponentials` has it for a number."""
    b, facts, vector = emitter.builder, FACTS[real], emitter.constant
    bits = ir.VectorType(ir.IntType(8 * emitter.itemsize), emitter.lanes)
    places = ir.Constant(bits, [facts.mantissa] * emitter.lanes)

    def floor(value: Any) -> Any:
        return emitter.apply("floor", value)

    def power_of_two(k: Any) -> Any:
        shifted = b.bitcast(b.fadd(k, vector(facts.shift)), bits)
        return b.bitcast(b.shl(shifted, places), emitter.vector)

    low, high = vector(facts.low), vector(facts.high)
    y = b.select(b.fcmp_ordered(">", x, low), x, low)
    y = b.select(b.fcmp_ordered("<", y, high), y, high)
    k = floor(emitter.multiply_add(y, vector(1.4426950408889634), vector(0.5)))
    r = emitter.multiply_add(k, vector(-facts.log2[0]), y)
    r = emitter.multiply_add(k, vector(-facts.log2[1]), r)
    first, *others = series(real)
    p = vector(first)
    for c in others:
        p = emitter.multiply_add(p, r, vector(c))
    p = b.fadd(emitter.multiply_add(b.fmul(p, r), r, r), vector(1))
    half = floor(b.fmul(k, vector(0.5)))
    p = b.fmul(b.fmul(p, power_of_two(half)), power_of_two(b.fsub(k, half)))
    return b.select(b.fcmp_ordered("ord", x, x), p, x)


def _over(
    emitter: Emitter, count: Any, carried: list[Any], body: Callable[[Any, Any, list[Any]], list[Any]]
) -> list[Any]:  # fmt: skip
    """`body(bytes from the start, mask or None, values)` over a row; the last, masked vector may be empty."""
    b = emitter.builder
    whole = b.udiv(count, _INT(emitter.lanes))

    def full(values: list[Any]) -> list[Any]:
        place, *rest = values
        return [b.add(place, _INT(emitter.width)), *body(place, None, rest)]

    place, *carried = emitter.loop(whole, [_INT(0), *carried], full)
    left = b.urem(count, _INT(emitter.lanes))
    before = b.block
    with b.if_then(b.icmp_unsigned(">", left, _INT(0))):
        last = body(place, emitter.mask(left), carried)
        inside = b.block
    results = []
    for value, other in zip(carried, last, strict=True):
        phi = b.phi(value.type)
        phi.add_incoming(value, before)
        phi.add_incoming(other, inside)
        results.append(phi)
    return results


class _Row:
    """Code over the numbers x[k] * scale, k < count.

    Args:
        builder: where it goes.
        real: the NumPy scalar type.
        x, scale, count: address, number and 64-bit integer.
    """

    def __init__(self, builder: Any, real: Any, x: Any, scale: Any, count: Any) -> None:
        self.emitter = Emitter(builder, real, target().width)
        self._real, self._x, self._count = real, x, count
        self._scale = self.emitter.everywhere(scale)

    def _scaled(self, place: Any, mask: Any, others: Any) -> Any:
        emitter, builder = self.emitter, self.emitter.builder
        here = builder.add(self._x, place)
        value = emitter.load(here) if mask is None else emitter.load_some(here, mask)
        value = builder.fmul(value, self._scale)
        return value if mask is None else builder.select(mask, value, others)

    def top(self) -> Any:
        """The largest."""
        emitter, least = self.emitter, self.emitter.constant(-np.inf)

        def larger(place: Any, mask: Any, carried: list[Any]) -> list[Any]:
            return [emitter.apply("maxnum", carried[0], self._scaled(place, mask, least))]

        (tops,) = _over(emitter, self._count, [least], larger)
        return emitter.reduce("fmax", tops)

    def exponentials(self, to: Any, less: Any) -> Any:
        """Write exp(x[k] * scale - less) to an address; gives their sum."""
        emitter, builder = self.emitter, self.emitter.builder
        less, nothing = emitter.everywhere(less), emitter.constant(0)

        def exponential(place: Any, mask: Any, carried: list[Any]) -> list[Any]:
            # In lanes that do not count exp(0): a subnormal result would take a hundred times as long.
            value = _exp(emitter, self._real, builder.fsub(self._scaled(place, mask, less), less))
            there = builder.add(to, place)
            if mask is None:
                emitter.store(value, there)
            else:
                value = builder.select(mask, value, nothing)
                emitter.store_some(value, there, mask)
            return [builder.fadd(carried[0], value)]

        (sums,) = _over(emitter, self._count, [nothing], exponential)
        return emitter.reduce("fadd", sums)


def _types(real: Any) -> tuple[Any, Any]:
    return (
        (types.float32, np.float32) if real.dtype == types.float32 else (types.float64, np.float64)
    )


@intrinsic
def exp_row(typing_context: Any, to: Any, x: Any, scale: Any, count: Any, real: Any) -> Any:
    """to[k] = exp(x[k] * scale - top), k < count, for addresses that are equal or do not overlap.

    Returns:
        (top, sum): the largest x[k] * scale, scale > 0, and the sum of the exponentials. Whether what is no
        number is the largest is left open; it shows in the sum.
    """
    kind, scalar = _types(real)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row = _Row(builder, scalar, *values[1:4])
        top = row.top()
        return cgutils.pack_array(builder, [top, row.exponentials(values[0], top)])

    return types.UniTuple(kind, 2)(to, x, kind, count, real), generate


@intrinsic
def exp_less(
    typing_context: Any, to: Any, x: Any, scale: Any, less: Any, count: Any, real: Any
) -> Any:
    """to[k] = exp(x[k] * scale - less), k < count, for addresses likewise; gives the sum."""
    kind, scalar = _types(real)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, x, scale, less, count, _ = values
        return _Row(builder, scalar, x, scale, count).exponentials(out, less)

    return kind(to, x, kind, kind, count, real), generate
