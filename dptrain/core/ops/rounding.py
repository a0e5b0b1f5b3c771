"""Rounding, remainders, signs, bits and ternary arithmetic. One block per operation."""

from __future__ import annotations

from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from dptrain.core.arrays import as_array
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where, zeros_for
from dptrain.core.ops.elementwise import Sub
from dptrain.core.ops.transcendental import Exp2
from dptrain.core.ops.unary import Sign
from dptrain.core.results import results
from dptrain.core.tensor import Tensor


class _Step(Op):
    """Flat between its jumps; integers are their own rounding."""

    def forward(self, input: Any) -> Any:
        if input.dtype == np.bool_:
            raise RuntimeError(f"{self.name}: not implemented for bool tensors")
        return input.copy() if input.dtype.kind in "iu" else self._round(input)

    def _round(self, input: Any) -> Any:
        raise NotImplementedError

    def backward(self, grad: Any) -> Any:
        return zeros_for(grad)


@export("ceil", methods=("ceil",), inplace=("ceil_",))
class Ceil(_Step):
    """The smallest integer not below."""

    def _round(self, input: Any) -> Any:
        return self.xp.ceil(input)


@export("floor", methods=("floor",), inplace=("floor_",))
class Floor(_Step):
    """The largest integer not above."""

    def _round(self, input: Any) -> Any:
        return self.xp.floor(input)


@export("trunc", "fix", methods=("trunc", "fix"), inplace=("trunc_", "fix_"))
class Trunc(_Step):
    """Rounded towards zero."""

    def _round(self, input: Any) -> Any:
        return self.xp.trunc(input)


def _round(input: Any, *, decimals: int = 0) -> Any:
    """Rounded to `decimals` digits, halves to even."""
    return Round.apply(input, decimals)


@export("round", methods=("round",), inplace=("round_",), function=_round)
class Round(Op):
    """Rounded to a number of decimals, halves to even."""

    in_float32 = True

    def forward(self, input: Any, decimals: int) -> Any:
        if input.dtype.kind in "biu":
            if decimals or input.dtype == np.bool_:
                raise NotImplementedError(f"round: not implemented for {input.dtype} tensors")
            return input.copy()
        if decimals == 0:
            return self.xp.rint(input)
        scale = input.dtype.type(10.0 ** abs(decimals))
        if decimals > 0:
            return self.xp.rint(input * scale) / scale
        return self.xp.rint(input / scale) * scale

    def backward(self, grad: Any) -> Any:
        return zeros_for(grad)


@export("frac", methods=("frac",), inplace=("frac_",))
class Frac(Op):
    """The part behind the point, with the sign of the input."""

    def forward(self, input: Any) -> Any:
        if input.dtype.kind in "biu":
            raise RuntimeError(f"frac: not implemented for {input.dtype}; expected floating point")
        return input - self.xp.trunc(input)

    def backward(self, grad: Any) -> Any:
        return grad


