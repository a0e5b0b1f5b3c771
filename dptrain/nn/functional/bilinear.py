"""Bilinear forms of two inputs."""

from __future__ import annotations

from dptrain.core.half import lift
from dptrain.core.tensor import Tensor
from dptrain.nn.functional.linear import linear


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x1^T W_o x2 + b_o for each output: (..., I1), (..., I2), (O, I1, I2) -> (..., O).

    Raises:
        RuntimeError: shapes that do not fit.
    """
    if input1.shape[:-1] != input2.shape[:-1]:
        raise RuntimeError(
            f"bilinear(): input batch dimensions do not match: got {list(input1.shape)} and {list(input2.shape)}"
        )
    for i, part in enumerate((input1, input2)):
        if weight.ndim != 3 or part.ndim == 0 or part.shape[-1] != weight.shape[i + 1]:
            raise RuntimeError(
                f"bilinear(): input{i + 1} size does not match weight size: got {list(part.shape)} but expected "
                f"(..., in{i + 1}_features) for a weight of shape {list(weight.shape)}"
            )
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise RuntimeError(
            f"bilinear(): bias size does not match weight size: got {list(bias.shape)} but expected {weight.shape[0]}"
        )
    kind = input1.dtype
    input1, input2, weight = lift(input1), lift(input2), lift(weight)
    products = input1.unsqueeze(-1) * input2.unsqueeze(-2)
    rows = products.reshape(*input1.shape[:-1], weight.shape[1] * weight.shape[2])
    out = linear(rows, weight.reshape(weight.shape[0], -1), None if bias is None else lift(bias))
    return out.to(kind)
