"""`torch.special`'s functions beyond the error and gamma functions. One block per operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, is_array, run_beside
from dptrain.core.dtypes import get_default_dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.ops import special_bessel as values
from dptrain.core.ops.compare import Where
from dptrain.core.ops.special import Lgamma, _in_float64
from dptrain.core.ops.transcendental import Log1P
from dptrain.core.ops.unary import Exp, Log, Sign


@export("i0", "special.i0", methods=("i0",), inplace=("i0_",))
class I0(Op):
    """The modified Bessel function of the first kind, of order 0."""

    def forward(self, input: Any) -> Any:
        return _in_float64(lambda x: values.bessel_i(0, x), input)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * SpecialI1.call(input)


@export("special.i0e")
class SpecialI0E(Op):
    """exp(-|input|) i0(input)."""

    def forward(self, input: Any) -> Any:
        return _in_float64(lambda x: values.scaled_bessel_i(0, x), input)

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        return grad * (SpecialI1E.call(input) - Sign.call(input) * out)


def _over_input(out: Any, input: Any, limit: float) -> Any:
    """out / input, and its limit at 0."""
    zero = input == 0
    safe = Where.call(zero, input * 0 + 1, input)
    return Where.call(zero, input * 0 + limit, out / safe)


@export("special.i1")
class SpecialI1(Op):
    """The modified Bessel function of the first kind, of order 1."""

    def forward(self, input: Any) -> Any:
        return _in_float64(lambda x: values.bessel_i(1, x), input)

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        return grad * (I0.call(input) - _over_input(out, input, 0.5))


@export("special.i1e")
class SpecialI1E(Op):
    """exp(-|input|) i1(input)."""

    def forward(self, input: Any) -> Any:
        return _in_float64(lambda x: values.scaled_bessel_i(1, x), input)

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        slope = SpecialI0E.call(input) - _over_input(out, input, 0.5) - out * Sign.call(input)
        return grad * slope


@export("special.entr")
class SpecialEntr(Op):
    """-input * log(input): 0 at 0, -inf below."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        x = input.astype(get_default_dtype().numpy) if input.dtype.kind in "biu" else input
        product = -x * self.xp.log(x)
        kind = product.dtype.type
        return self.xp.where(x > 0, product, self.xp.where(x == 0, kind(0), x * kind(np.inf)))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * (-Log.call(input) - 1)


@export("special.erfcx")
class SpecialErfcx(Op):
    """exp(input^2) erfc(input)."""

    def forward(self, input: Any) -> Any:
        return _in_float64(values.erfcx, input)

    def backward(self, grad: Any, input: Any, out: Any) -> Any:
        return grad * (input * out * 2 - 2 / math.sqrt(math.pi))


@export("special.ndtr")
class Ndtr(Op):
    """The distribution function of the standard normal distribution."""

    def forward(self, input: Any) -> Any:
        return _in_float64(values.ndtr, input)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * (Exp.call(-input * input / 2) / math.sqrt(2 * math.pi))


@export("special.log_ndtr")
class SpecialLogNdtr(Op):
    """The logarithm of `ndtr`."""

    def forward(self, input: Any) -> Any:
        return _in_float64(values.log_ndtr, input)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad / SpecialErfcx.call(input * -math.sqrt(0.5)) * math.sqrt(2 / math.pi)


@export("special.ndtri")
class SpecialNdtri(Op):
    """The inverse of `ndtr`."""

    def forward(self, input: Any) -> Any:
        return _in_float64(values.ndtri, input)

    def backward(self, grad: Any, out: Any) -> Any:
        return grad * Exp.call(out * out / 2) * math.sqrt(2 * math.pi)


@export("special.xlog1py")
class SpecialXlog1Py(Op):
    """input * log1p(other), and 0 where input is 0 (unless other is NaN)."""

    in_float32 = True
    num_tensors = 0
    promotes = 2

    def forward(self, input: Any, other: Any) -> Any:
        kind = input.dtype if input.dtype.kind not in "biu" else get_default_dtype().numpy
        x, y = self.xp.asarray(input, kind), self.xp.asarray(other, kind)
        product = x * self.xp.log1p(y)
        return self.xp.where((x == 0) & ~self.xp.isnan(y), kind.type(0), product)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        d_input = d_other = None
        if self.needs[0]:
            log = Log1P.call(other) if hasattr(other, "dtype") else math.log1p(other)
            d_input = Where.call((input == 0) & (other <= -1), 0, grad * log)
        if self.needs[1]:
            d_other = grad * input / (other + 1)
        return d_input, d_other


class _TwoParameters(Op):
    promotes = 2

    def _compute(self, function: Any, input: Any, other: Any) -> Any:
        kind = input.dtype if hasattr(input, "dtype") else other.dtype
        if kind.kind in "biu":
            kind = get_default_dtype().numpy
        array = input if is_array(input) else other
        return as_array(run_beside(array, function, input, other)).astype(kind)


@export("special.zeta")
class SpecialZeta(_TwoParameters):
    """Hurwitz's zeta function; differentiable by `other`."""

    num_tensors = 0

    def forward(self, input: Any, other: Any) -> Any:
        return self._compute(values.zeta, input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        if self.needs[0]:
            raise RuntimeError("the derivative for 'zeta' is not implemented.")
        return None, grad * -input * SpecialZeta.call(input + 1, other)


class _Igamma(_TwoParameters):
    num_tensors = 2
    sign = 1

    def forward(self, input: Any, other: Any) -> Any:
        if input.dtype.kind in "biu":
            raise NotImplementedError(
                f"{self.name}: not implemented for {input.dtype}; convert with .float()"
            )
        return self._compute(lambda a, x: values.gamma_ratio(a, x, self.sign < 0), input, other)

    def backward(self, grad: Any, input: Any, other: Any) -> Any:
        if self.needs[0]:
            raise RuntimeError(f"the derivative for '{self.name}: input' is not implemented.")
        density = Exp.call((input - 1) * Log.call(other) - other - Lgamma.call(input))
        return None, grad * density * self.sign


@export("igamma", "special.gammainc", methods=("igamma",), inplace=("igamma_",))
class Igamma(_Igamma):
    """The regularised lower incomplete gamma function P(input, other); differentiable by `other`."""


@export("igammac", "special.gammaincc", methods=("igammac",), inplace=("igammac_",))
class Igammac(_Igamma):
    """The regularised upper incomplete gamma function Q(input, other); differentiable by `other`."""

    sign = -1


def _mvlgamma(input: Any, p: int) -> Any:
    """The logarithm of the multivariate gamma function of dimension p."""
    if p < 1:
        raise RuntimeError(f"mvlgamma: p has to be greater than or equal to 1, got {p}")
    x = input if input.dtype.category == 2 else input.to(get_default_dtype())
    total = sum((x - j / 2).lgamma() for j in range(1, p)) if p > 1 else 0
    return x.lgamma() + total + p * (p - 1) / 4 * math.log(math.pi)


export(
    "mvlgamma",
    "special.multigammaln",
    methods=("mvlgamma",),
    inplace=("mvlgamma_",),
    function=_mvlgamma,
)(Lgamma)