@export("fmod", methods=("fmod",), inplace=("fmod_",))
class Fmod(Op):
    """The remainder with the sign of the dividend, as C's fmod."""

    in_float32 = True
    saved_for: ClassVar[dict[str, int]] = {"input": 1, "other": 1}
    promotes = 2

    def forward(self, input: Any, other: Any) -> Any:
        if input.dtype.kind in "iu" and (as_array(other) == 0).any():
            raise RuntimeError("fmod: ZeroDivisionError: integer division or modulo by zero")
        return self.xp.fmod(input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        return grad, -grad * Trunc.call(input / other) if self.needs[1] else None


@export("positive", methods=("positive", "__pos__"))
class Positive(Op):
    """+input: the tensor itself; not for booleans."""

    is_view = True

    def forward(self, input: Any) -> Any:
        if input.dtype == np.bool_:
            raise RuntimeError("positive: the `+` operator, on a bool tensor, is not supported")
        return input

    def backward(self, grad: Any) -> Any:
        return grad


@export("signbit", methods=("signbit",))
class SignBit(Op):
    """Whether the sign bit is set (-0.0 counts as negative)."""

    differentiable = False

    def forward(self, input: Any) -> Any:
        return (
            self.xp.zeros(input.shape, bool) if input.dtype.kind in "bu" else self.xp.signbit(input)
        )


def _rsub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    """other - alpha * input."""
    return Sub.apply(other, input, alpha=alpha)


export("rsub", function=_rsub)(Sub)
export("sgn", methods=("sgn",), inplace=("sgn_",))(Sign)


@export("heaviside", methods=("heaviside",), inplace=("heaviside_",))
class Heaviside(Op):
    """0 below zero, 1 above, `values` at zero; both of one dtype."""

    differentiable = False
    num_tensors = 2

    def forward(self, input: Any, values: Any) -> Any:
        if input.dtype != values.dtype:
            raise RuntimeError(
                f"heaviside: tensors of different dtypes ({input.dtype} and {values.dtype}) are not supported"
            )
        above = (input > 0).astype(input.dtype)
        return self.xp.where(input == 0, values, above)


@export("nextafter", methods=("nextafter",), inplace=("nextafter_",))
class NextAfter(Op):
    """The next representable value after input in the direction of other."""

    promotes = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        if input.dtype.kind in "biu":
            raise RuntimeError(f"nextafter: not implemented for {input.dtype}")
        return self.xp.nextafter(input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        # A step away from input; where both are equal there is none, and neither moves the result.
        return Where.call(input == other, 0, grad), zeros_for(grad)


@export("nan_to_num", methods=("nan_to_num",), inplace=("nan_to_num_",))
class NanToNum(Op):
    """NaN and infinities replaced: by 0 and the largest numbers of the type unless given."""

    def forward(
        self,
        input: Any,
        nan: float | None = None,
        posinf: float | None = None,
        neginf: float | None = None,
    ) -> Any:
        if input.dtype.kind in "biu":
            return input.copy()
        self.regular = self.xp.isfinite(input)
        limits = ml_dtypes.finfo(input.dtype)
        high = limits.max if posinf is None else posinf
        low = limits.min if neginf is None else neginf
        kind = input.dtype
        out = self.xp.where(self.xp.isnan(input), kind.type(0 if nan is None else nan), input)
        out = self.xp.where(input == np.inf, kind.type(high), out)
        return self.xp.where(input == -np.inf, kind.type(low), out)

    def backward(self, grad: Any) -> Any:
        return grad * self.regular


def _lerp(input: Any, end: Any, weight: Any) -> Any:
    """input + weight * (end - input); weight is a number or a tensor."""
    if not isinstance(weight, (Tensor, int, float)):
        raise TypeError(f"lerp(): weight must be a Tensor or a number, not {type(weight).__name__}")
    # A weight without dimensions is a number, of whatever type.
    for other in (end, weight) if getattr(weight, "ndim", 0) else (end,):
        if isinstance(other, Tensor) and other.dtype is not input.dtype:
            raise RuntimeError(f"lerp: expected dtype {input.dtype}, but got dtype {other.dtype}")
    return Lerp.apply(input, end, weight)


@export("lerp", methods=("lerp",), inplace=("lerp_",), function=_lerp)
class Lerp(Op):
    """Linear interpolation; exact at both ends."""

    in_float32 = takes_host_scalars = True
    num_tensors = 2

    def forward(self, input: Any, end: Any, weight: Any) -> Any:
        if input.dtype.kind in "biu":
            raise RuntimeError(f"lerp: not implemented for {input.dtype}; convert with .float()")
        difference = end - input
        near = input + weight * difference
        return self.xp.where(
            self.xp.abs(self.xp.asarray(weight)) < 0.5, near, end - difference * (1 - weight)
        ).astype(input.dtype, copy=False)

    def backward(self, grad: Any, input: Any, end: Any, weight: Any) -> Any:
        d_weight = grad * (end - input) if self.needs[2] else None
        return grad * (1 - weight), grad * weight, d_weight


@export("addcmul", methods=("addcmul",), inplace=("addcmul_",), kinds={"value": "Number"})
class Addcmul(Op):
    """input + value * tensor1 * tensor2."""

    in_float32 = True
    promotes = 3
    num_tensors = 3

    def forward(self, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
        self.value = value
        product = tensor1 * tensor2
        return input + (product if value == 1 else input.dtype.type(value) * product)

    def backward(self, grad: Any, tensor1: Any, tensor2: Any) -> Any:
        scaled = grad * self.value
        return grad, scaled * tensor2, scaled * tensor1


@export("addcdiv", methods=("addcdiv",), inplace=("addcdiv_",), kinds={"value": "Number"})
class Addcdiv(Op):
    """input + value * tensor1 / tensor2; floating point only."""

    in_float32 = True
    promotes = 3
    num_tensors = 3

    def forward(self, input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
        if input.dtype.kind in "biu":
            raise RuntimeError(
                "addcdiv: integer division with addcdiv is not supported; use (input + value * "
                "dptrain.trunc(tensor1 / tensor2)) or convert to floating point"
            )
        self.value = value
        return input + input.dtype.type(value) * (tensor1 / tensor2)

    def backward(self, grad: Any, tensor1: Any, tensor2: Any) -> Any:
        scaled = grad * self.value / tensor2
        return grad, scaled, -scaled * tensor1 / tensor2


class _Fmax(Op):
    """As maximum/minimum, but a NaN loses against a number."""

    promotes = 2
    num_tensors = 2
    first: Any  # where the first argument was taken

    def backward(self, grad: Any) -> Any:
        return Where.call(self.first, grad, 0), Where.call(self.first, 0, grad)


@export("fmax", methods=("fmax",))
class Fmax(_Fmax):
    """The larger of both; a number wins over NaN."""

    def forward(self, input: Any, other: Any) -> Any:
        self.first = (input >= other) | (other != other)
        return self.xp.fmax(input, other)


@export("fmin", methods=("fmin",))
class Fmin(_Fmax):
    """The smaller of both; a number wins over NaN."""

    def forward(self, input: Any, other: Any) -> Any:
        self.first = (input <= other) | (other != other)
        return self.xp.fmin(input, other)


def _ldexp(input: Any, other: Any) -> Any:
    """input * 2 ** other."""
    factor = Exp2.apply(other)
    integers = other.dtype.category < 2 and input.dtype.category == 2
    return input * (factor.to(input.dtype) if integers else factor)


export("ldexp", methods=("ldexp",), inplace=("ldexp_",), function=_ldexp, tensors=2)(Exp2)


#: `frexp`: input = mantissa * 2 ** exponent with 0.5 <= |mantissa| < 1.
frexp_result = results("frexp", "mantissa", "exponent")


def _frexp(input: Any) -> Any:
    """Mantissa and exponent (base 2) as a named tuple."""
    return frexp_result(Frexp.apply(input))


@export("frexp", methods=("frexp",), function=_frexp)
class Frexp(Op):
    """Mantissa in [0.5, 1) and integer exponent."""

    def forward(self, input: Any) -> Any:
        if input.dtype.kind in "biu":
            raise RuntimeError(f"frexp: only supports floating-point dtypes, got {input.dtype}")
        mantissa, exponent = self.xp.frexp(input)
        self.scale = self.xp.ldexp(input.dtype.type(1), -exponent)
        return mantissa, exponent.astype(np.int32)

    def backward(self, grads: Any) -> Any:
        return None if grads[0] is None else grads[0] * self.scale
