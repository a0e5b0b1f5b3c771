"""Changing shape, order and extent: views where NumPy can give one. One block per operation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from dptrain.core.arrays import broadcast_to, is_array
from dptrain.core.dtypes import dtype
from dptrain.core.export import export
from dptrain.core.op import Op
from dptrain.core.tensor import Tensor


def wrap_dim(dim: int, ndim: int, op: str) -> int:
    """A non-negative dimension from one that may count from the end.

    Raises:
        IndexError: no such dimension.
    """
    if 0 <= dim < ndim:  # nearly every one
        return dim
    if -ndim <= dim < 0:
        return dim + ndim
    span = max(ndim, 1)
    if not -span <= dim < span:
        raise IndexError(
            f"{op}: Dimension out of range (expected to be in range of [{-span}, {span - 1}], but got {dim})"
        )
    return dim % span


def wrap_dims(dim: int | Sequence[int], ndim: int, op: str) -> tuple[int, ...]:
    """The non-negative dimensions of one or several.

    Raises:
        IndexError: no such dimension.
        RuntimeError: one stands twice.
    """
    dims = tuple(wrap_dim(d, ndim, op) for d in (dim if isinstance(dim, Sequence) else (dim,)))
    if len(set(dims)) != len(dims):
        raise RuntimeError(f"{op}: dim {list(dims)} appears multiple times in the list of dims")
    return dims


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes given one by one or as one sequence."""
    if _INTS.issuperset(map(type, sizes)):  # nearly every call
        return sizes
    if len(sizes) == 1 and isinstance(sizes[0], Sequence):
        sizes = tuple(sizes[0])
    return tuple(map(int, sizes))


_INTS = frozenset([int])


class SumToSize(Op):
    """Sum over the dimensions along which a value was broadcast: the engine's own operation."""

    in_float32 = True

    def forward(self, input: Any, shape: tuple[int, ...]) -> Any:
        lead = input.ndim - len(shape)
        axes = tuple(range(lead)) + tuple(
            i + lead for i, s in enumerate(shape) if s == 1 and input.shape[i + lead] != 1
        )
        self.shape = input.shape
        return input.sum(axis=axes, keepdims=True).reshape(shape) if axes else input.reshape(shape)

    def backward(self, grad: Any) -> Any:
        return Expand.call(grad, self.shape)


def _reshape(input: Any, *shape: Any) -> Any:
    """The same elements in another shape; one size may be -1. A view where possible."""
    return Reshape.apply(input, _sizes(shape))


@export("reshape", methods=("reshape",), function=_reshape)
class Reshape(Op):
    """The same elements in another shape."""

    is_view = True
    backward_name = "ViewBackward0"

    def forward(self, input: Any, shape: tuple[int, ...]) -> Any:
        self.shape = input.shape
        if shape and min(shape) < -1:
            raise RuntimeError(
                f"{self.name}: invalid shape dimension {min(shape)} in {list(shape)}"
            )
        try:
            return input.reshape(shape)
        except ValueError:
            if shape.count(-1) > 1:
                raise RuntimeError(
                    f"{self.name}: only one dimension can be inferred, got shape {list(shape)}"
                ) from None
            raise RuntimeError(
                f"{self.name}: shape '{list(shape)}' is invalid for input of size {input.size} (shape {list(input.shape)})"
            ) from None

    def backward(self, grad: Any) -> Any:
        return Reshape.call(grad, self.shape)


class ViewAs(Op):
    """The same memory read as elements of another type; no gradient passes."""

    name = "view"
    is_view = True
    differentiable = False

    def forward(self, input: Any, target: np.dtype[Any]) -> Any:
        if input.dtype.itemsize != target.itemsize and not (
            input.ndim and input.strides[-1] == input.itemsize
        ):
            raise RuntimeError(
                f"view: self.stride(-1) must be 1 to view {input.dtype} as {target} (different element sizes)"
            )
        return input.view(target)


def _view(self: Any, *shape: Any) -> Any:
    """The same memory in another shape.

    Raises:
        RuntimeError: the strides do not allow it; use reshape.
    """
    if len(shape) == 1 and isinstance(shape[0], dtype):
        return ViewAs.apply(self, shape[0].numpy)
    result = Reshape.apply(self, _sizes(shape))
    if result._base is None and result._array.size:  # it is no view
        raise RuntimeError(
            f"view size {list(result.shape)} is not compatible with input tensor's size {list(self.shape)} and stride "
            f"{list(self.stride())} (at least one dimension spans across two contiguous subspaces). Use .reshape(...) instead."
        )
    return result


export(methods=("view",), function=_view, kinds={"shape": "int | tuple of ints | dtype"})(Reshape)


