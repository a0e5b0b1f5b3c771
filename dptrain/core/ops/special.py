"""The error function and the gamma function's family. One block per operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, run_beside
from dptrain.core.export import export
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops import special_bessel, special_values
from dptrain.core.ops.unary import Exp, floating


def _in_float64(function: Any, input: Any) -> Any:
    x = floating(input)
    wide = as_array(x).astype(np.float64, copy=False)
    return as_array(run_beside(wide, function, wide)).astype(x.dtype)


@export("erf", methods=("erf",), inplace=("erf_",))
class Erf(Op):
    """The error function."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        x = floating(input)
        return kernels_for(x).erf(x)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * (Exp.call(-input * input) * (2 / math.sqrt(math.pi)))


@export("erfc", methods=("erfc",), inplace=("erfc_",))
class Erfc(Op):
    """1 - erf(input)."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return _in_float64(special_values.erfc, input)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * (Exp.call(-input * input) * (-2 / math.sqrt(math.pi)))


@export("erfinv", methods=("erfinv",), inplace=("erfinv_",))
class Erfinv(Op):
    """The inverse of the error function."""

    in_float32 = True

    def forward(self, input: Any) -> Any:
        return _in_float64(special_values.erfinv, input)

    def backward(self, grad: Any, out: Any) -> Any:
        return grad * (Exp.call(out * out) * (math.sqrt(math.pi) / 2))


@export("lgamma", methods=("lgamma",), inplace=("lgamma_",))
class Lgamma(Op):
    """log |Gamma(input)|."""

    def forward(self, input: Any) -> Any:
        return _in_float64(special_values.lgamma, input)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Digamma.call(input)


@export("digamma", methods=("digamma",), inplace=("digamma_",))
class Digamma(Op):
    """The derivative of log Gamma."""

    def forward(self, input: Any) -> Any:
        return _in_float64(special_values.digamma, input)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Polygamma.call(input, 1)


def _polygamma(n: int, input: Any) -> Any:
    """The n-th derivative of digamma."""
    if n < 0:
        raise RuntimeError(f"polygamma(n, x) does not support negative n, got {n}")
    return Digamma.apply(input) if n == 0 else Polygamma.apply(input, n)


@export("polygamma", function=_polygamma)
class Polygamma(Op):
    """The n-th derivative of digamma, n >= 1."""

    def forward(self, input: Any, n: int) -> Any:
        self.n = n
        return _in_float64(lambda x: special_bessel.polygamma(n, x), input)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Polygamma.call(input, self.n + 1)


def _method_polygamma(self: Any, n: int) -> Any:
    """The n-th derivative of digamma."""
    return _polygamma(n, self)


export(methods=("polygamma",), inplace=("polygamma_",), function=_method_polygamma)(Polygamma)
