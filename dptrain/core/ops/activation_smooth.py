"""Smooth activations. One block per operation; 16-bit types compute in float32."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.export import export
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.activation_linear import activate, check_floating
from dptrain.core.ops.compare import Where
from dptrain.core.ops.elementwise import Clamp, Div, Sub
from dptrain.core.ops.join import Cat
from dptrain.core.ops.shape import Narrow, wrap_dim
from dptrain.core.ops.slopes import Slope, ready, slanted, wide
from dptrain.core.ops.unary import Exp, Sigmoid, Tanh
from dptrain.core.tensor import Tensor


def _active(name: str, input: Any, *parameters: float) -> Any:
    x = ready(input)
    return kernels_for(x).activation(name, x, *parameters).astype(input.dtype, copy=False)


def _raw(grad: Any, input: Any) -> bool:
    """Whether nothing has a history: the gradient is not differentiated again."""
    return not isinstance(grad, Tensor) and not isinstance(input, Tensor)


def _elu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """`input` where positive, else alpha * (exp(input) - 1)."""
    return activate(Elu, input, inplace, alpha)


@export("nn.functional.elu", function=_elu)
class Elu(Op):
    """scale * (input where positive, else alpha * (exp(input) - 1)).

    Source: Clevert et al., "Fast and accurate deep network learning by exponential linear units",
    2015.
    """

    def forward(self, input: Any, alpha: float = 1.0, scale: float = 1.0) -> Any:
        check_floating("elu", input)
        self.alpha, self.scale = alpha, scale
        return _active("elu", input, alpha, scale)

    def backward(self, grad: Any, input: Any) -> Any:
        return EluGrad.call(grad, input, self.alpha, self.scale)


class EluGrad(Slope):
    """grad * scale * (1 where the input is positive, else alpha * exp(input))."""

    of = "elu"

    def second(self, input: Any) -> Any:
        """See `Slope.second`."""
        alpha, scale = self.parameters
        below = Exp.call(Clamp.call(input, None, 0)) * (alpha * scale)
        return Where.call(input > 0, 0.0, below)


#: Source: Klambauer et al., "Self-normalizing neural networks", 2017.
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


def _selu(input: Any, inplace: bool = False) -> Any:
    """ELU with the scale and alpha that keep mean 0 and variance 1."""
    return activate(Elu, input, inplace, _SELU_ALPHA, _SELU_SCALE)


export("nn.functional.selu", "selu", function=_selu)(Elu)


def _celu(input: Any, alpha: float = 1.0, inplace: bool = False) -> Any:
    """`input` where positive, else alpha * (exp(input / alpha) - 1).

    Raises:
        RuntimeError: alpha is 0.
    """
    if alpha == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return activate(Celu, input, inplace, alpha)


@export("nn.functional.celu", "celu", function=_celu)
class Celu(Op):
    """ELU that is continuously differentiable for every alpha. Source: Barron, 2017."""

    def forward(self, input: Any, alpha: float = 1.0) -> Any:
        check_floating("celu", input)
        self.alpha = alpha
        x = wide(input)
        below = self.xp.expm1(self.xp.minimum(x, 0) / alpha) * alpha
        return self.xp.where(x > 0, x, below).astype(input.dtype, copy=False)

    def backward(self, grad: Any, input: Any) -> Any:
        below = Exp.call(Clamp.call(input, None, 0) / self.alpha)
        return grad * Where.call(input > 0, below * 0 + 1, below)


def _normal_density(x: Any) -> Any:
    return Exp.call(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))


_GELU_OUTER, _GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


@export("nn.functional.gelu")
class Gelu(Op):
    """input * Phi(input); `approximate="tanh"` replaces Phi by its tanh approximation.

    Source: Hendrycks and Gimpel, "Gaussian error linear units", 2016.
    """

    def forward(self, input: Any, approximate: str = "none") -> Any:
        check_floating("gelu", input)
        if approximate not in ("none", "tanh"):
            raise RuntimeError(
                f"gelu: approximate argument must be either none or tanh, got {approximate!r}"
            )
        self.approximate = approximate
        if approximate == "tanh":
            return _active("gelu_tanh", input)
        x = ready(input)
        return kernels_for(x).gelu(x).astype(input.dtype, copy=False)

    def backward(self, grad: Any, input: Any) -> Any:
        if self.approximate == "none":
            return GeluGrad.call(grad, input)
        if _raw(grad, input):
            return slanted("gelu_tanh", grad, input)
        square = input * input
        factor = Tanh.call(input * (square * _GELU_CUBIC + 1) * _GELU_OUTER) * 0.5 + 0.5
        slope = (square * (3 * _GELU_CUBIC) + 1) * (2 * _GELU_OUTER)
        return grad * (factor + input * (factor * (1 - factor)) * slope)


class GeluGrad(Slope):
    """grad * (Phi(input) + input * phi(input))."""

    of = "gelu"

    def forward(self, grad: Any, kept: Any, *parameters: float) -> Any:
        self.parameters = parameters
        return kernels_for(kept).gelu_grad(grad, kept)

    def second(self, input: Any) -> Any:
        """See `Slope.second`."""
        return _normal_density(input) * (2 - input * input)


def _silu(input: Any, inplace: bool = False) -> Any:
    """input * sigmoid(input)."""
    return activate(Silu, input, inplace)


@export("nn.functional.silu", function=_silu)
class Silu(Op):
    """input * sigmoid(input)."""

    def forward(self, input: Any) -> Any:
        check_floating("silu", input)
        return _active("silu", input)

    def backward(self, grad: Any, input: Any) -> Any:
        return SiluGrad.call(grad, input)


class SiluGrad(Slope):
    """grad * s * (1 + input (1 - s)), where s = sigmoid(input)."""

    of = "silu"

    def second(self, input: Any) -> Any:
        """See `Slope.second`."""
        s = Sigmoid.call(input)
        return s * (1 - s) * (input * (1 - s * 2) + 2)


@export("nn.functional.softplus")
class Softplus(Op):
    """log(1 + exp(beta * input)) / beta; `input` itself where beta * input > threshold."""

    def forward(self, input: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
        check_floating("softplus", input)
        self.beta, self.threshold = beta, threshold
        return _active("softplus", input, beta, threshold)

    def backward(self, grad: Any, input: Any) -> Any:
        return SoftplusGrad.call(grad, input, self.beta, self.threshold)


class SoftplusGrad(Slope):
    """grad * sigmoid(beta * input); grad itself where beta * input > threshold."""

    of = "softplus"

    def second(self, input: Any) -> Any:
        """See `Slope.second`."""
        beta, threshold = self.parameters
        scaled = input * beta
        s = Sigmoid.call(scaled)
        return Where.call(scaled > threshold, 0.0, s * (1 - s) * beta)


def _mish(input: Any, inplace: bool = False) -> Any:
    """input * tanh(softplus(input))."""
    return activate(Mish, input, inplace)


@export("nn.functional.mish", function=_mish)
class Mish(Op):
    """input * tanh(log(1 + exp(input))). Source: Misra, "Mish", 2019."""

    def forward(self, input: Any) -> Any:
        check_floating("mish", input)
        return _active("mish", input)

    def backward(self, grad: Any, input: Any) -> Any:
        if _raw(grad, input):
            return slanted("mish", grad, input)
        t = Tanh.call(Softplus.call(input))
        return grad * (t + input * Sigmoid.call(input) * (1 - t * t))


@export("nn.functional.logsigmoid")
class LogSigmoid(Op):
    """log(sigmoid(input)) without overflow."""

    def forward(self, input: Any) -> Any:
        check_floating("logsigmoid", input)
        return _active("logsigmoid", input)

    def backward(self, grad: Any, input: Any) -> Any:
        if _raw(grad, input):
            return slanted("logsigmoid", grad, input)
        return grad * Sigmoid.call(-input)


@export("nn.functional.glu")
class Glu(Op):
    """a * sigmoid(b) for the two halves a and b of dimension `dim`."""

    def forward(self, input: Any, dim: int = -1) -> Any:
        if input.ndim == 0:
            raise RuntimeError("glu does not support 0-dimensional tensors")
        check_floating("glu", input)
        self.dim = wrap_dim(dim, input.ndim, "glu")
        size = input.shape[self.dim]
        if size % 2:
            raise RuntimeError(
                f"glu: Halving dimension must be even, but dimension {self.dim} is size {size}"
            )
        self.half = size // 2
        a, b = self.xp.split(input, 2, axis=self.dim)
        return a * Sigmoid().forward(b)

    def backward(self, grad: Any, input: Any) -> Any:
        a = Narrow.call(input, self.dim, 0, self.half)
        s = Sigmoid.call(Narrow.call(input, self.dim, self.half, self.half))
        return Cat.call(grad * s, grad * a * (s * (1 - s)), dim=self.dim)


def _softsign(input: Any) -> Any:
    """input / (1 + |input|)."""
    return input / (input.abs() + 1)


def _tanhshrink(input: Any) -> Any:
    """input - tanh(input)."""
    return input - Tanh.apply(input)


export("nn.functional.softsign", function=_softsign)(Div)
export("nn.functional.tanhshrink", function=_tanhshrink)(Sub)
