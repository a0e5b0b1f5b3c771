"""Arithmetic, element by element. One block per operation; broadcasting belongs to the engine."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dptrain.core.arrays import as_array, is_array, on_gpu
from dptrain.core.dtypes import float64, get_default_dtype, held, result_dtype
from dptrain.core.export import export
from dptrain.core.half import rounded_once
from dptrain.core.kernels import in_one_order, kernels_for, total
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where, zeros_for
from dptrain.core.ops.unary import Log


def _times(value: Any, alpha: Any) -> Any:
    """value * alpha in the type of `value`; a number when both are numbers."""
    if alpha == 1:
        return value
    if is_array(value):
        if value.dtype.kind in "biu" and isinstance(alpha, float):
            raise RuntimeError(
                f"for integral input tensors, argument alpha must not be a floating point number, got {alpha}"
            )
        # A negative alpha for unsigned integers counts modulo their range, as in PyTorch.
        return value * np.asarray(alpha).astype(value.dtype)[()]
    return value * alpha


def _both_floating_on_gpu(input: Any, other: Any) -> bool:
    return on_gpu(input) and on_gpu(other) and input.dtype.kind in "fV"


def _product(input: Any, other: Any) -> Any:
    """Of arrays, Tensors or numbers."""
    if on_gpu(input) and on_gpu(other):
        return kernels_for(input).multiply(input, other)
    input, other = in_one_order(input, other)
    return input * other


@rounded_once
def _add_scaled(op: Op, input: Any, other: Any, alpha: Any) -> Any:
    return input + _times(other, alpha)


@rounded_once
def _subtract_scaled(op: Op, input: Any, other: Any, alpha: Any) -> Any:
    return input - _times(other, alpha)


@export("add", methods=("add", "__add__", "__radd__"), inplace=("add_", "__iadd__"))
class Add(Op):
    """input + alpha * other."""

    forgets = True
    promotes = 2
    takes_mixed = True
    num_tensors = 0
    numbers_only = True
    alpha: Any = 1

    def forward(self, input: Any, other: Any, *, alpha: Any = 1) -> Any:
        if alpha == 1 and type(input) is type(other):  # rounded once in any type
            return total(input, other)
        self.alpha = alpha
        if _both_floating_on_gpu(input, other):
            return kernels_for(input).add(input, other, alpha)
        return _add_scaled(self, input, other, alpha)

    def backward(self, grad: Any) -> Any:
        return grad, _times(grad, self.alpha)


def _refuse_bool(op: str, input: Any, other: Any) -> None:
    if getattr(input, "dtype", None) == np.bool_ and getattr(other, "dtype", np.bool_) == np.bool_:
        raise RuntimeError(
            f"{op}: the `-` operator is not supported for bool tensors; use ~ or logical_not()"
        )


@export(
    "sub",
    "subtract",
    methods=("sub", "subtract", "__sub__"),
    inplace=("sub_", "subtract_", "__isub__"),
    reflected=("__rsub__",),
)
class Sub(Op):
    """input - alpha * other."""

    promotes = 2
    takes_mixed = True
    num_tensors = 0
    takes_bool = False
    numbers_only = True
    alpha: Any = 1

    def forward(self, input: Any, other: Any, *, alpha: Any = 1) -> Any:
        _refuse_bool("sub", input, other)
        self.alpha = alpha
        if _both_floating_on_gpu(input, other):
            return kernels_for(input).add(input, other, -alpha)
        if alpha == 1 and type(input) is type(other):
            return input - other
        return _subtract_scaled(self, input, other, alpha)

    def backward(self, grad: Any) -> Any:
        return grad, _times(grad, -self.alpha)


@export(
    "mul",
    "multiply",
    methods=("mul", "multiply", "__mul__", "__rmul__"),
    inplace=("mul_", "multiply_", "__imul__"),
)
class Mul(Op):
    """input * other."""

    saved_for: ClassVar[dict[str, int]] = {"input": 1, "other": 0}
    promotes = 2
    num_tensors = 0
    numbers_only = True

    def forward(self, input: Any, other: Any) -> Any:
        return _product(input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        d_input = _product(grad, other) if self.needs[0] else None
        return d_input, _product(grad, input) if self.needs[1] else None


def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """input / other; `rounding_mode` is None, "trunc" or "floor"."""
    if rounding_mode is None:
        return Div.apply(input, other)
    if rounding_mode == "floor":
        return FloorDivide.apply(input, other)
    if rounding_mode == "trunc":
        return TruncDivide.apply(input, other)
    raise RuntimeError(
        f"div expected rounding_mode to be one of None, 'trunc', or 'floor' but found {rounding_mode!r}"
    )


@export(
    "div",
    "divide",
    "true_divide",
    methods=("div", "divide", "true_divide", "__truediv__", "__div__"),
    inplace=("div_", "divide_", "true_divide_", "__itruediv__", "__idiv__"),
    reflected=("__rtruediv__",),
    function=_div,
    tensors=0,
)
class Div(Op):
    """input / other; integers give floating point."""

    in_float32 = True
    saved_for: ClassVar[dict[str, int]] = {"input": 1}
    promotes = 2
    num_tensors = 0
    numbers_only = True

    def forward(self, input: Any, other: Any) -> Any:
        if not is_array(other) and other == 0:
            other = self.xp.asarray(other, dtype=input.dtype)
        if input.dtype.kind in "biu":
            kind = get_default_dtype().numpy
            return input.astype(kind) / self.xp.asarray(other).astype(kind)
        return input / other

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        g = grad / other
        return g, -g * input / other if self.needs[1] else None


def _check_integer_division(op: str, input: Any, other: Any) -> None:
    if input.dtype.kind in "iu" and (as_array(other) == 0).any():
        raise RuntimeError(f"{op}: ZeroDivisionError: integer division or modulo by zero")


@export(
    "floor_divide",
    methods=("floor_divide", "__floordiv__"),
    inplace=("floor_divide_", "__ifloordiv__"),
    reflected=("__rfloordiv__",),
)
class FloorDivide(Op):
    """The quotient rounded towards minus infinity."""

    in_float32 = True
    backward_name = "DivBackward2"
    promotes = 2
    num_tensors = 0
    numbers_only = True

    def forward(self, input: Any, other: Any) -> Any:
        _check_integer_division("floor_divide", input, other)
        return self.xp.floor_divide(input, other)

    def backward(self, grad: Any) -> Any:
        return zeros_for(grad), zeros_for(grad)  # flat between its jumps


class TruncDivide(Op):
    """The quotient rounded towards zero (`div(..., rounding_mode="trunc")`)."""

    backward_name = "DivBackward2"
    promotes = 2
    num_tensors = 0

    def forward(self, input: Any, other: Any) -> Any:
        _check_integer_division("div", input, other)
        if input.dtype.kind not in "iu":
            return self.xp.trunc(input / other)
        quotient = self.xp.floor_divide(input, other)
        return quotient + ((quotient < 0) & (quotient * other != input)).astype(input.dtype)

    def backward(self, grad: Any) -> Any:
        return zeros_for(grad), zeros_for(grad)  # flat between its jumps


@export(
    "remainder",
    methods=("remainder", "__mod__"),
    inplace=("remainder_", "__imod__"),
    reflected=("__rmod__",),
)
class Remainder(Op):
    """The remainder with the sign of the divisor, as Python's `%`."""

    in_float32 = True
    saved_for: ClassVar[dict[str, int]] = {"input": 1, "other": 1}
    promotes = 2
    num_tensors = 0

    def forward(self, input: Any, other: Any) -> Any:
        _check_integer_division("remainder", input, other)
        return self.xp.remainder(input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        return grad, -grad * FloorDivide.call(input, other) if self.needs[1] else None


def _integer_pow(input: Any, exponent: Any) -> Any:
    """Integer powers; a negative one rounds to 0 unless the base is 1 or -1."""
    power = np.power(input, np.maximum(exponent, 0))
    of_minus_one = 1 - 2 * (exponent & 1)
    inverse = np.where(input == 1, 1, np.where(input == -1, of_minus_one, 0))
    return np.where(exponent < 0, inverse, power).astype(power.dtype)


def _pow(input: Any, exponent: Any) -> Any:
    """input ** exponent, element by element."""
    if type(exponent) is int and exponent < 0 and getattr(input, "dtype", float64).category < 2:
        raise RuntimeError("pow: Integers to negative integer powers are not allowed.")
    return Pow.apply(input, exponent)


@export(
    "pow",
    methods=("pow", "__pow__"),
    inplace=("pow_", "__ipow__"),
    reflected=("__rpow__",),
    function=_pow,
    tensors=0,
)
class Pow(Op):
    """input ** exponent."""

    in_float32 = True
    promotes = 2
    num_tensors = 0

    def forward(self, input: Any, exponent: Any) -> Any:
        if input.dtype.kind == "i":
            return _integer_pow(input, exponent)
        if is_array(exponent):
            self.backward_name = "PowBackward1"
        return input**exponent

    def backward(self, grad: Any, input: Any, exponent: Any, out: Any) -> Any:
        d_input = d_exponent = None
        if self.needs[0]:
            if not is_array(exponent) and not hasattr(exponent, "_array"):
                if exponent == 0:
                    d_input = zeros_for(grad)
                else:
                    below = input if exponent == 2 else input ** (exponent - 1)
                    d_input = grad * (below * exponent)
            else:
                slope = exponent * input ** (exponent - 1)
                d_input = grad * Where.call(exponent == 0, 0.0, slope)  # slope may be 0 * inf
        if self.needs[1]:
            # d/dy x^y = x^y ln x, and 0 where x = 0 and y >= 0.
            slope = out * Log.call(input)
            d_exponent = grad * Where.call((input == 0) & (exponent >= 0), 0, slope)
        return d_input, d_exponent


@export("neg", "negative", methods=("neg", "negative", "__neg__"), inplace=("neg_", "negative_"))
class Neg(Op):
    """-input."""

    def forward(self, input: Any) -> Any:
        _refuse_bool("neg", input, input)
        return -input

    def backward(self, grad: Any) -> Any:
        return -grad


@export("maximum", methods=("maximum",))
class Maximum(Op):
    """The larger of both; ties share the gradient, NaN wins."""

    promotes = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        return self.xp.maximum(input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        return _share_ties(grad, input, other, input > other)


@export("minimum", methods=("minimum",))
class Minimum(Op):
    """The smaller of both; ties share the gradient, NaN wins."""

    promotes = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        return self.xp.minimum(input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        return _share_ties(grad, input, other, input < other)


def _share_ties(grad: Any, input: Any, other: Any, first_wins: Any) -> Any:
    halves = Where.call(input == other, grad / 2, grad)
    return Where.call(first_wins | (input == other), halves, 0), Where.call(first_wins, 0, halves)


#: What never changes the type of a floating point tensor.
_NUMBERS = frozenset([int, float, type(None)])


class Clamp(Op):
    """Limit to [min, max]; either bound may be None. The gradient passes where nothing was cut."""

    backward_name = "ClampBackward1"

    def forward(self, input: Any, min: Any = None, max: Any = None) -> Any:
        if min is None and max is None:
            raise RuntimeError("clamp: at least one of 'min' or 'max' must not be None")
        kind = input.dtype
        if kind.kind != "f" or not _NUMBERS.issuperset((type(min), type(max))):
            kind = result_dtype([v for v in (input, min, max) if v is not None]).numpy
        out = input.astype(kind, copy=False)
        if kind.kind in "iu":
            min, max = (held("clamp", v, kind) for v in (min, max))
        if min is not None:
            out = self.xp.maximum(out, self.xp.asarray(min, dtype=kind))
        if max is not None:
            out = self.xp.minimum(out, self.xp.asarray(max, dtype=kind))
        self.inside = out == input
        return out

    def backward(self, grad: Any) -> Any:
        return Where.call(as_array(self.inside), grad, 0)
