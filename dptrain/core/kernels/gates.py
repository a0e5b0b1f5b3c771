"""The gates of recurrent cells, one row at a time, forward and backward: vector code, a masked vector at the end.

A row has `count` numbers in each gate, whose blocks lie behind each other. With s the logistic function and
what the gates' sums came to in the place of the gates, the cells are

    LSTM: c' = s(f) c + s(i) tanh(g),  y = s(o) tanh(c')        blocks i, f, g, o
    GRU:  n = tanh(m + s(r) k),  y = n + s(z) (h - n)           blocks r, z, m; k, the state's share, apart
    RNN:  y = tanh(a), or the larger of a and 0                 one block

Sources: Hochreiter & Schmidhuber, "Long short-term memory", 1997; Cho et al., "Learning phrase representations
using RNN encoder-decoder", 2014. s and tanh are within 4 units in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dptrain.core.kernels.deferred import intrinsic, ir, types
from dptrain.core.kernels.micro import Emitter
from dptrain.core.kernels.rows import Exponential, over, types_of
from dptrain.core.kernels.target import target


class _Vectors:
    """Arithmetic on the vectors at one place of several rows of numbers."""

    def __init__(self, emitter: Emitter, real: Any, place: Any, mask: Any) -> None:
        self._emitter, self._place, self._mask = emitter, place, mask
        self._exp = Exponential(emitter, real)
        self._builder = emitter.builder
        self.one = emitter.constant(1)
        self.zero = emitter.constant(0)

    def read(self, row: Any) -> Any:
        """The numbers of the row at an address."""
        here = self._builder.add(row, self._place)
        if self._mask is None:
            return self._emitter.load(here)
        return self._emitter.load_some(here, self._mask)

    def write(self, value: Any, *rows: Any) -> None:
        """Put numbers into rows."""
        for row in rows:
            here = self._builder.add(row, self._place)
            if self._mask is None:
                self._emitter.store(value, here)
            else:
                self._emitter.store_some(value, here, self._mask)

    def blocks(self, start: Any, block: Any, count: int) -> list[Any]:
        """The addresses of blocks that lie behind each other, by the bytes of one."""
        places = [start]
        for _ in range(count - 1):
            places.append(self._builder.add(places[-1], block))
        return places

    def add(self, a: Any, b: Any) -> Any:
        """a + b."""
        return self._builder.fadd(a, b)

    def less(self, a: Any, b: Any) -> Any:
        """a - b."""
        return self._builder.fsub(a, b)

    def times(self, first: Any, *others: Any) -> Any:
        """The product of all."""
        for other in others:
            first = self._builder.fmul(first, other)
        return first

    def times_add(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c."""
        return self._emitter.multiply_add(a, b, c)

    def where_positive(self, a: Any, b: Any) -> Any:
        """b where a is not 0 or below, else 0."""
        return self._builder.select(self._builder.fcmp_unordered(">", a, self.zero), b, self.zero)

    def sigmoid(self, x: Any) -> Any:
        """1 / (1 + d), of x below 0 d / (1 + d), for d = exp(-|x|)."""
        d = self._exp.decay(self.negative(self._emitter.apply("fabs", x)))
        below = self._builder.fcmp_ordered("<", x, self.zero)
        return self._builder.fdiv(self._builder.select(below, d, self.one), self.add(self.one, d))

    def negative(self, x: Any) -> Any:
        """-x."""
        return self.less(self._emitter.constant(-0.0), x)

    def tanh(self, x: Any) -> Any:
        """-d / (2 + d) for d = exp(-2 |x|) - 1, with the sign of x."""
        size = self._emitter.apply("fabs", x)
        d = self._exp.expm1(self.times(self._emitter.constant(-2), size))
        value = self._builder.fdiv(self.negative(d), self.add(self._emitter.constant(2), d))
        return self._emitter.apply("copysign", value, x)

    def logistic_slope(self, y: Any) -> Any:
        """Of `sigmoid`, from its value: y (1 - y)."""
        return self.times(y, self.less(self.one, y))

    def tanh_slope(self, y: Any) -> Any:
        """1 - y^2."""
        return self.less(self.one, self.times(y, y))


def _row(names: str, write: Callable[[_Vectors, dict[str, Any], Any], None]) -> Any:
    """An intrinsic over a row: (the addresses of `names`, count, real) -> None.

    `write` gets vectors, the addresses by name, and the bytes of a block.
    """
    wanted = names.split()

    @intrinsic
    def row(typing_context: Any, addresses: Any, count: Any, real: Any) -> Any:
        _, scalar = types_of(real)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emitter = Emitter(builder, scalar, target().width)
            places = [builder.extract_value(values[0], i) for i in range(len(addresses))]
            named = dict(zip(wanted, places, strict=True))
            size = ir.Constant(ir.IntType(64), emitter.itemsize)
            block = builder.mul(values[1], size)

            def body(place: Any, mask: Any, carried: list[Any]) -> list[Any]:
                write(_Vectors(emitter, scalar, place, mask), named, block)
                return carried

            over(emitter, values[1], [], body)
            return context.get_dummy_value()

        return types.void(addresses, count, real), generate

    return row