def _flatten(input: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Join the dimensions start_dim..end_dim into one."""
    shape = input._array.shape
    start, end = (
        wrap_dim(start_dim, len(shape), "flatten"),
        wrap_dim(end_dim, len(shape), "flatten"),
    )
    if start > end:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    return Reshape.apply(
        input, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
    )


export("flatten", methods=("flatten",), function=_flatten)(Reshape)


def _permute(input: Any, *dims: Any) -> Any:
    """The dimensions in the given order."""
    return Permute.apply(input, _sizes(dims))


@export("permute", methods=("permute",), function=_permute)
class Permute(Op):
    """The dimensions in another order."""

    is_view = True

    def forward(self, input: Any, dims: tuple[int, ...]) -> Any:
        if len(dims) != input.ndim:
            raise RuntimeError(
                f"permute: expected as many dims as the input of shape {list(input.shape)} has, got {list(dims)}"
            )
        ndim = input.ndim
        self.dims = tuple([d if 0 <= d < ndim else wrap_dim(d, ndim, "permute") for d in dims])
        if sorted(self.dims) != list(range(input.ndim)):
            raise RuntimeError(
                f"permute: dims {list(dims)} are no permutation of the {input.ndim} dimensions of the input"
            )
        return input.transpose(self.dims)

    def backward(self, grad: Any) -> Any:
        return Permute.call(grad, tuple(_inverse(self.dims)))


def _inverse(dims: Sequence[int]) -> list[int]:
    """The permutation that undoes another."""
    return sorted(range(len(dims)), key=dims.__getitem__)


@export("transpose", "swapaxes", "swapdims", methods=("transpose", "swapaxes", "swapdims"))
class Transpose(Op):
    """Two dimensions exchanged."""

    is_view = True

    def forward(self, input: Any, dim0: int, dim1: int) -> Any:
        ndim = input.ndim
        self.dims = wrap_dim(dim0, ndim, "transpose"), wrap_dim(dim1, ndim, "transpose")
        return input.swapaxes(*self.dims) if input.ndim else input

    def backward(self, grad: Any) -> Any:
        return Transpose.call(grad, *self.dims)


class MatrixTranspose(Transpose):
    """`t()`: as `transpose`, under PyTorch's name for the node."""

    backward_name = "TBackward0"


def _t(input: Any) -> Any:
    """The transpose of a tensor of at most two dimensions."""
    if input.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {input.ndim}D")
    return MatrixTranspose.apply(input, 0, 1) if input.ndim == 2 else input


export("t", methods=("t",), function=_t)(Transpose)


@export("squeeze", methods=("squeeze",), kinds={"dim": "int | tuple of ints!"})
class Squeeze(Op):
    """Drop dimensions of size one: all, or those in `dim`."""

    is_view = True

    def forward(self, input: Any, dim: Any = None) -> Any:
        self.shape = input.shape
        if dim is None:
            return input.reshape(tuple(s for s in input.shape if s != 1))
        if type(dim) is int:
            self.backward_name = "SqueezeBackward1"
            dim = wrap_dim(dim, input.ndim, "squeeze")
            if input.shape[dim : dim + 1] != (1,):
                return input[...]
            return input.reshape(input.shape[:dim] + input.shape[dim + 1 :])
        dims = wrap_dims(dim, input.ndim, "squeeze")
        self.backward_name = f"SqueezeBackward{2 if isinstance(dim, Sequence) else 1}"
        return input.reshape(
            tuple(s for i, s in enumerate(input.shape) if not (s == 1 and i in dims))
        )

    def backward(self, grad: Any) -> Any:
        return Reshape.call(grad, self.shape)


@export("unsqueeze", methods=("unsqueeze",))
class Unsqueeze(Op):
    """A new dimension of size one at `dim`."""

    is_view = True

    def forward(self, input: Any, dim: int) -> Any:
        self.shape = input.shape
        dim = wrap_dim(dim, input.ndim + 1, "unsqueeze")
        return input[(slice(None),) * dim + (None, ...)]

    def backward(self, grad: Any) -> Any:
        return Reshape.call(grad, self.shape)


def _expand(self: Any, *sizes: Any) -> Any:
    """Repeat dimensions of size one without copying; -1 keeps a size."""
    return Expand.apply(self, _sizes(sizes))


@export(methods=("expand",), function=_expand)
class Expand(Op):
    """Dimensions of size one stretched, as a view."""

    is_view = True
    name = "expand"

    def forward(self, input: Any, sizes: tuple[int, ...]) -> Any:
        lead = len(sizes) - input.ndim
        if lead < 0:
            raise RuntimeError(
                f"expand: the number of sizes provided ({len(sizes)}) must be at least the number of dimensions in the tensor ({input.ndim})"
            )
        shape = input.shape
        target = sizes
        if -1 in sizes:
            target = tuple(
                [shape[i - lead] if s == -1 and i >= lead else s for i, s in enumerate(sizes)]
            )
        for i, s in enumerate(shape):
            if s not in (1, target[i + lead]):
                raise RuntimeError(
                    f"expand: the expanded size of the tensor ({target[i + lead]}) must match the existing size ({s}) at "
                    f"non-singleton dimension {i + lead}. Target sizes: {list(sizes)}. Tensor sizes: {list(input.shape)}"
                )
        if target and min(target) < 0:
            raise RuntimeError(
                f"expand: sizes {list(sizes)} hold a negative size for a dimension that does not exist"
            )
        self.shape = shape
        # Views of expanded memory are read-only in NumPy; keep NumPy's guard against writing twice.
        return broadcast_to(input, target)

    def backward(self, grad: Any) -> Any:
        return SumToSize.call(grad, self.shape)


def _expand_as(self: Any, other: Any) -> Any:
    """Expand to the shape of `other`."""
    return Expand.apply(self, other._array.shape)


export(methods=("expand_as",), function=_expand_as)(Expand)


@export("narrow", methods=("narrow",), kinds={"start": "int | Tensor"})
class Narrow(Op):
    """`length` entries of one dimension from `start`, as a view."""

    is_view = True
    takes_part = True
    backward_name = "SliceBackward0"

    def forward(self, input: Any, dim: int, start: Any, length: int) -> Any:
        if input.ndim == 0:
            raise RuntimeError("narrow() cannot be applied to a 0-dim tensor.")
        if is_array(start):
            if start.ndim or start.dtype.kind not in "iu":
                raise RuntimeError("narrow: start must be an 0-dim integral Tensor.")
            start = int(start)
        if length < 0:
            raise RuntimeError("narrow(): length must be non-negative.")
        dim = wrap_dim(dim, input.ndim, "narrow")
        size = input.shape[dim]
        if not -size <= start <= size:
            raise IndexError(
                f"narrow: start out of range (expected to be in range of [{-size}, {size}], but got {start})"
            )
        if start < 0:
            start += size
        if start + length > size:
            raise RuntimeError(
                f"narrow: start ({start}) + length ({length}) exceeds dimension size ({size})"
            )
        self.index: tuple[Any, ...] = (slice(None),) * dim + (slice(start, start + length),)
        self.shape, self.strides = input.shape, input.strides
        return input[self.index]

    def backward(self, grad: Any) -> Any:
        return Embed.call(grad, self.shape, self.index, self.strides)


@export("select", methods=("select",), kinds={"index": "int"})
class Select(Op):
    """One entry of a dimension, which goes away."""

    is_view = True
    takes_part = True

    def forward(self, input: Any, dim: int, index: int) -> Any:
        dim = wrap_dim(dim, input.ndim, "select")
        if not -input.shape[dim] <= index < input.shape[dim]:
            raise IndexError(
                f"select(): index {index} out of range for tensor of size {list(input.shape)} at dimension {dim}"
            )
        # With the ellipsis the result is a view even where nothing but one element is left.
        self.index: tuple[Any, ...] = (slice(None),) * dim + (index, ...)
        self.shape, self.strides = input.shape, input.strides
        return input[self.index]

    def backward(self, grad: Any) -> Any:
        return Embed.call(grad, self.shape, self.index, self.strides)


class Embed(Op):
    """Zeros of a shape with the input at a basic index: the derivative of taking a part.

    With the strides of the whole, its dimensions follow each other in memory as they did there. The steps
    before may have been views: going back through these, the gradient ends where it needs no copy.
    """

    def forward(
        self,
        input: Any,
        shape: tuple[int, ...],
        index: Any,
        strides: tuple[int, ...] | None = None,
    ) -> Any:
        self.index = index
        if strides is None or all(a >= b for a, b in pairwise(strides)):
            out = self.xp.zeros(shape, dtype=input.dtype)
        else:
            order = sorted(range(len(shape)), key=strides.__getitem__, reverse=True)
            out = self.xp.zeros([shape[d] for d in order], input.dtype).transpose(_inverse(order))
        out[index] = input
        return out

    def backward(self, grad: Any) -> Any:
        return grad[self.index]


def _transposed(self: Tensor) -> Tensor:
    """The dimensions in reverse order."""
    return Permute.apply(self, tuple(range(self._array.ndim))[::-1])


def _matrix_transposed(self: Tensor) -> Tensor:
    """The last two dimensions exchanged."""
    if self._array.ndim < 2:
        raise RuntimeError(
            f"tensor.mT is only supported on matrices or batches of matrices. Got {self._array.ndim}-D tensor"
        )
    return Transpose.apply(self, -2, -1)


Tensor.T = property(_transposed)
Tensor.mT = property(_matrix_transposed)
