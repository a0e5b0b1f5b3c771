"""Recurrence as operations: a layer over whole sequences, and what a cell does after its products.

`layer` and `cell_step` compute either by one operation or, where none serves, by those that the formulas are made
of, which are also what second derivatives come from.
Sources: Hochreiter & Schmidhuber, "Long short-term memory", 1997; Cho et al., "Learning phrase
representations using RNN encoder-decoder", 2014; projections: Sak et al., 2014.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import namespace_of, on_gpu
from dptrain.core.autocast import lower_types
from dptrain.core.autocast_policy import casting
from dptrain.core.creation import zeros
from dptrain.core.engine import grad as gradients
from dptrain.core.export import FUNCTIONS
from dptrain.core.kernels import kernels_for
from dptrain.core.op import EVERY, Op
from dptrain.core.ops.matmul import Linear
from dptrain.core.tensor import Tensor

#: How many blocks of hidden_size rows the weights of each kind have.
GATES = {"RNN_TANH": 1, "RNN_RELU": 1, "LSTM": 4, "GRU": 3}

State = tuple[Tensor, ...]

_linear = casting("linear", Linear.apply)


def _served(tensors: Sequence[Tensor | None]) -> bool:
    """Whether the kernels of recurrence take these tensors."""
    if lower_types() is not None:
        return False
    arrays = [t._array for t in tensors if t is not None]
    kind = arrays[0].dtype
    return kind in (np.float32, np.float64) and not any(
        a.dtype != kind or on_gpu(a) or not a.size for a in arrays
    )


def _widths(mode: str, w_hh: Any) -> tuple[int, ...]:
    """Features of each part of the state."""
    return (w_hh.shape[1], w_hh.shape[0] // 4) if mode == "LSTM" else (w_hh.shape[1],)


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return zeros(shape, dtype=like.dtype, device=like.device)


# ---- by the operations of the formulas ------------------------------------------------------------


def _step(
    mode: str, projected: Tensor, hidden: Tensor, state: State, w_hr: Tensor | None = None
) -> State:
    """The next state, from what input and state contribute to the gates (N, gates * hidden)."""
    if mode == "LSTM":
        i, f, g, o = (projected + hidden).chunk(4, 1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        out = o.sigmoid() * c.tanh()
        return (out if w_hr is None else _linear(out, w_hr)), c
    if mode == "GRU":
        r_x, z_x, n_x = projected.chunk(3, 1)
        r_h, z_h, n_h = hidden.chunk(3, 1)
        n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
        return (n + (z_x + z_h).sigmoid() * (state[0] - n),)
    total = projected + hidden
    return (total.tanh() if mode == "RNN_TANH" else total.relu(),)


def _layer_by_steps(
    input: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    h: Any,
    c: Tensor | None,
    mode: str,
    sizes: tuple[int, ...],
    reverse: bool,
) -> State:
    """`layer`, step by step."""
    start: State = (h,) if c is None else (h, c)
    projected = _linear(input, w_ih, b_ih).split(list(sizes))
    outs: list[Tensor] = []
    ended: list[State] = []
    order = range(len(sizes) - 1, -1, -1) if reverse else range(len(sizes))
    state = tuple(part[: sizes[order[0]]] for part in start)
    for t in order:
        n, held = sizes[t], int(state[0].shape[0])
        if n < held:
            ended.append(tuple(part[n:] for part in state))
            state = tuple(part[:n] for part in state)
        elif n > held:  # backwards, longer sequences are joined by shorter ones
            state = tuple(
                FUNCTIONS["cat"]([part, first[held:n]])
                for part, first in zip(state, start, strict=True)
            )
        state = _step(mode, projected[t], _linear(state[0], w_hh, b_hh), state, w_hr)
        outs.append(state[0])
    if ended:
        parts = [state, *reversed(ended)]
        state = tuple(FUNCTIONS["cat"](list(part)) for part in zip(*parts, strict=True))
    return FUNCTIONS["cat"](outs[::-1] if reverse else outs), *state


def _differentiable(
    run: Callable[..., Any], args: Sequence[Any], constants: Sequence[Any], grads: Sequence[Any]
) -> tuple[Any, ...]:
    """The gradients of `run(*args, *constants)` as functions of its arguments, for `create_graph`."""
    # A tensor may stand in two places: each gets a node of its own.
    own = [a.view(a.shape) if isinstance(a, Tensor) and a._requires_grad else a for a in args]
    outs = run(*own, *constants)
    ends = [(o, g) for o, g in zip(outs, grads, strict=True) if g is not None]
    wanted = [a for a in own if isinstance(a, Tensor) and a._requires_grad]
    found = iter(
        gradients(
            [o for o, _ in ends],
            wanted,
            [g for _, g in ends],
            create_graph=True,
            allow_unused=True,
        )
    )
    return tuple(next(found) if any(a is w for w in wanted) else None for a in own)


# ---- by one operation -----------------------------------------------------------------------------


class MkldnnRnnLayer(Op):
    """A recurrent layer in one direction, over the rows of all steps: see `layer`."""

    name = "mkldnn_rnn_layer"
    direct = EVERY
    num_tensors = 3

    def forward(
        self,
        input: Any,
        w_ih: Any,
        w_hh: Any,
        b_ih: Any,
        b_hh: Any,
        w_hr: Any,
        h: Any,
        c: Any,
        mode: str,
        sizes: tuple[int, ...],
        reverse: bool,
    ) -> Any:
        self.mode, self.sizes, self.reverse, self.starts = mode, sizes, reverse, h is not None
        self.start = self._start(w_hh, h, c)
        kernels: Any = kernels_for(input)
        bias, apart = b_ih, None
        if b_ih is not None and mode == "GRU":
            begin = 2 * len(b_ih) // 3
            bias, apart = b_ih.copy(), b_hh[begin:]
            bias[:begin] += b_hh[:begin]
        elif b_ih is not None:
            bias = b_ih + b_hh
        gates = kernels.linear(input, w_ih, bias)
        out, last, self.kept = kernels.recurrent(
            mode, gates, None, w_hh, apart, w_hr, self.start, sizes, reverse
        )
        return out, *last

    def _start(self, w_hh: Any, h: Any, c: Any) -> tuple[Any, ...]:
        """The first states; zeros if none are given."""
        if h is not None:
            return (h,) if c is None else (h, c)
        widths = _widths(self.mode, w_hh)
        return tuple(self.xp.zeros((self.sizes[0], width), w_hh.dtype) for width in widths)

    def backward(
        self,
        grad: Any,
        input: Any,
        w_ih: Any,
        w_hh: Any,
        b_ih: Any,
        b_hh: Any,
        w_hr: Any,
        h: Any,
        c: Any,
        out: Any,
    ) -> Any:
        if any(isinstance(v, Tensor) for v in (*grad, input, w_ih, w_hh, h)):
            args = [input, w_ih, w_hh, b_ih, b_hh, w_hr, *self._starts_like(input, h, c)]
            return _differentiable(
                _layer_by_steps, args, (self.mode, self.sizes, self.reverse), grad
            )
        kernels: Any = kernels_for(out)
        slopes, of_state, of_start, of_out = kernels.recurrent_grad(
            self.mode, grad[0], tuple(grad[1:]), out, self.kept, w_hh, w_hr, self.start,
            self.sizes, self.reverse,
        )  # fmt: skip
        needs, into = self.needs, self.target or [None] * len(self.needs)
        found: list[Any] = [None] * 8
        if needs[0]:
            found[0] = kernels.matmul(slopes, w_ih)
        if needs[1]:
            found[1] = kernels.matmul(slopes.T, input, out=into[1])
        if needs[2]:
            found[2] = self._of_recurrent_weight(kernels, of_state, out, into[2])
        if needs[3]:
            found[3] = kernels.column_sums(slopes)
        if needs[4]:
            same = of_state is slopes and found[3] is not None
            found[4] = found[3].copy() if same else kernels.column_sums(of_state)
        if needs[5]:
            found[5] = kernels.matmul(of_out.T, self.kept[2], out=into[5])
        found[6:] = of_start if len(of_start) == 2 else (*of_start, None)
        return tuple(found)

    def _starts_like(self, input: Any, h: Any, c: Any) -> tuple[Any, Any]:
        if self.starts:
            return h, c
        parts = [_zeros(input, part.shape) for part in self.start]
        return parts[0], parts[1] if len(parts) == 2 else None

    def _of_recurrent_weight(self, kernels: Any, of_state: Any, out: Any, into: Any) -> Any:
        """The product of what reached the gates and the state that each step began with."""
        n, start = self.sizes[0], self.start[0]
        if self.sizes[-1] != n:
            return kernels.matmul(of_state.T, self._before(out, start), out=into)
        later, first = slice(n, None), slice(None, n)
        before = slice(None, len(out) - n)
        if self.reverse:
            later, first, before = before, slice(len(out) - n, None), later
        if len(self.sizes) == 1:
            return kernels.matmul(of_state.T, start, out=into)
        product = kernels.matmul(of_state[later].T, out[before], out=into)
        if self.starts:
            product += kernels.matmul(of_state[first].T, start)
        return product

    def _before(self, out: Any, start: Any) -> Any:
        """The state before each step, for sequences of several lengths."""
        ends = np.cumsum(self.sizes)
        before, place = [], len(out)
        for t, n in enumerate(self.sizes):
            last = t + 1 if self.reverse else t - 1
            running = min(n, self.sizes[last]) if 0 <= last < len(self.sizes) else 0
            begin = ends[last] - self.sizes[last] if running else 0
            before.append(np.arange(begin, begin + running))
            before.append(np.arange(place + running, place + n))
        xp = namespace_of(out)
        return xp.concatenate([out, start])[xp.asarray(np.concatenate(before))]


class ThnnFusedLstmCell(Op):
    """(N, 4 hidden) of input and of state, and c -> the next (h, c)."""

    name = "_thnn_fused_lstm_cell"
    num_tensors = 3

    def forward(self, projected: Any, hidden: Any, c: Any) -> Any:
        gates, sizes = projected + hidden, (len(c),)
        out, last, self.kept = kernels_for(c).recurrent(
            "LSTM", gates, None, None, None, None, (c, c), sizes, False
        )
        return out, last[1]

    def backward(self, grad: Any, projected: Any, hidden: Any, c: Any) -> Any:
        if any(isinstance(v, Tensor) for v in (*grad, projected, hidden, c)):
            return _differentiable(_lstm_step, (projected, hidden, c), (), grad)
        slopes, _, of_start, _ = kernels_for(c).recurrent_grad(
            "LSTM", None, tuple(grad), c, self.kept, None, None, (c, c), (len(c),), False
        )
        return slopes, slopes, of_start[1]


def _lstm_step(projected: Tensor, hidden: Tensor, c: Tensor) -> State:
    return _step("LSTM", projected, hidden, (c, c))


class ThnnFusedGruCell(Op):
    """(N, 3 hidden) of input and of state, and h -> the next h."""

    name = "_thnn_fused_gru_cell"
    num_tensors = 3
    saved_for: ClassVar[dict[str, int]] = {}

    def forward(self, projected: Any, hidden: Any, h: Any) -> Any:
        gates, begin = projected.copy(), 2 * h.shape[1]
        gates[:, :begin] += hidden[:, :begin]
        out, _, self.kept = kernels_for(h).recurrent(
            "GRU", gates, hidden[:, begin:].copy(), None, None, None, (h,), (len(h),), False
        )
        return out

    def backward(self, grad: Any, projected: Any, hidden: Any, h: Any) -> Any:
        if any(isinstance(v, Tensor) for v in (grad, projected, hidden, h)):
            return _differentiable(_gru_step, (projected, hidden, h), (), (grad,))
        slopes, of_state, of_start, _ = kernels_for(h).recurrent_grad(
            "GRU", grad, (None,), h, self.kept, None, None, (h,), (len(h),), False
        )
        return slopes, of_state, of_start[0]


def _gru_step(projected: Tensor, hidden: Tensor, h: Tensor) -> State:
    return _step("GRU", projected, hidden, (h,))


# ---- what layers and cells call -------------------------------------------------------------------


def layer(
    mode: str,
    input: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    start: State | None,
    sizes: tuple[int, ...],
    reverse: bool,
) -> tuple[Tensor, State]:
    """One layer in one direction.

    Args:
        mode: a key of `GATES`.
        input: (sum of sizes, features), the rows of a step behind those of the step before, sequences sorted
            by falling length: as in a packed sequence.
        weights: w_ih, w_hh, b_ih, b_hh, w_hr; the last three may be None.
        start: the first state, (h,) or (h, c); None for zeros.
        sizes: how many sequences run at each step.
        reverse: from the last step to the first.

    Returns:
        The outputs (sum of sizes, width), and the last states.
    """
    served = _served((input, *weights, *(start or ())))
    if start is None and not served:
        start = tuple(_zeros(input, (sizes[0], n)) for n in _widths(mode, weights[1]))
    h, c = (*(start or ()), None, None)[:2]
    run = MkldnnRnnLayer.apply if served else _layer_by_steps
    out, *last = run(input, *weights, h, c, mode, sizes, reverse)
    return out, tuple(last)


def cell_step(
    mode: str,
    input: Tensor,
    state: State,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> State:
    """The next state of a cell: (N, features) and (N, hidden) -> (N, hidden), of an LSTM twice."""
    projected, hidden = _linear(input, w_ih, b_ih), _linear(state[0], w_hh, b_hh)
    if mode in ("LSTM", "GRU") and _served((projected, hidden, *state)):
        if mode == "LSTM":
            return tuple(ThnnFusedLstmCell.apply(projected, hidden, state[1]))
        return (ThnnFusedGruCell.apply(projected, hidden, state[0]),)
    return _step(mode, projected, hidden, state)
