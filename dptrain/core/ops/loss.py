"""Losses that have a derivative of their own; the rest is composed in `nn.functional`."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np

from dptrain.core.arrays import as_array, grid
from dptrain.core.capturing import refuse_if
from dptrain.core.cuda import cannot_look, is_capturing
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.activation import Softmax
from dptrain.core.ops.compare import Where
from dptrain.core.ops.index import Scatter
from dptrain.core.ops.shape import Expand
from dptrain.core.ops.windows import channels_first, channels_last
from dptrain.core.tensor import Tensor


def not_classes(target: Any, num_classes: int) -> Any:
    """Where class indices (int64) lie outside of [0, num_classes)."""
    return target.view(np.uint64) >= num_classes  # negative ones are large then


def check_classes(op: str, target: Any, num_classes: int, ignore_index: int) -> None:
    """Class indices (int64) must lie in [0, num_classes), or be `ignore_index`.

    Raises:
        IndexError: one does not.
    """
    if is_capturing():  # the host cannot look at values while work is recorded
        return
    bad = not_classes(target, num_classes) & (target != ignore_index)
    refuse_if(bad.any(), partial(_wrong_class, op, num_classes), target, bad)


def _wrong_class(op: str, num_classes: int, target: Any, bad: Any) -> IndexError:
    return IndexError(
        f"{op}: Target {int(target[bad].flat[0])} is out of bounds for {num_classes} classes"
    )


def all_count(target: Any, num_classes: int, ignore_index: int) -> bool:
    """Whether every index (int64) is a class, and none of them the one to ignore."""
    inside = 0 <= ignore_index < num_classes
    if type(target) is np.ndarray and not inside:  # one pass in the place of two
        return not target.size or bool(target.view(np.uint64).max() < num_classes)
    others = not_classes(target, num_classes)
    if inside:
        others = others | (target == ignore_index)
    return not others.any()


class CrossEntropy(Op):
    """Mean or sum of -log softmax(input)[target]: (N, C, ...) with (N, ...) class indices in [0, C) -> scalar.

    The common case in one pass; `nn.functional.cross_entropy` looks at the indices and composes the others.
    With `ignore_index`, which is for recordings, nobody has looked: the GPU leaves out the rows of that class.
    """

    name = "cross_entropy"
    num_tensors = 2

    def forward(self, input: Any, target: Any, mean: bool, ignore_index: int | None = None) -> Any:
        self.counts = None
        if ignore_index is not None:
            self.counts = target != ignore_index
            target = np.where(self.counts, target, 0)
        self.target, self.kind = target, input.dtype
        losses, self.kept = kernels_for(input).cross_entropy(_rows(input), target.reshape(-1))
        if self.counts is not None:
            self.counts = self.counts.reshape(-1)
        self.scale = 1 / len(losses) if mean and len(losses) else float("nan") if mean else 1.0
        if self.counts is not None:
            losses = np.where(self.counts, losses, 0).astype(losses.dtype, copy=False)
            if mean:
                self.scale = (1 / self.counts.sum(dtype=np.float64)).astype(losses.dtype)
        total = losses.sum()
        if mean:
            total = total * (
                self.scale if self.counts is not None else losses.dtype.type(self.scale)
            )
        return total if losses.dtype == input.dtype else total.astype(input.dtype)

    def backward(self, grad: Any, input: Any) -> Any:
        if self.counts is not None:
            return self._backward_of_counted(grad, input)
        if isinstance(grad, Tensor):
            first, *others = grid(self.target.shape, self.xp)
            ones = self.xp.ones(self.target.shape, dtype=self.kind)
            hot = Scatter.call(ones, tuple(input.shape), (first, self.target, *others))
            return (Softmax.call(input, 1) - hot) * (grad * self.scale)
        return self._kernel(grad, input, self.scale)

    def _kernel(self, grad: Any, input: Any, scale: float) -> Any:
        facts = (self.kept, self.target.reshape(-1), scale)
        out = kernels_for(input).cross_entropy_grad(grad, _rows(input), *facts)
        if self.counts is not None:
            out *= self.counts.astype(out.dtype)[:, None]
        if input.ndim == 2:
            return out
        return channels_first(out.reshape((len(input), *input.shape[2:], input.shape[1])))

    def _backward_of_counted(self, grad: Any, input: Any) -> Any:
        if isinstance(grad, Tensor):
            raise RuntimeError(
                "cross_entropy: its second derivative cannot be recorded into a CUDA graph"
            )
        if not isinstance(self.scale, float):
            grad = grad.astype(self.scale.dtype) * self.scale
        return self._kernel(grad, input, 1.0)


def _rows(input: Any) -> Any:
    """(N, C, ...) -> (positions, C)."""
    n, c, *sizes = input.shape
    return channels_last(input).reshape(n * prod(sizes), c) if sizes else input


class NllLoss(Op):
    """-weight[target] * input[target] for each position: (N, C, ...) with (N, ...) -> (N, ...).

    Positions with `ignore_index` give 0 and get no gradient. `reduction` "mean" is over the weights of those
    that count.
    """

    name = "nll_loss"
    num_tensors = 2
    in_float32 = True

    def forward(
        self, input: Any, target: Any, weight: Any, ignore_index: int, reduction: str
    ) -> Any:
        first, *rest = grid(target.shape, self.xp)
        self.shape, self.given, self.divisor = input.shape, target.shape, None
        self.counts = None
        if weight is None and not cannot_look() and all_count(target, input.shape[1], ignore_index):
            self.places = (first, target, *rest)
            losses = -input[self.places]
        else:
            check_classes("nll_loss", target, input.shape[1], ignore_index)
            self.counts = counts = target != ignore_index
            classes = np.where(counts, target, 0)
            self.zero = self.xp.zeros((), input.dtype)
            self.factor = -counts.astype(input.dtype)
            if weight is not None:
                self.factor = self.factor * weight[classes]
            self.places = (first, classes, *rest)
            losses = input[self.places] * self.factor
        if reduction == "none":
            return losses
        total = losses.sum()
        if reduction == "mean":
            if self.counts is None:
                self.divisor = losses.dtype.type(target.size)
            else:
                self.divisor = counted(self.counts, classes, weight, losses.dtype)
            total = total / self.divisor
        return total

    def backward(self, grad: Any) -> Any:
        if self.divisor is not None:
            grad = grad / self.divisor
        if self.counts is None:
            return Scatter.call(Expand.call(-grad, self.given), self.shape, self.places)
        # Where no position counts the mean is 0 / 0, and so is the gradient that comes back from it.
        kept = Where.call(self.counts, grad, self.zero)
        return Scatter.call(kept * self.factor, self.shape, self.places)


def counted(counts: Any, classes: Any, weight: Any, kind: np.dtype[Any]) -> Any:
    """The weight of all positions that count: the divisor of the mean."""
    if weight is None:
        return as_array(counts.sum()).astype(kind)
    return as_array((weight[classes] * counts).sum(dtype=kind))
