"""One step of recurrence: the cells."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.creation import empty, zeros
from dptrain.core.ops.recurrence import cell_step
from dptrain.core.tensor import Tensor
from dptrain.nn import init
from dptrain.nn.module import Module
from dptrain.nn.parameter import Parameter


class RNNCellBase(Module):
    """Parameters, checks and text of the cells.

    Args:
        input_size, hidden_size: features of the input and of the state.
        bias: whether there are summands.
        num_chunks: blocks of hidden_size rows of the weights.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    bias_ih: Parameter | None
    bias_hh: Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        num_chunks: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        rows, options = num_chunks * hidden_size, {"device": device, "dtype": dtype}
        self.weight_ih = Parameter(empty(rows, input_size, **options))
        self.weight_hh = Parameter(empty(rows, hidden_size, **options))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, Parameter(empty(rows, **options)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new initial values from U(-k, k) with k = 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        """The options that differ from their defaults, as PyTorch prints them."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.bias is not True:
            parts.append(f"bias={self.bias}")
        if getattr(self, "nonlinearity", "tanh") != "tanh":
            parts.append(f"nonlinearity={self.nonlinearity}")
        return ", ".join(parts)

    def _next(self, mode: str, input: Tensor, state: tuple[Tensor, ...] | None) -> Any:
        """The next state; inputs without a batch give states without one."""
        name = type(self).__name__
        if input.ndim not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.ndim}D instead")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {input.shape[-1]} expected {self.input_size}"
            )
        x = input if input.ndim == 2 else input.unsqueeze(0)
        shape = (int(x.shape[0]), self.hidden_size)
        if state is None:
            state = (zeros(shape, dtype=x.dtype, device=x.device),) * (2 if mode == "LSTM" else 1)
        else:
            for i, part in enumerate(state):
                if part.ndim not in (1, 2):
                    what = f"hx[{i}]" if mode == "LSTM" else "hidden"
                    raise ValueError(
                        f"{name}: Expected {what} to be 1D or 2D, got {part.ndim}D instead"
                    )
                self._check_state(i, part, shape)
            state = tuple(part if part.ndim == 2 else part.unsqueeze(0) for part in state)
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        found = cell_step(mode, x, state, *weights)
        return found if input.ndim == 2 else tuple(part.squeeze(0) for part in found)

    def _check_state(self, i: int, part: Tensor, shape: tuple[int, int]) -> None:
        batch = int(part.shape[0]) if part.ndim == 2 else 1
        if batch != shape[0]:
            raise RuntimeError(
                f"Input batch size {shape[0]} doesn't match hidden{i} batch size {batch}"
            )
        if part.shape[-1] != shape[1]:
            raise RuntimeError(
                f"hidden{i} has inconsistent hidden_size: got {part.shape[-1]}, expected {shape[1]}"
            )


class RNNCell(RNNCellBase):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or with ReLU.

    Args:
        input_size, hidden_size: features of the input and of the state.
        bias: whether there are summands.
        nonlinearity: "tanh" or "relu".
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(N, input_size), (N, hidden_size) -> (N, hidden_size); also unbatched.

        Raises:
            RuntimeError: an unknown nonlinearity, or sizes that do not fit.
        """
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        mode = f"RNN_{self.nonlinearity.upper()}"
        return self._next(mode, input, None if hx is None else (hx,))[0]


class LSTMCell(RNNCellBase):
    """One step of long short-term memory.

    Args:
        input_size, hidden_size: features of the input and of the cell.
        bias: whether there are summands.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(N, input_size), (h, c) of (N, hidden_size) -> (h, c); also unbatched."""
        return self._next("LSTM", input, hx)


class GRUCell(RNNCellBase):
    """One step of a gated recurrent unit.

    Args:
        input_size, hidden_size: features of the input and of the state.
        bias: whether there are summands.
        device: where the parameters live.
        dtype: type of the parameters; the default dtype if None.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(N, input_size), (N, hidden_size) -> (N, hidden_size); also unbatched."""
        return self._next("GRU", input, None if hx is None else (hx,))[0]
