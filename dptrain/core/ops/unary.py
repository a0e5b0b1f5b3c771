"""Functions of one number, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import on_gpu
from dptrain.core.dtypes import get_default_dtype
from dptrain.core.export import export
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.compare import zeros_for
from dptrain.core.ops.slopes import Slope


@export("abs", "absolute", methods=("abs", "absolute", "__abs__"), inplace=("abs_", "absolute_"))
class Abs(Op):
    """|input|; the derivative at 0 is 0."""

    def forward(self, input: Any) -> Any:
        if input.dtype == np.bool_:
            raise RuntimeError("abs: not implemented for bool tensors")
        return self.xp.abs(input)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Sign.call(input)


@export("sign", methods=("sign",), inplace=("sign_",))
class Sign(Op):
    """-1, 0 or 1; 0 for NaN."""

    def forward(self, input: Any) -> Any:
        if input.dtype == np.bool_:
            return input.copy()
        return self.xp.where(input == input, self.xp.sign(input), input.dtype.type(0))

    def backward(self, grad: Any) -> Any:
        return zeros_for(grad)


def floating(input: Any) -> Any:
    """Integers enter transcendental functions as the default floating point type."""
    return input.astype(get_default_dtype().numpy) if input.dtype.kind in "biu" else input


@export("exp", methods=("exp",), inplace=("exp_",))
class Exp(Op):
    """e ** input."""

    def forward(self, input: Any) -> Any:
        return self.xp.exp(floating(input))

    def backward(self, grad: Any, out: Any) -> Any:
        return grad * out


@export("log", methods=("log",), inplace=("log_",))
class Log(Op):
    """Natural logarithm."""

    def forward(self, input: Any) -> Any:
        return self.xp.log(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad / input


@export("sqrt", methods=("sqrt",), inplace=("sqrt_",))
class Sqrt(Op):
    """Square root."""

    def forward(self, input: Any) -> Any:
        return self.xp.sqrt(floating(input))

    def backward(self, grad: Any, out: Any) -> Any:
        return grad / (out * 2)


@export("square", methods=("square",), inplace=("square_",))
class Square(Op):
    """input * input."""

    in_float32 = True
    backward_name = "PowBackward0"

    def forward(self, input: Any) -> Any:
        return input * input if input.dtype != np.bool_ else input.astype(np.int64)

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * (input * 2)


@export("sin", methods=("sin",), inplace=("sin_",))
class Sin(Op):
    """Sine (radians)."""

    def forward(self, input: Any) -> Any:
        return self.xp.sin(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return grad * Cos.call(input)


@export("cos", methods=("cos",), inplace=("cos_",))
class Cos(Op):
    """Cosine (radians)."""

    def forward(self, input: Any) -> Any:
        return self.xp.cos(floating(input))

    def backward(self, grad: Any, input: Any) -> Any:
        return -grad * Sin.call(input)


@export("tanh", methods=("tanh",), inplace=("tanh_",))
class Tanh(Op):
    """Hyperbolic tangent."""

    in_float32 = halves_on_gpu = True

    def forward(self, input: Any) -> Any:
        x = floating(input)
        return kernels_for(x).activation("tanh", x) if on_gpu(x) else self.xp.tanh(x)

    def backward(self, grad: Any, out: Any) -> Any:
        return TanhGrad.call(grad, out)


class TanhGrad(Slope):
    """grad * (1 - out^2)."""

    of = "tanh"

    def second(self, out: Any) -> Any:
        """See `Slope.second`."""
        return out * -2


@export("sigmoid", methods=("sigmoid",), inplace=("sigmoid_",))
class Sigmoid(Op):
    """1 / (1 + exp(-input)), computed without overflow."""

    in_float32 = halves_on_gpu = True

    def forward(self, input: Any) -> Any:
        x = floating(input)
        return kernels_for(x).activation("sigmoid", x)

    def backward(self, grad: Any, out: Any) -> Any:
        return SigmoidGrad.call(grad, out)


class SigmoidGrad(Slope):
    """grad * out * (1 - out)."""

    of = "sigmoid"

    def second(self, out: Any) -> Any:
        """See `Slope.second`."""
        return 1 - out * 2
