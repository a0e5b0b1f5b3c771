"""Roots, exponentials, logarithms, trigonometric and hyperbolic functions. One block per operation."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from dptrain.core.dtypes import float64
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops.compare import Where, zeros_for
from dptrain.core.ops.elementwise import Pow
from dptrain.core.ops.unary import Cos, Sigmoid, Sign, Sin, floating
from dptrain.core.tensor import Tensor


@export("reciprocal", methods=("reciprocal",), inplace=("reciprocal_",))
class Reciprocal(Op):
    """1 / input."""

    def forward(self, input: Any) -> Any:
        input = floating(input)
        return input.dtype.type(1) / input

    def backward(self, grad: Any, out: Any) -> Any:
        return -grad * (out * out)


@export("rsqrt", methods=("rsqrt",), inplace=("rsqrt_",))
class Rsqrt(Op):
    """1 / sqrt(input)."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        input = floating(input)
        return input.dtype.type(1) / self.xp.sqrt(input)

    def backward(self, grad: Any, out: Any) -> Any:
        return grad * (out * out * out) * -0.5


@export("exp2", methods=("exp2",), inplace=("exp2_",))
class Exp2(Op):
    """2 ** input."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.exp2(floating(input))

    def backward(self, grad: Any, out: Any) -> Any:
        return grad * (out * math.log(2))


@export("expm1", methods=("expm1",), inplace=("expm1_",))
class Expm1(Op):
    """exp(input) - 1, exact near 0."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.expm1(floating(input))

    def backward(self, grad: Any, out: Any) -> Any:
        return grad * (out + 1)


@export("log1p", methods=("log1p",), inplace=("log1p_",))
class Log1P(Op):
    """log(1 + input), exact near 0."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.log1p(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad / (input + 1)


@export("log2", methods=("log2",), inplace=("log2_",))
class Log2(Op):
    """Logarithm to base 2."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.log2(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad / (input * math.log(2))


@export("log10", methods=("log10",), inplace=("log10_",))
class Log10(Op):
    """Logarithm to base 10."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.log10(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad / (input * math.log(10))


@export("tan", methods=("tan",), inplace=("tan_",))
class Tan(Op):
    """Tangent (radians)."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.tan(floating(input))

    def backward(self, grad: Any, out: Any) -> Any:
        return grad * (out * out + 1)


@export("asin", "arcsin", methods=("asin", "arcsin"), inplace=("asin_", "arcsin_"))
class Asin(Op):
    """Inverse sine."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.arcsin(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Rsqrt.call(1 - input * input)


@export("acos", "arccos", methods=("acos", "arccos"), inplace=("acos_", "arccos_"))
class Acos(Op):
    """Inverse cosine."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.arccos(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return -grad * Rsqrt.call(1 - input * input)


@export("atan", "arctan", methods=("atan", "arctan"), inplace=("atan_", "arctan_"))
class Atan(Op):
    """Inverse tangent."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.arctan(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad / (input * input + 1)


@export("atan2", "arctan2", methods=("atan2", "arctan2"), inplace=("atan2_", "arctan2_"))
class Atan2(Op):
    """The angle of the point (other, input), in (-pi, pi]."""

    in_float32 = True
    promotes = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        return self.xp.arctan2(floating(input), floating(other))

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        squares = input * input + other * other
        scaled = grad / Where.call(squares == 0, 1.0, squares)  # at the origin 0, as in PyTorch
        return scaled * other, -scaled * input


@export("sinh", methods=("sinh",), inplace=("sinh_",))
class Sinh(Op):
    """Hyperbolic sine."""

    def forward(self, input: Any) -> Any:
        return self.xp.sinh(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Cosh.call(input)


@export("cosh", methods=("cosh",), inplace=("cosh_",))
class Cosh(Op):
    """Hyperbolic cosine."""

    def forward(self, input: Any) -> Any:
        return self.xp.cosh(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Sinh.call(input)


@export("asinh", "arcsinh", methods=("asinh", "arcsinh"), inplace=("asinh_", "arcsinh_"))
class Asinh(Op):
    """Inverse hyperbolic sine."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.arcsinh(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Rsqrt.call(input * input + 1)


@export("acosh", "arccosh", methods=("acosh", "arccosh"), inplace=("acosh_", "arccosh_"))
class Acosh(Op):
    """Inverse hyperbolic cosine."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.arccosh(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Rsqrt.call(input * input - 1)


@export("atanh", "arctanh", methods=("atanh", "arctanh"), inplace=("atanh_", "arctanh_"))
class Atanh(Op):
    """Inverse hyperbolic tangent."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return self.xp.arctanh(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad / (1 - input * input)


