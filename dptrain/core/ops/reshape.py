"""Views by other names, views by strides, and the forms that change a tensor's own shape."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from dptrain.core.arrays import address, allow_writing, is_array, is_writeable, namespace_of
from dptrain.core.export import export, public
from dptrain.core.kernels import kernels_for
from dptrain.core.op import Op
from dptrain.core.ops.join import _split
from dptrain.core.ops.shape import (
    Narrow,
    Reshape,
    SumToSize,
    Transpose,
    _sizes,
    _view,
    wrap_dim,
)
from dptrain.core.tensor import Tensor


def _ravel(input: Any) -> Any:
    """All elements in one dimension; a view where possible."""
    return Reshape.apply(input, (-1,))


def _unflatten(input: Any, dim: int, sizes: Any) -> Any:
    """One dimension taken apart into several; one size may be -1."""
    if not input.ndim:
        raise RuntimeError("unflatten: Dimension specified as 0 but tensor has no dimensions")
    dim = wrap_dim(dim, input.ndim, "unflatten")
    sizes = _sizes((sizes,))
    if not sizes:
        raise RuntimeError("unflatten: sizes must be non-empty")
    size = input._array.shape[dim]
    known = prod([s for s in sizes if s != -1])
    if (known != size) if -1 not in sizes else (known == 0 or size % known):
        raise RuntimeError(
            f"unflatten: Provided sizes {list(sizes)} don't multiply up to the size of dim {dim} ({size}) in the input tensor"
        )
    shape = input._array.shape
    return Reshape.apply(input, (*shape[:dim], *sizes, *shape[dim + 1 :]))


def _reshape_as(self: Tensor, other: Tensor) -> Any:
    """The same elements in the shape of `other`."""
    return Reshape.apply(self, other._array.shape)


def _view_as(self: Tensor, other: Tensor) -> Any:
    """The same memory in the shape of `other`."""
    return _view(self, other._array.shape)


def _split_with_sizes(input: Any, split_sizes: Any, dim: int = 0) -> Any:
    """Parts of the given sizes, as views."""
    return _split(input, list(split_sizes), dim)


def _sum_to_size(self: Tensor, *size: Any) -> Any:
    """Summed over the dimensions along which a tensor of that size would be broadcast to this one."""
    shape = _sizes(size)
    try:
        fits = np.broadcast_shapes(shape, self._array.shape) == self._array.shape
    except ValueError:
        fits = False
    if not fits:
        raise RuntimeError(
            f"sum_to_size: size {list(shape)} is not expandable to size {list(self.shape)}"
        )
    summed = shape == () or shape != self._array.shape
    integers = self.dtype.category < 2 and summed
    return SumToSize.apply(self.long() if integers else self, shape)


export("ravel", methods=("ravel",), function=_ravel)(Reshape)
export("unflatten", methods=("unflatten",), function=_unflatten, kinds={"sizes": "tuple of ints"})(
    Reshape
)
export(methods=("reshape_as",), function=_reshape_as)(Reshape)
export(methods=("view_as",), function=_view_as)(Reshape)
export("split_with_sizes", methods=("split_with_sizes",), function=_split_with_sizes)(Narrow)
export(methods=("sum_to_size",), function=_sum_to_size)(SumToSize)


def _adjoint(self: Any) -> Any:
    """The last two dimensions exchanged."""
    if self.ndim == 1:
        raise RuntimeError(
            "adjoint() is only supported on matrices or batches of matrices. Got 1-D tensor."
        )
    return Transpose.apply(self, -2, -1)


export("adjoint", methods=("adjoint",), function=_adjoint)(Transpose)


def _storage(array: np.ndarray) -> np.ndarray:
    """The one-dimensional memory that an array looks into, from its own first element on."""
    owner: Any = array
    while is_array(owner.base) and owner.base.dtype == array.dtype:
        owner = owner.base
    return owner


@export("as_strided", methods=("as_strided",))
class AsStrided(Op):
    """A view with given sizes and strides (in elements) into the tensor's memory."""

    is_view = True

    def forward(self, input: Any, size: Any, stride: Any, storage_offset: int | None = None) -> Any:
        size, stride = tuple(size), tuple(stride)
        if len(size) != len(stride):
            raise RuntimeError(
                f"as_strided: mismatch in length of strides and shape ({len(stride)} and {len(size)})"
            )
        if any(s < 0 for s in (*size, *stride)):
            raise RuntimeError(
                f"as_strided: negative sizes or strides are not supported: {list(size)}, {list(stride)}"
            )
        owner = _storage(input)
        here = (address(input) - address(owner)) // input.itemsize
        offset = here if storage_offset is None else storage_offset
        needed = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
        if 0 not in size and (offset < 0 or needed > owner.size or not owner.flags.c_contiguous):
            raise RuntimeError(
                f"as_strided: setStorage: sizes {list(size)}, strides {list(stride)}, storage offset {offset} need "
                f"{needed} elements and are out of bounds for storage of size {owner.size}"
            )
        self.plan, self.shape = (size, stride, storage_offset), input.shape
        self.dense = input.flags.c_contiguous and offset >= here
        self.offset = offset - here
        flat = owner.reshape(-1)[offset:] if 0 not in size else owner.reshape(-1)[:0]
        steps = tuple(s * input.itemsize for s in stride)
        out = self.xp.lib.stride_tricks.as_strided(flat, size, steps)
        if not is_writeable(input):
            allow_writing(out, False)
        return out

    def backward(self, grad: Any) -> Any:
        if not self.dense:
            raise RuntimeError("as_strided: the derivative needs a contiguous input")
        size, stride, _ = self.plan
        return StridedAdd.call(grad, self.shape, size, stride, self.offset)


