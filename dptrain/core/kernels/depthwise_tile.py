"""Generator of the register tile of depthwise convolution: a few sums at a time, channel by channel.

`tile` computes, for m < count and every channel k,

    out[m, k] = start[m, k] + sum over i < I, j < J of x[m, i, j, k] * y[i, j, k]

where every index but k has a stride of its own, in bytes. Along k everything is contiguous: a vector holds
channels, and the sums of up to `MOST` m stay in registers. In a convolution m counts neighbouring results, i
and j the taps, and y is the weight; in the gradient of the weight m counts the taps of a row, i and j the
places of an image, and y is the gradient of the results.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.kernels.compiled import kernel
from dptrain.core.kernels.deferred import cgutils, intrinsic, ir, types
from dptrain.core.kernels.micro import Emitter
from dptrain.core.kernels.target import target

#: Sums of a tile: as many hide the latency of a product, and fit the registers of any processor.
MOST = 8

#: Arguments of `tile`, all 64-bit integers; `vectors` whole ones and `rest` channels behind them.
TILE_ARGUMENTS = (
    *("count", "vectors", "rest"),
    *("start", "start_m"),
    *("x", "x_m", "x_i", "x_j"),
    *("y", "y_i", "y_j", "size_i", "size_j"),
    *("out", "out_m"),
)


def _emit_vector(emitter: Emitter, count: int, g: dict[str, Any], at: Any, mask: Any) -> None:
    """The sums of a vector of channels, `at` bytes from the first one; only the lanes of a mask."""
    b = emitter.builder
    load = emitter.load if mask is None else lambda place: emitter.load_some(place, mask)
    offsets = [b.mul(g["x_m"], ir.IntType(64)(m)) for m in range(count)]

    def over_j(values: list[Any]) -> list[Any]:
        px, py, *sums = values
        factor = load(py)
        sums = [
            emitter.multiply_add(load(b.add(px, offset)), factor, total)
            for offset, total in zip(offsets, sums, strict=True)
        ]
        return [b.add(px, g["x_j"]), b.add(py, g["y_j"]), *sums]

    def over_i(values: list[Any]) -> list[Any]:
        px, py, *sums = values
        _, _, *sums = emitter.loop(g["size_j"], [px, py, *sums], over_j)
        return [b.add(px, g["x_i"]), b.add(py, g["y_i"]), *sums]

    begin = b.add(g["start"], at)
    starts = [load(b.add(begin, b.mul(g["start_m"], ir.IntType(64)(m)))) for m in range(count)]
    places = [b.add(g["x"], at), b.add(g["y"], at)]
    _, _, *sums = emitter.loop(g["size_i"], [*places, *starts], over_i)
    to = b.add(g["out"], at)
    for m, total in enumerate(sums):
        place = b.add(to, b.mul(g["out_m"], ir.IntType(64)(m)))
        if mask is None:
            emitter.store(total, place)
        else:
            emitter.store_some(total, place, mask)


@intrinsic
def emit_tile(typing_context: Any, real: Any, arguments: Any) -> Any:
    """The code of `tile` for an element type, over the tuple of its arguments."""
    scalar = np.float32 if real.dtype == types.float32 else np.float64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        emitter = Emitter(builder, scalar, target().width)
        named = dict(zip(TILE_ARGUMENTS, cgutils.unpack_tuple(builder, values[1]), strict=True))
        end = builder.append_basic_block("end")
        choice = builder.switch(named["count"], end)
        for count in range(1, MOST + 1):
            block = builder.append_basic_block(f"tile{count}")
            choice.add_case(ir.IntType(64)(count), block)
            builder.position_at_end(block)

            def whole(values: list[Any], count: int = count) -> list[Any]:
                _emit_vector(emitter, count, named, values[0], None)
                return [builder.add(values[0], ir.IntType(64)(emitter.width))]

            emitter.loop(named["vectors"], [ir.IntType(64)(0)], whole)
            behind = builder.mul(named["vectors"], ir.IntType(64)(emitter.width))
            with builder.if_then(builder.icmp_signed(">", named["rest"], ir.IntType(64)(0))):
                _emit_vector(emitter, count, named, behind, emitter.mask(named["rest"]))
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(real, arguments), generate


real: Any = None  # each compiled copy has its own


@kernel(signature=f"void({', '.join(['int64'] * len(TILE_ARGUMENTS))})")
def tile(
    count, vectors, rest, start, start_m, x, x_m, x_i, x_j, y, y_i, y_j, size_i, size_j, out, out_m
):  # fmt: skip
    """See the head of this module; 1 <= count <= `MOST`, rest below the number of lanes."""
    emit_tile(
        real,
        (count, vectors, rest, start, start_m, x, x_m, x_i, x_j, y, y_i, y_j, size_i, size_j, out, out_m),
    )  # fmt: skip
