"""Convolutions that are not operations of the core."""

from __future__ import annotations

from dptrain.core.export import FUNCTIONS
from dptrain.core.tensor import Tensor


def conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """1-d convolution of sequences: (T, N, in) with (taps, in, out) -> (T + 2 pad - taps + 1, N, out).

    Raises:
        RuntimeError: dimensions that do not fit.
    """
    for name, given, dims in (("input", input, 3), ("weight", weight, 3), ("bias", bias, 1)):
        if given.ndim != dims:
            raise RuntimeError(f"conv_tbc: {name} must have {dims} dims, got {given.ndim}")
    out: Tensor = FUNCTIONS["conv1d"](
        input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad
    )
    return out.permute(2, 0, 1)
