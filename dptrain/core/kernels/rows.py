"""Passes over rows of numbers written as vector code: exponentials and their sum.

The loops that a compiler makes leave up to four vectors' worth of numbers at the end of a row to one that
takes them one by one; rows of scores and of classes are often no longer than that. Here the last vector
is masked. exp is that of `exponential`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.kernels.deferred import cgutils, intrinsic, ir, types
from dptrain.core.kernels.exponential import FACTS, series
from dptrain.core.kernels.micro import Emitter
from dptrain.core.kernels.target import target


class Exponential:
    """exp and its kin for vectors, step by step as `exponential.exponentials` has them for a number.

    Args:
        emitter: writes the code.
        real: the NumPy scalar type.
    """

    def __init__(self, emitter: Emitter, real: Any) -> None:
        self._emitter, self._facts, self._real = emitter, FACTS[real], real
        self._bits = ir.VectorType(ir.IntType(8 * emitter.itemsize), emitter.lanes)

    def _power_of_two(self, k: Any) -> Any:
        b, vector = self._emitter.builder, self._emitter.constant
        places = ir.Constant(self._bits, [self._facts.mantissa] * self._emitter.lanes)
        shifted = b.bitcast(b.fadd(k, vector(self._facts.shift)), self._bits)
        return b.bitcast(b.shl(shifted, places), self._emitter.vector)

    def _parts(self, y: Any) -> tuple[Any, Any]:
        """(k, exp(r) - 1) for y = k log(2) + r."""
        emitter, log2 = self._emitter, self._facts.log2
        vector, fused = emitter.constant, emitter.multiply_add
        k = emitter.apply("floor", fused(y, vector(1.4426950408889634), vector(0.5)))
        r = fused(k, vector(-log2[1]), fused(k, vector(-log2[0]), y))
        first, *others = series(self._real)
        p = vector(first)
        for c in others:
            p = fused(p, r, vector(c))
        return k, fused(emitter.builder.fmul(p, r), r, r)

    def exp(self, x: Any) -> Any:
        """e to the power of x."""
        emitter, b = self._emitter, self._emitter.builder
        low, high = emitter.constant(self._facts.low), emitter.constant(self._facts.high)
        y = b.select(b.fcmp_ordered(">", x, low), x, low)
        y = b.select(b.fcmp_ordered("<", y, high), y, high)
        k, more = self._parts(y)
        p = b.fadd(more, emitter.constant(1))
        half = emitter.apply("floor", b.fmul(k, emitter.constant(0.5)))
        p = b.fmul(b.fmul(p, self._power_of_two(half)), self._power_of_two(b.fsub(k, half)))
        return b.select(b.fcmp_ordered("ord", x, x), p, x)

    def _at_least(self, least: float, x: Any) -> Any:
        """x or `least`, whichever is larger; what is no number stays so."""
        b, bound = self._emitter.builder, self._emitter.constant(least)
        return b.select(b.fcmp_unordered(">", x, bound), x, bound)

    def decay(self, x: Any) -> Any:
        """exp(x) for x <= 0, the least normal number where it is below that."""
        k, more = self._parts(self._at_least(float(np.log(np.finfo(self._real).tiny)), x))
        power = self._power_of_two(k)
        return self._emitter.multiply_add(power, more, power)

    def expm1(self, x: Any) -> Any:
        """exp(x) - 1 for x <= 0, exact near 0."""
        k, more = self._parts(self._at_least(self._facts.one, x))
        power, one = self._power_of_two(k), self._emitter.constant(1)
        return self._emitter.multiply_add(power, more, self._emitter.builder.fsub(power, one))


def over(
    emitter: Emitter, count: Any, carried: list[Any], body: Callable[[Any, Any, list[Any]], list[Any]]
) -> list[Any]:  # fmt: skip
    """`body(bytes from the start, mask or None, values)` over a row; the last, masked vector may be empty."""
    b = emitter.builder
    whole = b.udiv(count, ir.IntType(64)(emitter.lanes))

    def full(values: list[Any]) -> list[Any]:
        place, *rest = values
        return [b.add(place, ir.IntType(64)(emitter.width)), *body(place, None, rest)]

    place, *carried = emitter.loop(whole, [ir.IntType(64)(0), *carried], full)
    left = b.urem(count, ir.IntType(64)(emitter.lanes))
    before = b.block
    with b.if_then(b.icmp_unsigned(">", left, ir.IntType(64)(0))):
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

        (tops,) = over(emitter, self._count, [least], larger)
        return emitter.reduce("fmax", tops)

    def exponentials(self, to: Any, less: Any) -> Any:
        """Write exp(x[k] * scale - less) to an address; gives their sum."""
        emitter, builder = self.emitter, self.emitter.builder
        less, nothing = emitter.everywhere(less), emitter.constant(0)
        exp = Exponential(emitter, self._real).exp

        def exponential(place: Any, mask: Any, carried: list[Any]) -> list[Any]:
            # In lanes that do not count exp(0): a subnormal result would take a hundred times as long.
            value = exp(builder.fsub(self._scaled(place, mask, less), less))
            there = builder.add(to, place)
            if mask is None:
                emitter.store(value, there)
            else:
                value = builder.select(mask, value, nothing)
                emitter.store_some(value, there, mask)
            return [builder.fadd(carried[0], value)]

        (sums,) = over(emitter, self._count, [nothing], exponential)
        return emitter.reduce("fadd", sums)


def types_of(real: Any) -> tuple[Any, Any]:
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
    kind, scalar = types_of(real)

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
    kind, scalar = types_of(real)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        out, x, scale, less, count, _ = values
        return _Row(builder, scalar, x, scale, count).exponentials(out, less)

    return kind(to, x, kind, kind, count, real), generate
