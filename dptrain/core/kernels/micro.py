"""Generator of the register tile that does all products of convolution and matrix multiplication.

`tile` computes, for m < rows and n < columns,

    C[m, n] = start[m, n] + sum over i < I, j < J, k < K of A[i, j, m, k] * B[i, j, k, n]

where every index has a stride of its own, in bytes, and B and C are contiguous along n. A matrix product
is I = J = 1; a convolution has kernel rows as i, kernel columns as j (or merged into k, where they lie
behind each other in memory), channels as k; its weight gradient has image rows as j and columns as k.

Plain loops do not keep such a tile in registers when numba compiles them, so its LLVM code is written
here: one loop nest per tile size, the sums in vector variables, chosen by a jump at the entry.
Sources: Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008; Georganas et
al., "Anatomy of high-performance deep learning convolutions on SIMD architectures", 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.deferred import cgutils, intrinsic, ir, types
from dptrain.core.kernels.target import target

#: Vectors side by side in a tile.
WIDTHS = (1, 2)

#: Arguments of `tile`, all 64-bit integers.
TILE_ARGUMENTS = (
    *("rows", "columns"),
    *("start", "start_m"),
    *("a", "a_m", "a_i", "a_j", "a_k"),
    *("b", "b_i", "b_j", "b_k"),
    *("size_i", "size_j", "size_k"),
    *("c", "c_m"),
)


class Emitter:
    """Writes vector code of one element type.

    Args:
        builder: where the code goes.
        real: the NumPy scalar type.
        width: bytes of a vector.
    """

    def __init__(self, builder: Any, real: Any, width: int) -> None:
        self.builder = builder
        self.itemsize = np.dtype(real).itemsize
        self.lanes = width // self.itemsize
        self.scalar = ir.FloatType() if self.itemsize == 4 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.width = width

    def pointer(self, address: Any, kind: Any) -> Any:
        """An address as a pointer."""
        return self.builder.inttoptr(address, kind.as_pointer())

    def at(self, address: Any, offset: int) -> Any:
        """An address some bytes further."""
        return self.builder.add(address, ir.IntType(64)(offset)) if offset else address

    def load(self, address: Any) -> Any:
        """A vector; the address need not be aligned."""
        return self.builder.load(self.pointer(address, self.vector), align=self.itemsize)

    def store(self, value: Any, address: Any) -> None:
        """Write a vector."""
        self.builder.store(value, self.pointer(address, self.vector), align=self.itemsize)

    def spread(self, address: Any) -> Any:
        """The number at an address in all lanes."""
        return self.everywhere(
            self.builder.load(self.pointer(address, self.scalar), align=self.itemsize)
        )

    def everywhere(self, value: Any) -> Any:
        """A number in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None)
        return self.builder.shuffle_vector(one, undefined, zeros)

    def constant(self, value: float) -> Any:
        """The same number in all lanes."""
        return ir.Constant(self.vector, [value] * self.lanes)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """x * y + z, rounded once where the processor can (`fma` would call a library where it cannot)."""
        form = ir.FunctionType(self.vector, [self.vector] * 3)
        function = self._function(f"llvm.fmuladd.{self._kind()}", form)
        return self.builder.call(function, [x, y, z])

    def apply(self, name: str, *vectors: Any) -> Any:
        """What LLVM's function of this name makes of vectors, lane by lane."""
        form = ir.FunctionType(self.vector, [self.vector] * len(vectors))
        return self.builder.call(self._function(f"llvm.{name}.{self._kind()}", form), vectors)

    def reduce(self, name: str, vector: Any) -> Any:
        """The largest lane ("fmax") or the sum of all lanes ("fadd"), in LLVM's order."""
        first = [ir.Constant(self.scalar, -0.0)] if name == "fadd" else []
        form = ir.FunctionType(self.scalar, [*(v.type for v in first), self.vector])
        function = self._function(f"llvm.vector.reduce.{name}.{self._kind()}", form)
        flags = ("reassoc",) if name == "fadd" else ("nnan", "nsz")
        return self.builder.call(function, [*first, vector], fastmath=flags)

    def mask(self, count: Any) -> Any:
        """Flags of the first `count` lanes (an i64; none if it is negative)."""
        wide = ir.VectorType(ir.IntType(64), self.lanes)
        undefined = ir.Constant(wide, ir.Undefined)
        one = self.builder.insert_element(undefined, count, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None)
        limit = self.builder.shuffle_vector(one, undefined, zeros)
        return self.builder.icmp_signed("<", ir.Constant(wide, list(range(self.lanes))), limit)

    def load_some(self, address: Any, mask: Any) -> Any:
        """A vector of which only the lanes of `mask` are read; the others are zeros."""
        where = self.pointer(address, self.vector)
        form = ir.FunctionType(self.vector, [where.type, ir.IntType(32), mask.type, self.vector])
        function = self._function(f"llvm.masked.load.{self._kind()}.p0", form)
        align = ir.IntType(32)(self.itemsize)
        return self.builder.call(function, [where, align, mask, self.constant(0)])

    def store_some(self, value: Any, address: Any, mask: Any) -> None:
        """Write the lanes of `mask`."""
        where = self.pointer(address, self.vector)
        form = ir.FunctionType(ir.VoidType(), [self.vector, where.type, ir.IntType(32), mask.type])
        function = self._function(f"llvm.masked.store.{self._kind()}.p0", form)
        self.builder.call(function, [value, where, ir.IntType(32)(self.itemsize), mask])

    def prefetch(self, address: Any, write: bool) -> None:
        """Fetch a line that is going to be read or written."""
        kind = ir.IntType(8).as_pointer()
        form = ir.FunctionType(ir.VoidType(), [kind, *[ir.IntType(32)] * 3])
        flags = [ir.IntType(32)(n) for n in (int(write), 3, 1)]  # into all caches, data
        where = self.builder.inttoptr(address, kind)
        self.builder.call(self._function("llvm.prefetch.p0", form), [where, *flags])

    def _kind(self) -> str:
        return f"v{self.lanes}f{8 * self.itemsize}"

    def _function(self, name: str, form: Any) -> Any:
        held = self.builder.module.globals.get(name)
        return held or ir.Function(self.builder.module, form, name)

    def loop(self, count: Any, carried: list[Any], body: Callable[[list[Any]], list[Any]]) -> Any:
        """Repeat `body` `count` times (perhaps never) over carried values; gives the last ones."""
        builder = self.builder
        before = builder.block
        head, inside, after = (builder.append_basic_block(n) for n in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(ir.IntType(64))
        index.add_incoming(ir.IntType(64)(0), before)
        values = [builder.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
        builder.position_at_end(inside)
        results = body(list(values))
        index.add_incoming(builder.add(index, ir.IntType(64)(1)), builder.block)
        for phi, value in zip(values, results, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return values


def _emit_tile(emitter: Emitter, rows: int, vectors: int, g: dict[str, Any]) -> None:
    """The loop nest of one tile size, from the arguments by name."""
    b = emitter.builder
    offsets = [b.mul(g["a_m"], ir.IntType(64)(m)) for m in range(rows)]
    columns = [v * emitter.width for v in range(vectors)]

    def over_k(values: list[Any]) -> list[Any]:
        pa, pb, *sums = values
        weights = [emitter.load(emitter.at(pb, column)) for column in columns]
        for m in range(rows):
            x = emitter.spread(b.add(pa, offsets[m]))
            for v in range(vectors):
                place = m * vectors + v
                sums[place] = emitter.multiply_add(x, weights[v], sums[place])
        return [b.add(pa, g["a_k"]), b.add(pb, g["b_k"]), *sums]

    def over_j(values: list[Any]) -> list[Any]:
        pa, pb, *sums = values
        _, _, *sums = emitter.loop(g["size_k"], [pa, pb, *sums], over_k)
        return [b.add(pa, g["a_j"]), b.add(pb, g["b_j"]), *sums]

    def over_i(values: list[Any]) -> list[Any]:
        pa, pb, *sums = values
        _, _, *sums = emitter.loop(g["size_j"], [pa, pb, *sums], over_j)
        return [b.add(pa, g["a_i"]), b.add(pb, g["b_i"]), *sums]

    lines = [b.add(g["c"], b.mul(g["c_m"], ir.IntType(64)(m))) for m in range(rows)]
    for line in lines:
        for column in columns:
            emitter.prefetch(emitter.at(line, column), write=True)
    zeros = [emitter.constant(0)] * (rows * vectors)
    _, _, *sums = emitter.loop(g["size_i"], [g["a"], g["b"], *zeros], over_i)
    # The start comes last: a sum that goes on in several calls loses less than one long chain would.
    starts = [b.add(g["start"], b.mul(g["start_m"], ir.IntType(64)(m))) for m in range(rows)]
    places = [
        (emitter.at(start, column), emitter.at(line, column), number)
        for start, line in zip(starts, lines, strict=True)
        for number, column in enumerate(columns)
    ]
    full = b.icmp_signed(">=", g["columns"], ir.IntType(64)(vectors * emitter.lanes))
    with b.if_else(full) as (whole, partial):
        with whole:
            for value, (start, to, _) in zip(sums, places, strict=True):
                emitter.store(b.fadd(value, emitter.load(start)), to)
        with partial:
            masks = [
                emitter.mask(b.sub(g["columns"], ir.IntType(64)(v * emitter.lanes)))
                for v in range(vectors)
            ]
            for value, (start, to, v) in zip(sums, places, strict=True):
                begun = emitter.load_some(start, masks[v])
                emitter.store_some(b.fadd(value, begun), to, masks[v])


@intrinsic
def emit_tile(typing_context: Any, real: Any, arguments: Any) -> Any:
    """The code of `tile` for an element type, over the tuple of its arguments."""
    scalar = np.float32 if real.dtype == types.float32 else np.float64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emitter = Emitter(builder, scalar, target().width)
        named = dict(zip(TILE_ARGUMENTS, cgutils.unpack_tuple(builder, values[1]), strict=True))
        end = builder.append_basic_block("end")
        narrow, wide = (builder.append_basic_block(f"width{v}") for v in WIDTHS)
        is_narrow = builder.icmp_signed("<=", named["columns"], ir.IntType(64)(emitter.lanes))
        builder.cbranch(is_narrow, narrow, wide)
        for vectors, entry in zip(WIDTHS, (narrow, wide), strict=True):
            builder.position_at_end(entry)
            choice = builder.switch(named["rows"], end)
            for rows in range(1, target().most_rows(vectors) + 1):
                block = builder.append_basic_block(f"tile{rows}x{vectors}")
                choice.add_case(ir.IntType(64)(rows), block)
                builder.position_at_end(block)
                _emit_tile(emitter, rows, vectors, named)
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(real, arguments), generate


real: Any = None  # each compiled copy has its own


@kernel(signature=f"void({', '.join(['int64'] * len(TILE_ARGUMENTS))})")
def tile(
    rows, columns, start, start_m, a, a_m, a_i, a_j, a_k, b, b_i, b_j, b_k, size_i, size_j, size_k, c, c_m
):  # fmt: skip
    """See the head of this module; rows <= `target().most_rows`, columns <= two vectors, all >= 1."""
    emit_tile(
        real,
        (rows, columns, start, start_m, a, a_m, a_i, a_j, a_k, b, b_i, b_j, b_k, size_i, size_j, size_k, c, c_m),
    )  # fmt: skip
