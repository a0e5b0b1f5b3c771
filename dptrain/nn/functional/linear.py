"""Linear maps and encodings: `linear`, `one_hot`."""

from __future__ import annotations

import numpy as np

from dptrain.core.arrays import namespace_of
from dptrain.core.ops.matmul import Linear
from dptrain.core.tensor import Tensor, wrap


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias: (..., in) with (out, in) and (out,) -> (..., out).

    For an input of two dimensions the bias may also be a matrix that broadcasts.

    Raises:
        RuntimeError: shapes or dtypes do not fit.
    """
    if bias is None:
        return Linear.apply(input, weight)
    if isinstance(bias, Tensor) and bias._array.ndim == 2:
        product = Linear.apply(input, weight)
        return product + bias.expand(*product.shape)
    return Linear.apply(input, weight, bias)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Class indices as rows of 0 and 1: (...) int64 -> (..., num_classes) int64.

    Args:
        tensor: class indices >= 0.
        num_classes: by default one more than the largest index.

    Raises:
        RuntimeError: not int64, or an index outside [0, num_classes).
    """
    indices = tensor._array
    if indices.dtype != np.int64:
        raise RuntimeError(
            f"one_hot is only applicable to index tensor of type LongTensor (int64), got {tensor.dtype}"
        )
    if not indices.size and num_classes <= 0:
        raise RuntimeError("Can not infer total number of classes from empty tensor.")
    if indices.size and indices.min() < 0:
        raise RuntimeError("Class values must be non-negative.")
    if num_classes == -1:
        num_classes = int(indices.max()) + 1
    elif num_classes < 1:
        raise RuntimeError(f"num_classes should be positive, got {num_classes}")
    elif indices.size and indices.max() >= num_classes:
        raise RuntimeError(
            f"Class values must be smaller than num_classes: got class {int(indices.max())} and "
            f"num_classes={num_classes}"
        )
    return wrap((indices[..., None] == namespace_of(indices).arange(num_classes)).astype(np.int64))
