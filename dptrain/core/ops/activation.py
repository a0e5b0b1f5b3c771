"""Activations, softmax and dropout. One block per operation."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import on_gpu
from dptrain.core.dtypes import as_dtype
from dptrain.core.export import export
from dptrain.core.half import computed_in, lifted_after_all
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.compare import zeros_for
from dptrain.core.ops.norm import Normalising
from dptrain.core.ops.shape import wrap_dim
from dptrain.core.ops.unary import Exp
from dptrain.core.ops.windows import MOST_DIMENSIONS, channels_last
from dptrain.core.pending import Pending, Wait, can_wait, postpone, record
from dptrain.core.random import DROPOUT, default_generator
from dptrain.core.tensor import Tensor, wrap


@export("relu", methods=("relu",), inplace=("relu_",))
class Relu(Op):
    """max(input, 0); NaN stays NaN."""

    forgets = joins = True
    #: The node of the pending result that this one was computed with.
    below: Any = None

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """See `Op.apply`. An image waits for what reads it; what waits itself is computed on the way."""
        input = args[0] if len(args) == 1 and not kwargs else None
        if type(input) is Pending and isinstance(input._wait, Normalising):
            op = cls()
            op.below = input._wait.node
            return record(op, input._wait.values(cut=True), input)
        if type(input) is Tensor and input._array.ndim == 4 and can_wait(input):
            op, array = cls(), input._array
            # The mask that backward needs can be told from the input as well.
            return postpone(record(op, array, input), input, Rectifying(op, array))
        return super().apply(*args, **kwargs)

    def forward(self, input: Any) -> Any:
        return kernels_for(input).relu(input)

    def joined(self, run: Any) -> bool:
        """See `Op.joined`: batch norm below can tell from its own values where the gradient passes."""
        if self in run.joined:  # by the pool behind this node
            return True
        below = self.below
        if below is None or below.only != self.sequence or not run.may_join(below):
            return False
        run.joined.add(below)
        return True

    def backward(self, grad: Any, out: Any) -> Any:
        return ReluGrad.call(grad, out)


class ReluGrad(Op):
    """grad where the result that was kept is not 0; NaN passes."""

    backward_name = "ThresholdBackwardBackward0"
    num_tensors = 2

    def forward(self, grad: Any, kept: Any) -> Any:
        return kernels_for(grad).relu_grad(grad, kept)

    def backward(self, twice: Any, kept: Any) -> Any:
        return ReluGrad.call(twice, kept)


class Rectifying(Wait):
    """Of a result of ReLU: its node has saved the input as if it were the result meanwhile."""

    def values(self) -> Any:
        """The values."""
        return kernels_for(self.source).relu(self.source)

    @staticmethod
    def over(node: Any, source: Any, tensor: Tensor | None) -> None:
        """See `Wait.over`: the node saves the result."""
        saved = wrap(kernels_for(source).relu(source)) if tensor is None else tensor
        node.save_result_in(source, saved)


def _shifted(xp: Any, input: Any, dim: int) -> Any:
    """input - max: keeps exp() finite. An empty dimension has no maximum and needs none."""
    if input.ndim == 0 or input.shape[dim] == 0:
        return input - input if input.ndim == 0 else input
    return input - input.max(axis=dim, keepdims=True)


def _softmax_input(input: Any, dtype: Any, op: str) -> Any:
    if dtype is not None:
        if as_dtype(dtype).category < 2:
            raise NotImplementedError(f"{op}: not implemented for dtype={dtype}")
        return input.astype(as_dtype(dtype).numpy)
    if input.dtype.kind in "biu":
        raise RuntimeError(
            f"{op}: not implemented for integer tensors ({input.dtype}); convert with .float()"
        )
    return input


def _by_rows(input: Any) -> bool:
    """Whether the kernels over the rows of a matrix serve."""
    return input.size > 0 and input.dtype.kind in "fV"


def _rows(array: Any, dim: int) -> Any:
    """The entries along `dim` as rows; channels of images that lie last are where they have to be."""
    if dim != array.ndim - 1:
        seen = dim == 1 and array.ndim <= MOST_DIMENSIONS
        array = channels_last(array) if seen else np.moveaxis(array, dim, -1)
    return array.reshape(-1, array.shape[-1])


def _along(rows: Any, dim: int, shape: tuple[int, ...]) -> Any:
    """The reverse of `_rows`."""
    if dim == len(shape) - 1:
        return rows.reshape(shape)
    moved = (*shape[:dim], *shape[dim + 1 :], shape[dim])
    return np.moveaxis(rows.reshape(moved), -1, dim)


def _check_dim(dim: Any, op: str) -> None:
    if dim is None:
        raise TypeError(f"{op}() needs the dimension along which to normalise: dim=")


@export("softmax", methods=("softmax",))
class Softmax(Op):
    """exp(input) / sum(exp(input)) along `dim`."""

    in_float32 = halves_on_gpu = True

    def forward(self, input: Any, dim: int | None = None, dtype: Any = None) -> Any:
        name = type(self).name
        _check_dim(dim, name)
        input = _softmax_input(input, dtype, name)
        self.dim = wrap_dim(dim or 0, input.ndim, name)
        if input.ndim == 0:
            return self.xp.ones_like(input)
        self.by_rows = _by_rows(input)
        if not self.by_rows and computed_in(input.dtype) != input.dtype:
            return lifted_after_all(self, input, dim)
        if self.by_rows:
            rows = kernels_for(input).softmax(_rows(input, self.dim))
            return _along(rows, self.dim, input.shape)
        out = self.xp.exp(_shifted(self.xp, input, self.dim))
        out /= out.sum(axis=self.dim, keepdims=True)
        return out

    def backward(self, grad: Any, out: Any) -> Any:
        if grad.ndim == 0:
            return zeros_for(grad)
        if self.by_rows and not isinstance(grad, Tensor) and not isinstance(out, Tensor):
            rows = kernels_for(out).softmax_grad(_rows(grad, self.dim), _rows(out, self.dim))
            return _along(rows, self.dim, out.shape)
        return (grad - (grad * out).sum(axis=self.dim, keepdims=True)) * out


@export("log_softmax", methods=("log_softmax",))
class LogSoftmax(Op):
    """log(softmax(input)) along `dim`, without overflow."""

    in_float32 = halves_on_gpu = True

    def forward(self, input: Any, dim: int | None = None, dtype: Any = None) -> Any:
        name = type(self).name
        _check_dim(dim, name)
        input = _softmax_input(input, dtype, name)
        self.dim = wrap_dim(dim or 0, input.ndim, name)
        if input.ndim == 0:
            return self.xp.zeros_like(input)
        self.by_rows = _by_rows(input)
        if not self.by_rows and computed_in(input.dtype) != input.dtype:
            return lifted_after_all(self, input, dim)
        if self.by_rows:
            rows = kernels_for(input).log_softmax(_rows(input, self.dim))
            return _along(rows, self.dim, input.shape)
        out = _shifted(self.xp, input, self.dim)
        return out - self.xp.log(self.xp.exp(out).sum(axis=self.dim, keepdims=True))

    def backward(self, grad: Any, out: Any) -> Any:
        if grad.ndim == 0:
            return zeros_for(grad)
        if self.by_rows and not isinstance(grad, Tensor) and not isinstance(out, Tensor):
            rows = kernels_for(out).log_softmax_grad(_rows(grad, self.dim), _rows(out, self.dim))
            return _along(rows, self.dim, out.shape)
        return grad - Exp.call(out) * grad.sum(axis=self.dim, keepdims=True)


class Dropout(Op):
    """Zero each element (or each channel) with probability p and scale the rest by 1 / (1 - p)."""

    name = "dropout"
    #: What is kept is multiplied by it, where the mask is of bytes.
    scale: float | None = None

    def forward(self, input: Any, p: float, mask_shape: tuple[int, ...] | None = None) -> Any:
        if on_gpu(input) and mask_shape is None and p < 1 and input.dtype.kind in "fV":
            draws = default_generator().uniform_beside(input, input.shape, DROPOUT)
            self.scale = 1 / (1 - p)
            out, self.mask = kernels_for(input).dropout(input, draws, p)
            return out
        shape = input.shape if mask_shape is None else mask_shape
        if p == 1:
            self.mask = self.xp.zeros(shape, dtype=input.dtype)
        else:
            # 32-bit draws whatever the dtype, so that float32 and float64 runs drop the same elements.
            kept = default_generator().uniform_beside(input, shape, DROPOUT) >= p
            self.mask = kept.astype(input.dtype) * input.dtype.type(1 / (1 - p))
        return input * self.mask

    def backward(self, grad: Any) -> Any:
        if self.scale is not None:
            return Kept.call(grad, self.mask, self.scale)
        return grad * self.mask


class Kept(Op):
    """The elements that dropout kept, scaled; zero for the others."""

    def forward(self, input: Any, mask: Any, scale: float) -> Any:
        self.mask, self.scale = mask, scale
        return kernels_for(input).keep(input, mask, scale)

    def backward(self, grad: Any) -> Any:
        return Kept.call(grad, self.mask, self.scale)
