"""`repeat_interleave`, and small methods that PyTorch has beside its operations."""

from __future__ import annotations

from typing import Any

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.export import export
from dptrain.core.ops.scatter import IndexSelect
from dptrain.core.ops.shape import Reshape, wrap_dim
from dptrain.core.tensor import Tensor, wrap


def _repeat_interleave(
    input: Any,
    repeats: int | Tensor | None = None,
    dim: int | None = None,
    *,
    output_size: int | None = None,
) -> Any:
    """Each entry of a dimension (of the flattened tensor) repeated so many times, one after another.

    With one argument: the place of each count, repeated so many times.
    """
    if repeats is None:
        if input.ndim != 1 or input.dtype.category != 1:
            raise (NotImplementedError if input.ndim == 1 else RuntimeError)(
                f"repeat_interleave only accepts 1D integer tensors as repeat, got {input.dtype} {list(input.shape)}"
            )
        return wrap(
            np.repeat(namespace_of(input._array).arange(input._array.size), _counts(input._array))
        )
    if dim is None:
        input, dim = Reshape.apply(input, (-1,)), 0
    dim = wrap_dim(dim, input.ndim, "repeat_interleave")
    size = input._array.shape[dim] if input.ndim else 1
    xp = namespace_of(input._array)
    counts = repeats._array if isinstance(repeats, Tensor) else xp.asarray(repeats)
    if isinstance(repeats, Tensor) and counts.dtype not in (np.int32, np.int64):
        raise NotImplementedError(
            f"repeat_interleave: repeats must be integers (int32 or int64), got {counts.dtype}"
        )
    if counts.ndim > 1 or (counts.ndim == 1 and counts.size not in (1, size)):
        raise RuntimeError(
            f"repeat_interleave: repeats must have the same size as input along dim, but got repeats.size(0) = "
            f"{counts.size} and input.size({dim}) = {size}"
        )
    index = np.repeat(xp.arange(size), _counts(counts))
    if output_size is not None and output_size != index.size:
        raise RuntimeError(
            f"repeat_interleave: allocated size does not match required size ({output_size} and {index.size})"
        )
    return IndexSelect.apply(input, dim, wrap(index))


def _counts(repeats: np.ndarray) -> np.ndarray:
    if (repeats < 0).any():
        raise RuntimeError(f"repeat_interleave: repeats can not be negative, got {repeats.min()}")
    return repeats


export("repeat_interleave", methods=("repeat_interleave",), function=_repeat_interleave)(
    IndexSelect
)
