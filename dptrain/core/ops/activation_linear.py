"""Activations made of straight pieces (and the quadratic Hardswish). One block per operation.

Slopes are found in the forward pass and kept as constants, so that higher derivatives are zero
where they should be.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from dptrain.core.export import export, in_place
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where
from dptrain.core.ops.elementwise import Clamp
from dptrain.core.ops.shape import Reshape
from dptrain.core.ops.slopes import PassWhere, Slope
from dptrain.core.random import DROPOUT, default_generator
from dptrain.core.tensor import Tensor


def check_floating(op: str, input: Any) -> None:
    """Refuse integers as PyTorch does.

    Raises:
        NotImplementedError: `input` does not hold floating point values.
    """
    if input.dtype.kind in "biu":
        raise NotImplementedError(
            f"{op}: not implemented for {input.dtype} tensors; convert the input with .float()"
        )


def activate(op: type[Op], input: Any, inplace: bool, *args: Any) -> Any:
    """Run an activation, storing the result in `input` if asked."""
    if not inplace:
        return op.apply(input, *args)
    if not isinstance(input, Tensor):
        raise TypeError(
            f"{op.name}(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}"
        )
    return in_place(op.apply, f"{_name(op)}_")(input, *args)


def _name(op: Op | type[Op]) -> str:
    return op.name.rsplit(".", 1)[-1]


class _Passing(Op):
    """The gradient passes, times a constant, where `forward` found so."""

    forgets = True
    passes: Any
    factor: ClassVar[float] = 1

    def backward(self, grad: Any) -> Any:
        return PassWhere.call(grad, self.passes, self.factor)


def _hardtanh(
    input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Any:
    """`input` limited to [min_val, max_val]."""
    if min_val > max_val:
        raise ValueError(
            f"hardtanh: min_val cannot be greater than max_val, got {min_val} and {max_val}"
        )
    return activate(Hardtanh, input, inplace, min_val, max_val)


@export("nn.functional.hardtanh", function=_hardtanh)
class Hardtanh(_Passing):
    """Limit to an interval; the gradient passes inside, not at its ends."""

    def forward(self, input: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
        if input.dtype == np.bool_:
            raise RuntimeError("hardtanh: bool inputs are not supported")
        out, self.passes = kernels_for(input).clip(input, min_val, max_val)
        return out


def _relu6(input: Any, inplace: bool = False) -> Any:
    """min(max(input, 0), 6)."""
    return activate(Hardtanh, input, inplace, 0.0, 6.0)


export("nn.functional.relu6", function=_relu6)(Hardtanh)


def _leaky_relu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """`input` where positive, else negative_slope * input."""
    return activate(LeakyRelu, input, inplace, negative_slope)


@export("nn.functional.leaky_relu", function=_leaky_relu)
class LeakyRelu(Op):
    """max(0, input) + negative_slope * min(0, input)."""

    def forward(self, input: Any, negative_slope: float = 0.01) -> Any:
        check_floating(_name(self), input)
        self.negative_slope = negative_slope
        return kernels_for(input).activation("leaky_relu", input, negative_slope)

    def backward(self, grad: Any, input: Any) -> Any:
        return LeakyReluGrad.call(grad, input, self.negative_slope)


class LeakyReluGrad(Slope):
    """grad where the input is positive, else negative_slope * grad."""

    of = "leaky_relu"


def _rrelu(
    input: Any,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Any:
    """Leaky ReLU whose slope is drawn from U(lower, upper) per element in training, else their mean.

    Raises:
        RuntimeError: lower > upper.
    """
    if not (math.isfinite(lower) and math.isfinite(upper)):
        raise RuntimeError(f"rrelu: bounds must be finite, got {lower} and {upper}")
    if lower > upper:
        raise RuntimeError(
            f"rrelu: lower bound should be less than or equal to the upper bound, got {lower} and {upper}"
        )
    if training:
        return activate(RreluWithNoise, input, inplace, lower, upper)
    return activate(LeakyRelu, input, inplace, (lower + upper) / 2)


@export("nn.functional.rrelu", function=_rrelu)
class RreluWithNoise(Op):
    """Leaky ReLU with random slopes, from the dropout stream."""

    forgets = True

    def forward(self, input: Any, lower: float, upper: float) -> Any:
        check_floating(_name(self), input)
        draws = default_generator().uniform_beside(input, input.shape, DROPOUT)
        slopes = lower + (upper - lower) * draws
        self.slope = self.xp.where(input <= 0, slopes, 1).astype(input.dtype)
        return input * self.slope

    def backward(self, grad: Any) -> Any:
        return Where.call(self.slope == 0, 0, grad * self.slope)


def _prelu(input: Any, weight: Any) -> Any:
    """`input` where positive, else weight * input; one weight, or one per channel (dimension 1).

    Raises:
        RuntimeError: the number of weights fits neither.
    """
    if not isinstance(weight, Tensor) or not isinstance(input, Tensor):
        raise TypeError("prelu(): arguments 'input' and 'weight' must be Tensors")
    if weight.dtype != input.dtype:
        raise RuntimeError(
            f"prelu: Type promoting not supported. Got {input.dtype} and {weight.dtype}"
        )
    if weight.ndim > 1:
        raise RuntimeError(
            f"prelu: Expected `weight` to be a scalar or 1D tensor, but got: ndim = {weight.ndim}"
        )
    if weight.numel() != 1:
        channels = input.shape[1] if input.ndim > 1 else 1
        if input.ndim == 0:
            raise RuntimeError("prelu: Not allow zero-dim input tensor.")
        if channels != weight.numel():
            raise RuntimeError(
                f"prelu: Mismatch of parameter numbers and input channel size. Found parameter numbers = "
                f"{weight.numel()} and channel size = {channels}."
            )
    if input.ndim > 1:
        weight = Reshape.apply(weight, (1, weight.numel()) + (1,) * (input.ndim - 2))
    elif weight.ndim > input.ndim:
        weight = Reshape.apply(weight, ())
    return PreluKernel.apply(input, weight)


@export("nn.functional.prelu", "prelu", methods=("prelu",), function=_prelu)
class PreluKernel(Op):
    """input where positive, else weight * input; the weight broadcasts."""

    num_tensors = 2

    def forward(self, input: Any, weight: Any) -> Any:
        check_floating("prelu", input)
        return kernels_for(input).prelu(input, weight)

    def backward(self, grad: Any, input: Any, weight: Any) -> Any:
        if not any(isinstance(v, Tensor) for v in (grad, input, weight)):
            return kernels_for(input).prelu_grad(grad, input, weight)
        positive = input > 0
        return (
            Where.call(positive, grad, grad * weight),
            Where.call(positive, 0, grad * input) if self.needs[1] else None,
        )


def _threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    """`input` where it is above `threshold`, else `value`."""
    return activate(Threshold, input, inplace, threshold, value)


@export("nn.functional.threshold", "threshold", function=_threshold)
class Threshold(_Passing):
    """input where above the threshold, else a constant."""

    def forward(self, input: Any, threshold: float, value: float) -> Any:
        cut = input <= threshold  # NaN stays NaN
        self.passes = ~cut
        return self.xp.where(cut, input.dtype.type(value), input)


@export("nn.functional.hardshrink", "hardshrink", methods=("hardshrink",))
class Hardshrink(_Passing):
    """`input` outside [-lambd, lambd], 0 inside."""

    def forward(self, input: Any, lambd: float = 0.5) -> Any:
        check_floating("hardshrink", input)
        inside = (input >= -lambd) & (input <= lambd)
        self.passes = ~inside
        return self.xp.where(inside, input.dtype.type(0), input)


@export("nn.functional.softshrink")
class Softshrink(_Passing):
    """`input` moved towards 0 by lambd, 0 inside [-lambd, lambd]."""

    def forward(self, input: Any, lambd: float = 0.5) -> Any:
        check_floating("softshrink", input)
        if not lambd >= 0:
            raise RuntimeError(
                f"softshrink: lambda must be greater or equal to 0, but found to be {lambd}."
            )
        step = input.dtype.type(lambd)
        inside = (input >= -step) & (input <= step)
        self.passes = ~inside
        return self.xp.where(inside, input.dtype.type(0), input - self.xp.copysign(step, input))


def _hardsigmoid(input: Any, inplace: bool = False) -> Any:
    """relu6(input + 3) / 6."""
    return activate(Hardsigmoid, input, inplace)


@export("nn.functional.hardsigmoid", function=_hardsigmoid)
class Hardsigmoid(_Passing):
    """0 up to -3, 1 from 3 on, straight between."""

    factor = 1 / 6

    def forward(self, input: Any) -> Any:
        check_floating("hardsigmoid", input)
        kind = input.dtype.type
        self.passes = (input > -3) & (input < 3)
        out = self.xp.clip(input + kind(3), kind(0), kind(6)) / kind(6)
        return out.astype(input.dtype, copy=False)


def _hardswish(input: Any, inplace: bool = False) -> Any:
    """input * relu6(input + 3) / 6."""
    return activate(Hardswish, input, inplace)


@export("nn.functional.hardswish", function=_hardswish)
class Hardswish(Op):
    """input * hardsigmoid(input). Source: Howard et al., "Searching for MobileNetV3", 2019."""

    saved_for: ClassVar[dict[str, int]] = {"input": 0}

    def forward(self, input: Any) -> Any:
        check_floating("hardswish", input)
        return kernels_for(input).activation("hardswish", input)

    def backward(self, grad: Any, input: Any) -> Any:
        if not isinstance(grad, Tensor) and not isinstance(input, Tensor):
            found = kernels_for(input).activation_grad("hardswish", grad, input)
            return Where.call(input <= -3, 0, found)  # an infinite gradient does not pass either
        # Outside (-3, 3) the slope is that of the straight ends, which clamping gives: 0 and 1.
        inside = (input > -3) & (input < 3)
        ends = Clamp.call(input / 6 + 0.5, 0, 1)
        slope = Where.call(inside, input / 3 + 0.5, ends)
        return Where.call(input <= -3, 0, grad * slope)