def _lstm(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    gates = v.blocks(at["gates"], block, 4)
    i, f, g, o = (v.read(gate) for gate in gates)
    i, f, g, o = v.sigmoid(i), v.sigmoid(f), v.tanh(g), v.sigmoid(o)
    for value, gate in zip((i, f, g, o), gates, strict=True):
        v.write(value, gate)
    c = v.times_add(f, v.read(at["c"]), v.times(i, g))
    v.write(c, at["c"], at["kept"])
    v.write(v.times(o, v.tanh(c)), at["h"], at["out"])


def _lstm_grad(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    i, f, g, o = (v.read(gate) for gate in v.blocks(at["gates"], block, 4))
    slopes = v.blocks(at["slopes"], block, 4)
    top, dy = v.tanh(v.read(at["kept"])), v.read(at["dh"])
    dc = v.times_add(v.times(dy, o), v.tanh_slope(top), v.read(at["dc"]))
    v.write(v.times(dc, g, v.logistic_slope(i)), slopes[0])
    v.write(v.times(dc, v.read(at["before"]), v.logistic_slope(f)), slopes[1])
    v.write(v.times(dc, i, v.tanh_slope(g)), slopes[2])
    v.write(v.times(dy, top, v.logistic_slope(o)), slopes[3])
    v.write(v.times(dc, f), at["dc"])


def _gru(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    gates = v.blocks(at["gates"], block, 3)
    r, z = v.sigmoid(v.read(gates[0])), v.sigmoid(v.read(gates[1]))
    n = v.tanh(v.times_add(r, v.read(at["kept"]), v.read(gates[2])))
    for value, gate in zip((r, z, n), gates, strict=True):
        v.write(value, gate)
    v.write(v.times_add(z, v.less(v.read(at["h"]), n), n), at["h"], at["out"])


def _gru_grad(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    r, z, n = (v.read(gate) for gate in v.blocks(at["gates"], block, 3))
    of_input, of_state = (v.blocks(at[name], block, 3) for name in ("slopes", "more"))
    dy = v.read(at["dh"])
    dn = v.times(dy, v.less(v.one, z), v.tanh_slope(n))
    v.write(v.times(dn, v.read(at["kept"]), v.logistic_slope(r)), of_input[0], of_state[0])
    back = v.less(v.read(at["before"]), n)
    v.write(v.times(dy, back, v.logistic_slope(z)), of_input[1], of_state[1])
    v.write(dn, of_input[2])
    v.write(v.times(dn, r), of_state[2])
    v.write(v.times(dy, z), at["dh"])


def _tanh(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    v.write(v.tanh(v.read(at["gates"])), at["gates"], at["h"])


def _tanh_grad(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    v.write(v.times(v.read(at["dh"]), v.tanh_slope(v.read(at["gates"]))), at["slopes"])


def _relu(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    a = v.read(at["gates"])
    v.write(v.where_positive(a, a), at["gates"], at["h"])


def _relu_grad(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    v.write(v.where_positive(v.read(at["gates"]), v.read(at["dh"])), at["slopes"])


def _sum(v: _Vectors, at: dict[str, Any], block: Any) -> None:
    v.write(v.add(v.read(at["to"]), v.read(at["more"])), at["to"])


#: to += more, for rows at the addresses (to, more).
add_row = _row("to more", _sum)

_FORWARD, _BACKWARD = "gates kept h c out", "gates kept before dh dc slopes more"


class Cell(NamedTuple):
    """A kind of cell.

    Attributes:
        blocks: gates whose sums the input contributes to.
        apart: whether what the state contributes to the last of them is kept apart.
        forward: (gates, kept, h, c, out): `h` and `c` become the next state, `out` gets `h` too.
        backward: (gates, kept, before, dh, dc, slopes, more): `before` is the state that `kept` does not tell,
            `dh` and `dc` the gradients of the next state, which become what reaches the last one past the gates;
            `slopes` gets the gradients of the gates' sums, `more`, for a share apart, those of the state's share.
    """

    blocks: int
    apart: bool
    forward: Any
    backward: Any


CELLS = {
    "LSTM": Cell(4, False, _row(_FORWARD, _lstm), _row(_BACKWARD, _lstm_grad)),
    "GRU": Cell(3, True, _row(_FORWARD, _gru), _row(_BACKWARD, _gru_grad)),
    "RNN_TANH": Cell(1, False, _row(_FORWARD, _tanh), _row(_BACKWARD, _tanh_grad)),
    "RNN_RELU": Cell(1, False, _row(_FORWARD, _relu), _row(_BACKWARD, _relu_grad)),
}
