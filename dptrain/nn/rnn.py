"""Recurrent layers: plain, LSTM and GRU, over whole sequences. Single cells are in `rnn_cells.py`."""

from __future__ import annotations

import math
import warnings
from typing import Any

from dptrain.core.autocast import lower_types
from dptrain.core.autocast_policy import casting
from dptrain.core.callers import level_outside
from dptrain.core.creation import empty
from dptrain.core.export import FUNCTIONS
from dptrain.core.ops.recurrence import GATES, State
from dptrain.core.ops.recurrence import layer as run_layer
from dptrain.core.tensor import Tensor
from dptrain.nn import functional as F
from dptrain.nn import init
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter
from dptrain.nn.utils.rnn import PackedSequence

#: What PyTorch computes as one operation on the CPU, autocast casts as one: the states too.
_in_one = casting("mkldnn_rnn_layer", lambda *operands: operands)


class RNNBase(Module):
    """Layers of recurrent cells over sequences; `RNN`, `LSTM` and `GRU` say which.

    Parameters `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, ... (with `_reverse` for the
    second direction) start from U(-k, k) with k = 1 / sqrt(hidden_size).

    Args:
        mode: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
        input_size: features of the input.
        hidden_size: features of the state.
        num_layers: layers on top of each other.
        bias: whether there are summands.
        batch_first: inputs and outputs are (N, L, features).
        dropout: probability of an element to be dropped between the layers.
        bidirectional: whether each layer also runs from the end.
        proj_size: features that an LSTM's state is projected to; 0 for none.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.

    Raises:
        TypeError: an option of another type.
        ValueError: sizes or options that do not go together.
    """

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.mode, self.input_size, self.hidden_size = mode, input_size, hidden_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout, self.bidirectional, self.proj_size = dropout, bidirectional, proj_size
        self._check_options()
        directions = 2 if bidirectional else 1
        rows, out = GATES[mode] * hidden_size, proj_size or hidden_size
        self._names: list[list[str]] = []
        for layer in range(num_layers):
            for suffix in ("", "_reverse")[:directions]:
                width = input_size if layer == 0 else out * directions
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, width),
                    "weight_hh": (rows, out),
                }
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                names = [f"{name}_l{layer}{suffix}" for name in shapes]
                for name, shape in zip(names, shapes.values(), strict=True):
                    setattr(self, name, Parameter(empty(shape, device=device, dtype=dtype)))
                self._names.append(names)
        self.reset_parameters()

    def _check_options(self) -> None:
        dropout = self.dropout
        if (
            not isinstance(dropout, (int, float))
            or isinstance(dropout, bool)
            or not 0 <= dropout <= 1
        ):
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
            )
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
                f"num_layers greater than 1, but got dropout={self.dropout} and num_layers={self.num_layers}",
                stacklevel=level_outside(),
            )
        for name in ("input_size", "hidden_size", "num_layers"):
            self._check_type(name, int)
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than zero")
        for name in ("bias", "batch_first", "bidirectional"):
            self._check_type(name, bool)
        if self.proj_size < 0:
            raise ValueError(
                "proj_size should be a positive integer or zero to disable projections"
            )
        if self.proj_size >= self.hidden_size:
            raise ValueError("proj_size has to be smaller than hidden_size")
        if self.mode not in GATES:
            raise ValueError(f"Unrecognized RNN mode: {self.mode}")

    def _check_type(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(
                f"{name} should be of type {kind.__name__}, got: {type(value).__name__}"
            )

    def reset_parameters(self) -> None:
        """Draw new initial values."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def flatten_parameters(self) -> None:
        """Accepted for PyTorch's sake; nothing needs it here."""

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._names]

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as PyTorch prints them."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.proj_size:
            parts.append(f"proj_size={self.proj_size}")
        if self.num_layers != 1:
            parts.append(f"num_layers={self.num_layers}")
        if self.bias is not True:
            parts.append(f"bias={self.bias}")
        if self.batch_first is not False:
            parts.append(f"batch_first={self.batch_first}")
        if self.dropout != 0:
            parts.append(f"dropout={self.dropout}")
        if self.bidirectional is not False:
            parts.append(f"bidirectional={self.bidirectional}")
        return ", ".join(parts)

    # ---- running -----------------------------------------------------------------------------------

    def _widths(self) -> tuple[int, ...]:
        """Features of each part of the state."""
        out = self.proj_size or self.hidden_size
        return (out, self.hidden_size) if self.mode == "LSTM" else (out,)

    def _checked(self, hx: State | None, n: int) -> State | None:
        count = self.num_layers * (2 if self.bidirectional else 1)
        shapes = [(count, n, width) for width in self._widths()]
        if hx is None:
            return None
        for part, shape, what in zip(hx, shapes, ("hidden[0]", "hidden[1]"), strict=False):
            if tuple(part.shape) != shape:
                name = what if len(shapes) == 2 else "hidden"
                raise RuntimeError(f"Expected {name} size {shape}, got {list(part.shape)}")
        return hx

    def _run(self, data: Tensor, sizes: tuple[int, ...], hx: State | None) -> tuple[Tensor, State]:
        """All layers over packed elements: (sum of sizes, features) -> the same, and the last states."""
        directions = 2 if self.bidirectional else 1
        last: list[State] = []
        for layer in range(self.num_layers):
            outs = []
            for d in range(directions):
                index = layer * directions + d
                start = None if hx is None else tuple(part[index] for part in hx)
                out, end = run_layer(self.mode, data, self._weights(index), start, sizes, d == 1)
                outs.append(out)
                last.append(end)
            data = outs[0] if directions == 1 else FUNCTIONS["cat"](outs, -1)
            if self.dropout and layer < self.num_layers - 1:
                data = F.dropout(data, self.dropout, self.training)
        return data, tuple(FUNCTIONS["stack"](list(parts)) for parts in zip(*last, strict=True))

    def _weights(self, index: int) -> Any:
        """w_ih, w_hh, b_ih, b_hh, w_hr of a layer and direction, None for what it does not have."""
        weights = self.all_weights[index]
        biases = weights[2:4] if self.bias else (None, None)
        return *weights[:2], *biases, weights[-1] if self.proj_size else None

    def _forward(self, input: Any, hx: State | None) -> tuple[Any, State]:
        name = type(self).__name__
        if isinstance(input, PackedSequence):
            self._check_features(input.data)
            order, back = input.sorted_indices, input.unsorted_indices
            sizes = tuple(int(s) for s in input.batch_sizes.tolist())
            if hx is not None and order is not None:
                hx = tuple(part[:, order] for part in hx)
            out, last = self._run(input.data, sizes, self._checked(hx, sizes[0]))
            if back is not None:
                last = tuple(part[:, back] for part in last)
            return PackedSequence(out, input.batch_sizes, order, back), last
        if input.ndim not in (2, 3):
            raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.ndim}D instead")
        self._check_features(input)
        batched = input.ndim == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        if hx is not None:
            wanted = 3 if batched else 2
            for part in hx:
                if part.ndim != wanted:
                    kind = "batched 3-D" if batched else "unbatched 2-D"
                    raise RuntimeError(
                        f"For {kind} input, hx should also be {wanted}-D but got {part.ndim}-D tensor"
                    )
            hx = hx if batched else tuple(part.unsqueeze(1) for part in hx)
        length, n = (int(s) for s in x.shape[:2])
        if length == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        state = self._checked(hx, n)
        if self.mode == "LSTM" and not self.proj_size:
            x, state = _in_one(x, state)
        out, last = self._run(x.reshape(length * n, self.input_size), (n,) * length, state)
        out = out.reshape(length, n, -1) if n else out.reshape(length, n, self._out_features())
        if not batched:
            return out.squeeze(1), tuple(part.squeeze(1) for part in last)
        return (out.transpose(0, 1) if self.batch_first else out), last

    def _out_features(self) -> int:
        return self._widths()[0] * (2 if self.bidirectional else 1)

    def _check_features(self, input: Tensor) -> None:
        if lower_types() is None and input.dtype is not self.all_weights[0][0].dtype:
            raise ValueError(
                f"input must have the type {self.all_weights[0][0].dtype}, got type {input.dtype}"
            )
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {input.shape[-1]}"
            )


