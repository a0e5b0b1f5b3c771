"""Losses that compare input and target element by element and reduce in the same pass."""

from __future__ import annotations

import math
from typing import Any

from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.activation_linear import check_floating
from dptrain.core.ops.elementwise import Clamp
from dptrain.core.ops.unary import Log, Sigmoid


class _PointwiseLoss(Op):
    """`values` and its two derivatives; `reduction` is "none", "mean" or "sum"."""

    promotes = 2
    in_float32 = True

    def forward(self, input: Any, target: Any, reduction: str = "mean", option: Any = None) -> Any:
        check_floating(type(self).name, input)
        self.option = option
        values = self.values(input, target)
        self.count = values.size if reduction == "mean" else None
        if reduction == "none":
            return values
        total = values.sum(axis=tuple(range(values.ndim)))
        return total if self.count is None else total / values.dtype.type(self.count)

    def values(self, input: Any, target: Any) -> Any:
        """The loss of each element, of raw arrays."""
        raise NotImplementedError

    def slopes(self, input: Any, target: Any) -> tuple[Any, Any]:
        """Its derivatives by input and target (None where it is the negative of the first)."""
        raise NotImplementedError

    def backward(self, grad: Any, input: Any, target: Any) -> Any:
        if self.count is not None:
            grad = grad / (self.count or math.nan)
        by_input, by_target = self.slopes(input, target)
        d_input = grad * by_input
        if not self.needs[1]:
            return d_input, None
        return d_input, -d_input if by_target is None else grad * by_target


class MseLoss(_PointwiseLoss):
    """(input - target)^2."""

    name = "mse_loss"

    def values(self, input: Any, target: Any) -> Any:
        difference = input - target
        return difference * difference

    def backward(self, grad: Any, input: Any, target: Any) -> Any:
        count = 1 if self.count is None else self.count or math.nan
        d_input = MseLossGrad.call(grad, input, target, count)
        return d_input, -d_input if self.needs[1] else None


class MseLossGrad(Op):
    """grad / count * 2 (input - target): of the gradient of a mean, or with a count of 1 of each element."""

    promotes = 3
    in_float32 = True
    num_tensors = 3

    def forward(self, grad: Any, input: Any, target: Any, count: float) -> Any:
        self.count = count
        return (grad if count == 1 else grad / count) * ((input - target) * 2)

    def backward(self, twice: Any, grad: Any, input: Any, target: Any) -> Any:
        needs = self.needs
        d_grad = MseLossGrad.call(twice, input, target, self.count) if needs[0] else None
        if not (needs[1] or needs[2]):
            return d_grad, None, None
        d_input = twice * (grad * (2 / self.count))
        return d_grad, d_input, -d_input if needs[2] else None


class SmoothL1Loss(_PointwiseLoss):
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, for d = input - target."""

    name = "smooth_l1_loss"

    def values(self, input: Any, target: Any) -> Any:
        beta = input.dtype.type(self.option)
        size = self.xp.abs(input - target)
        return self.xp.where(size < beta, size * size * (0.5 / beta), size - beta / 2)

    def slopes(self, input: Any, target: Any) -> tuple[Any, Any]:
        return Clamp.call((input - target) / self.option, -1, 1), None


class HuberLoss(_PointwiseLoss):
    """d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), for d = input - target."""

    name = "huber_loss"

    def values(self, input: Any, target: Any) -> Any:
        delta = input.dtype.type(self.option)
        size = self.xp.abs(input - target)
        return self.xp.where(size <= delta, size * size / 2, (size - delta / 2) * delta)

    def slopes(self, input: Any, target: Any) -> tuple[Any, Any]:
        return Clamp.call(input - target, -self.option, self.option), None


class BinaryCrossEntropy(_PointwiseLoss):
    """-(target log(input) + (1 - target) log(1 - input)), with the logarithms at least -100."""

    name = "binary_cross_entropy"

    def values(self, input: Any, target: Any) -> Any:
        least = input.dtype.type(-100)
        hit = self.xp.maximum(self.xp.log(input), least)
        miss = self.xp.maximum(self.xp.log1p(-input), least)
        return (target - 1) * miss - target * hit

    def slopes(self, input: Any, target: Any) -> tuple[Any, Any]:
        by_input = (input - target) / Clamp.call(input * (1 - input), 1e-12)
        return by_input, Log.call(1 - input) - Log.call(input) if self.needs[1] else 0


class BinaryCrossEntropyWithLogits(_PointwiseLoss):
    """Binary cross entropy of sigmoid(input), without overflow."""

    name = "binary_cross_entropy_with_logits"

    def values(self, input: Any, target: Any) -> Any:
        soft = kernels_for(input).activation("softplus", -input, 1.0, math.inf)
        return (1 - target) * input + soft

    def slopes(self, input: Any, target: Any) -> tuple[Any, Any]:
        return Sigmoid.call(input) - target, -input