class StridedAdd(Op):
    """Elements added up at the places of a strided view: the derivative of `as_strided`."""

    def forward(self, input: Any, shape: Any, size: Any, stride: Any, offset: int) -> Any:
        self.plan = (size, stride, offset)
        out = self.xp.zeros(shape, input.dtype)
        places = self.xp.full(size, offset)
        for axis, (n, s) in enumerate(zip(size, stride, strict=True)):
            steps = self.xp.arange(n) * s
            places = places + steps.reshape((-1,) + (1,) * (len(size) - 1 - axis))
        kernels_for(out).add_at(out.reshape(-1), (places,), input)
        return out

    def backward(self, grad: Any) -> Any:
        return AsStrided.call(grad, *self.plan)


def _in_place_view(name: str, make: Any) -> None:
    """A method that turns the tensor itself into a view of what it was."""

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check_inplace(name)
        before = Tensor.__new__(Tensor)
        before.__dict__.update(self.__dict__)
        after = make(before, *args, **kwargs)
        self._array = after._array
        self._bump_version()
        if after._node is not None:
            self._node, self._index, self._requires_grad = after._node, after._index, True
        if self._base is not None and "_steps" in after.__dict__:
            self.__dict__["_steps"] = after.__dict__["_steps"]  # the way from the base to the view
        return self

    method.__name__ = name
    method.__doc__ = f"As `{name[:-1]}`, for the tensor itself."
    setattr(Tensor, name, method)


for _name in ("as_strided", "squeeze", "unsqueeze", "transpose", "swapaxes", "swapdims", "t"):
    _in_place_view(f"{_name}_", getattr(Tensor, _name))


def _resize(self: Tensor, *sizes: Any) -> Tensor:
    """Another size for the tensor itself: elements are kept in order, new ones are undefined.

    Raises:
        RuntimeError: the tensor requires gradients.
    """
    shape = _sizes(sizes)
    if any(s < 0 for s in shape):
        raise RuntimeError(f"resize_: requested resize to {list(shape)} with a negative size")
    if self._requires_grad:
        raise RuntimeError("cannot resize variables that require grad")
    count = prod(shape)
    flat = self._array.reshape(-1)
    if count <= flat.size:
        self._array = flat[:count].reshape(shape)
    else:
        grown = namespace_of(flat).zeros(count, flat.dtype)
        grown[: flat.size] = flat
        self._array = grown.reshape(shape)
    self._bump_version()
    return self


def _resize_as(self: Tensor, other: Tensor) -> Tensor:
    """The tensor itself resized to the size of `other`."""
    return _resize(self, other._array.shape)


Tensor.resize_ = public(_resize, name="resize_")  # type: ignore[attr-defined]
Tensor.resize_as_ = public(_resize_as, name="resize_as_", other="Tensor")  # type: ignore[attr-defined]