class RNN(RNNBase):
    """Layers of h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or with ReLU, over sequences.

    Args:
        input_size, hidden_size: features of the input and of the state.
        num_layers: layers on top of each other.
        nonlinearity: "tanh" or "relu".
        bias, batch_first, dropout, bidirectional, device, dtype: as for `RNNBase`.

    Raises:
        ValueError: an unknown nonlinearity, or options that do not go together.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        mode = f"RNN_{nonlinearity.upper()}"
        options = (num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype)
        super().__init__(mode, input_size, hidden_size, *options)
        self.nonlinearity = nonlinearity

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        """(L, N, input_size) -> (L, N, features), and the last states (layers, N, hidden_size)."""
        out, last = self._forward(input, None if hx is None else (hx,))
        return out, last[0]


class LSTM(RNNBase):
    """Layers of long short-term memory over sequences.

    Args:
        input_size, hidden_size: features of the input and of the cell.
        num_layers: layers on top of each other.
        bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as for `RNNBase`.

    Raises:
        ValueError: options that do not go together.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        super().__init__("LSTM", input_size, hidden_size, *options)

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """(L, N, input_size) -> (L, N, features), and the last (h, c)."""
        out, last = self._forward(input, hx)
        return out, (last[0], last[1])


class GRU(RNNBase):
    """Layers of gated recurrent units over sequences.

    Args:
        input_size, hidden_size: features of the input and of the state.
        num_layers: layers on top of each other.
        bias, batch_first, dropout, bidirectional, device, dtype: as for `RNNBase`.

    Raises:
        ValueError: options that do not go together.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype)
        super().__init__("GRU", input_size, hidden_size, *options)

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Any, Tensor]:
        """(L, N, input_size) -> (L, N, features), and the last states (layers, N, hidden_size)."""
        out, last = self._forward(input, None if hx is None else (hx,))
        return out, last[0]
