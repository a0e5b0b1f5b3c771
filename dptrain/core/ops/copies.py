"""Views as copies: `view_copy` and its like are the method's result, cloned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.export import export
from dptrain.core.ops.index import IndexPut
from dptrain.core.ops.reshape import AsStrided
from dptrain.core.ops.shape import Reshape
from dptrain.core.ops.take import Nonzero
from dptrain.core.tensor import Tensor, wrap


class Copied(Reshape):
    """A copy of a view."""

    is_view = False


def _copied(name: str, method: str) -> Callable[..., Any]:
    def copy(view: Tensor) -> Tensor:
        out = view.clone()
        if out._node is not None and view._node is not None:  # as PyTorch prints it
            out._node.backward_name = f"{view._node.grad_name}_copy"
        return out

    def function(input: Any, *args: Any, **kwargs: Any) -> Any:
        out = getattr(input, method)(*args, **kwargs)
        return copy(out) if isinstance(out, Tensor) else tuple(copy(part) for part in out)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`Tensor.{method}` as a copy."
    return function


for _method in (
    "as_strided",
    "detach",
    "diagonal",
    "expand",
    "permute",
    "select",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unfold",
    "unsqueeze",
    "view",
):
    export(f"{_method}_copy", function=_copied(f"{_method}_copy", _method))(Copied)
for _method in ("chunk", "split", "split_with_sizes"):
    # No view ties the parts to the whole: either may be changed in place.
    export(
        f"unsafe_{_method}",
        methods=(f"unsafe_{_method}",),
        function=_copied(f"unsafe_{_method}", _method),
    )(Copied)


def _narrow_copy(input: Any, dim: int, start: int, length: int) -> Any:
    """`Tensor.narrow` as a copy."""
    if input.ndim and dim >= input.ndim:  # another kind than `narrow`'s, as PyTorch's
        raise RuntimeError(
            f"narrow_copy: expected dim < {input.ndim}, the number of dimensions, but got {dim}"
        )
    return input.narrow(dim, start, length).clone()


export("narrow_copy", methods=("narrow_copy",), function=_narrow_copy)(Copied)


def _as_strided_scatter(
    input: Any, src: Any, size: Any, stride: Any, storage_offset: int | None = None
) -> Any:
    """A copy with the elements of `as_strided(size, stride, storage_offset)` replaced by `src`."""
    size, shape = tuple(size), tuple(src.shape)
    if shape != size:
        raise RuntimeError(
            f"as_strided_scatter: expected src to have a size equal to the slice of self. src size = {list(shape)}, "
            f"slice size = {list(size)}"
        )
    numbers = wrap(namespace_of(input._array).arange(input.numel()).reshape(tuple(input.shape)))
    places = AsStrided.apply(numbers, size, tuple(stride), storage_offset)._array
    return IndexPut.apply(input, src, np.unravel_index(places, tuple(input.shape)))


export("as_strided_scatter", methods=("as_strided_scatter",), function=_as_strided_scatter)(
    IndexPut
)


def _nonzero_static(input: Any, *, size: int, fill_value: int = -1) -> Any:
    """`nonzero` of a given number of rows: cut, or filled up with `fill_value`."""
    if size < 0:
        raise RuntimeError(f"nonzero_static: 'size' must be an non-negative integer, got {size}")
    found = np.stack(np.nonzero(np.atleast_1d(input._array)), axis=1)[:size, : input.ndim]
    out = namespace_of(found).full((size, input.ndim), fill_value, np.int64)
    out[: len(found)] = found
    return wrap(out)


export("nonzero_static", methods=("nonzero_static",), function=_nonzero_static)(Nonzero)