@export("sinc", methods=("sinc",), inplace=("sinc_",))
class Sinc(Op):
    """sin(pi x) / (pi x), and 1 at 0."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        x = floating(input)
        return self.xp.asarray(self.xp.sinc(x)).astype(x.dtype, copy=False)

    def backward(self, grad: Any, input: Any) -> Any:
        angle = input * math.pi
        # The quotient is 0 / 0 at 0, where the derivative is 0; keep its own derivative finite too.
        safe = Where.call(input == 0, angle * 0 + 1, angle)
        slope = (angle * Cos.call(angle) - Sin.call(angle)) / (safe * safe) * math.pi
        return grad * slope


@export("logit", methods=("logit",), inplace=("logit_",))
class Logit(Op):
    """log(x / (1 - x)); with `eps` x is first limited to [eps, 1 - eps]."""

    in_float32 = True

    def forward(self, input: Any, eps: float | None = None) -> Any:
        x = floating(input)
        self.eps = eps
        if eps is not None:
            # One bound after the other, the lower one last to decide: above 1/2 they cross.
            low, high = x.dtype.type(eps), x.dtype.type(1 - eps)
            x = self.xp.where(x < low, low, self.xp.where(x > high, high, x))
        return self.xp.log(x / (1 - x))

    def backward(self, grad: Any, input: Any) -> Any:
        slope = grad / (input * (1 - input))
        if self.eps is None:
            return slope
        inside = (input >= self.eps) & (input <= 1 - self.eps)
        return Where.call(inside, slope, 0)


@export("deg2rad", methods=("deg2rad",), inplace=("deg2rad_",))
class Deg2Rad(Op):
    """Degrees to radians."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        x = floating(input)
        return x * x.dtype.type(math.pi / 180)

    def backward(self, grad: Any) -> Any:
        return grad * (math.pi / 180)


@export("rad2deg", methods=("rad2deg",), inplace=("rad2deg_",))
class Rad2Deg(Op):
    """Radians to degrees."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        x = floating(input)
        return x * x.dtype.type(180 / math.pi)

    def backward(self, grad: Any) -> Any:
        return grad * (180 / math.pi)


@export("hypot", methods=("hypot",), inplace=("hypot_",))
class Hypot(Op):
    """sqrt(input^2 + other^2) without overflow; floating point only."""

    in_float32 = True
    promotes = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        if input.dtype.kind in "biu":
            raise RuntimeError(f"hypot: not implemented for {input.dtype}; convert with .float()")
        return self.xp.hypot(input, other)

    def backward(self, grad: Any, input: Any, other: Any, out: Any) -> Any:
        scaled = grad / out
        return scaled * input, scaled * other


@export("logaddexp", methods=("logaddexp",))
class Logaddexp(Op):
    """log(exp(input) + exp(other)) without overflow."""

    in_float32 = True
    promotes = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        return self.xp.logaddexp(floating(input), floating(other))

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        share = Sigmoid.call(input - other)
        return grad * share, grad * (1 - share)


@export("logaddexp2", methods=("logaddexp2",))
class Logaddexp2(Op):
    """log2(2^input + 2^other) without overflow."""

    in_float32 = True
    promotes = 2
    num_tensors = 2

    def forward(self, input: Any, other: Any) -> Any:
        return self.xp.logaddexp2(floating(input), floating(other))

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        share = Sigmoid.call((input - other) * math.log(2))
        return grad * share, grad * (1 - share)


@export("xlogy", methods=("xlogy",), inplace=("xlogy_",))
class Xlogy(Op):
    """input * log(other), and 0 where input is 0 (unless other is NaN)."""

    in_float32 = True
    saved_for: ClassVar[dict[str, int]] = {}
    promotes = 2
    num_tensors = 0

    def forward(self, input: Any, other: Any) -> Any:
        kind = input.dtype  # both have it, or the second is a number
        x, y = floating(input), floating(self.xp.asarray(other, dtype=kind))
        product = x * self.xp.log(y)
        return self.xp.where((x == 0) & ~self.xp.isnan(y), product.dtype.type(0), product)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        d_input = d_other = None
        if self.needs[0]:
            log = Xlogy.call(zeros_for(grad) + 1, other)
            d_input = Where.call((input == 0) & (other <= 0), 0, grad * log)
        if len(self.needs) > 1 and self.needs[1]:
            d_other = grad * input / other
        return d_input, d_other


def _copysign_slope(out: Any, input: Any) -> Any:
    return Sign.call(out) * Sign.call(input)


@export("copysign", methods=("copysign",), inplace=("copysign_",))
class Copysign(Op):
    """The magnitude of input with the sign of other."""

    promotes = 2

    def forward(self, input: Any, other: Any) -> Any:
        magnitude = floating(input)
        return self.xp.copysign(magnitude, self.xp.asarray(other).astype(magnitude.dtype))

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        return grad * _copysign_slope(out, input), zeros_for(grad)


def _float_power(input: Any, exponent: Any) -> Any:
    """input ** exponent in float64."""
    base, power = (v.to(float64) if isinstance(v, Tensor) else v for v in (input, exponent))
    return Pow.apply(base, power)


export(
    "float_power",
    methods=("float_power",),
    inplace=("float_power_",),
    function=_float_power,
    tensors=0,
)(Pow)
