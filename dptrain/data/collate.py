"""Making one batch out of a list of samples.

Owns: `default_collate`, `default_convert`. Must not know: datasets, samplers, processes.

Source of the rules: PyTorch's documentation of `torch.utils.data.default_collate`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from dptrain.core.creation import tensor
from dptrain.core.dtypes import float64, from_numpy_dtype
from dptrain.core.ops.join import Stack
from dptrain.core.tensor import Tensor, wrap

_NO_TENSOR = (
    "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found {}"
)


def default_collate(batch: Sequence[Any]) -> Any:
    """One batch from a list of samples that are built alike.

    * tensors and NumPy arrays: a Tensor with a new first dimension;
    * Python and NumPy numbers: a Tensor of shape `(len(batch),)` (floats float64, ints int64);
    * strings and bytes: the list itself;
    * mappings, named tuples, tuples and lists: the same with each field collated (tuples as lists).

    Args:
        batch: one or more samples.

    Raises:
        TypeError: a field holds something else; the message names its type.
        RuntimeError: shapes of tensors, or lengths of lists, differ between the samples.
        ValueError: the batch is empty.
    """
    if len(batch) == 0:
        raise ValueError("default_collate: the batch is empty; give one or more samples")
    first = batch[0]
    if isinstance(first, Tensor):
        return _stacked(batch)
    if isinstance(first, np.ndarray):
        return _stacked([_array_tensor(array, array.dtype) for array in batch])
    if isinstance(first, (np.bool_, np.number)):
        return _array_tensor(np.asarray(batch), first.dtype)
    if isinstance(first, float):
        return wrap(np.array(batch, dtype=float64.numpy))
    if isinstance(first, int):
        # The general way looks at every element; the usual labels need no look.
        return wrap(np.array(batch)) if set(map(type, batch)) == {int} else tensor(batch)
    if isinstance(first, (str, bytes)):
        return batch
    return _collate_fields(batch, first)


def _stacked(tensors: Sequence[Any]) -> Tensor:
    """`stack(tensors)`; plain ones that are alike are joined without a look at each, several times faster."""
    arrays = [t._array for t in tensors if type(t) is Tensor and not t.requires_grad]
    shape = arrays[0].shape if len(arrays) == len(tensors) else ()
    if (
        not shape
        or {a.shape for a in arrays} != {shape}
        or {a.dtype.char for a in arrays} != {arrays[0].dtype.char}
        or set(map(type, arrays)) != {np.ndarray}
    ):
        stacked: Tensor = Stack.apply(*tensors)
        return stacked
    return wrap(np.concatenate(arrays).reshape(len(arrays), *shape))


def _array_tensor(array: np.ndarray, found: Any) -> Tensor:
    try:
        from_numpy_dtype(array.dtype)
    except TypeError as error:
        raise TypeError(f"{_NO_TENSOR.format(found)} ({error})") from None
    return wrap(array)


def _collate_fields(batch: Sequence[Any], first: Any) -> Any:
    if isinstance(first, Mapping):
        return _like(
            first, {key: default_collate([sample[key] for sample in batch]) for key in first}
        )
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(default_collate, zip(*batch, strict=True)))
    if isinstance(first, Sequence):
        for i, sample in enumerate(batch):
            if len(sample) != len(first):
                raise RuntimeError(
                    "each element in list of batch should be of equal size, but entry 0 has "
                    f"{len(first)} fields and entry {i} has {len(sample)}"
                )
        fields = [default_collate(samples) for samples in zip(*batch, strict=True)]
        return fields if isinstance(first, tuple) else _like(first, fields)
    raise TypeError(_NO_TENSOR.format(type(first)))


def default_convert(data: Any) -> Any:
    """NumPy arrays and numbers inside `data` as Tensors, everything else as it is.

    `DataLoader` applies it to single samples when `batch_size=None` turns batching off.
    """
    if isinstance(data, (np.ndarray, np.bool_, np.number)):
        array = np.asarray(data)
        return data if array.dtype.kind in "SUO" else _array_tensor(array, array.dtype)
    if isinstance(data, Mapping):
        return _like(data, {key: default_convert(value) for key, value in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*map(default_convert, data))
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        fields = [default_convert(value) for value in data]
        return fields if isinstance(data, tuple) else _like(data, fields)
    return data


def _like(original: Any, content: Any) -> Any:
    """A container of the original's type, with its further attributes, that holds `content`."""
    try:
        if isinstance(original, MutableMapping):
            result = copy.copy(original)
            result.update(content)
            return result
        if isinstance(original, MutableSequence):
            fields = copy.copy(original)
            for i, value in enumerate(content):
                fields[i] = value
            return fields
        make: Callable[[Any], Any] = type(original)
        return make(content)
    except TypeError:  # the type cannot be copied, changed or built from its content (a range, say)
        return content
