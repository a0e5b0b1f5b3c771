"""Making one batch out of a list of samples.

Owns: `default_collate`, its table and `collate`; `default_convert`. Must not know: datasets, samplers, processes.

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

CollateFnMap = dict[Any, Callable[..., Any]]
_NO_TENSOR = (
    "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; found {}"
)


def default_collate(batch: Sequence[Any]) -> Any:
    """One batch from a list of samples that are built alike.

    * tensors and NumPy arrays: a Tensor with a new first dimension;
    * Python and NumPy numbers: a Tensor of shape `(len(batch),)` (floats float64, ints int64);
    * strings and bytes: the list itself;
    * mappings, named tuples, tuples and lists: the same with each field collated (tuples as lists);
    * what was added to `default_collate_fn_map`.

    Args:
        batch: one or more samples.

    Raises:
        TypeError: a field holds something else; the message names its type.
        RuntimeError: shapes of tensors, or lengths of lists, differ between the samples.
        IndexError: the batch is empty.
    """
    return collate(batch, collate_fn_map=default_collate_fn_map)


def collate(batch: Sequence[Any], *, collate_fn_map: CollateFnMap | None = None) -> Any:
    """One batch from a list of samples, by a table of functions for the types in them.

    Args:
        batch: one or more samples that are built alike.
        collate_fn_map: type, or tuple of types -> function of a batch of it and of `collate_fn_map`. The very
            type counts first, then the first that the samples are instances of; then containers.
    """
    if len(batch) == 0:
        raise IndexError("default_collate: the batch is empty; give one or more samples")
    first = batch[0]
    table = collate_fn_map or {}
    make = table.get(type(first)) or next(
        (f for k, f in table.items() if isinstance(first, k)), None
    )
    if make is not None:
        return make(batch, collate_fn_map=collate_fn_map)
    return _collate_fields(batch, first, collate_fn_map)


def _collate_tensors(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Tensor:
    return _stacked(batch)


def _collate_arrays(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Tensor:
    arrays = map(np.asarray, batch)  # a number among them is one without dimensions
    return _stacked([_array_tensor(array, array.dtype) for array in arrays])


def _collate_scalars(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Tensor:
    return _array_tensor(np.asarray(batch), batch[0].dtype)


def _collate_floats(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Tensor:
    return wrap(np.array(batch, dtype=float64.numpy))


def _collate_ints(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Tensor:
    # The general way looks at every element; the usual labels need no look.
    array = np.array(batch) if set(map(type, batch)) == {int} else None
    return tensor(batch) if array is None or array.dtype != np.int64 else wrap(array)


def _collate_texts(batch: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    return batch


#: What `default_collate` does with the types of samples, for users to add theirs to.
default_collate_fn_map: CollateFnMap = {
    Tensor: _collate_tensors,
    np.ndarray: _collate_arrays,
    (np.bool_, np.number): _collate_scalars,
    float: _collate_floats,
    int: _collate_ints,
    str: _collate_texts,
    bytes: _collate_texts,
}


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
        for i, t in enumerate(tensors):
            if not isinstance(t, Tensor):
                raise TypeError(
                    f"expected Tensor as element {i} in argument 0, but got {type(t).__name__}"
                )
        stacked: Tensor = Stack.apply(*tensors)
        return stacked
    return wrap(np.concatenate(arrays).reshape(len(arrays), *shape))


def _array_tensor(array: np.ndarray, found: Any) -> Tensor:
    try:
        from_numpy_dtype(array.dtype)
    except TypeError as error:
        raise TypeError(f"{_NO_TENSOR.format(found)} ({error})") from None
    return wrap(array)


def _collate_fields(batch: Sequence[Any], first: Any, table: CollateFnMap | None) -> Any:
    def collated(samples: Any) -> Any:
        return collate(samples, collate_fn_map=table)

    if isinstance(first, Mapping):
        return _like(first, {key: collated([sample[key] for sample in batch]) for key in first})
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(collated, zip(*batch, strict=True)))
    if isinstance(first, Sequence):
        for i, sample in enumerate(batch):
            if len(sample) != len(first):
                raise RuntimeError(
                    "each element in list of batch should be of equal size, but entry 0 has "
                    f"{len(first)} fields and entry {i} has {len(sample)}"
                )
        fields = [collated(samples) for samples in zip(*batch, strict=True)]
        return fields if isinstance(first, tuple) else _like(first, fields)
    raise TypeError(_NO_TENSOR.format(type(first)))


def default_convert(data: Any) -> Any:
    """NumPy arrays and numbers inside `data` as Tensors, everything else as it is.

    `DataLoader` applies it to single samples when `batch_size=None` turns batching off.
    """
    if isinstance(data, (np.ndarray, np.bool_, np.number)):
        array = np.asarray(data)
        return data if array.dtype.kind in "SUO" else _array_tensor(array, array.dtype)
    if isinstance(data, tuple) and not hasattr(data, "_fields"):
        return list(map(default_convert, data))
    return with_fields(data, default_convert)


def with_fields(data: Any, change: Callable[[Any], Any]) -> Any:
    """A container like `data` with each field changed; `data` itself if it is a text or no container."""
    if isinstance(data, Mapping):
        return _like(data, {key: change(value) for key, value in data.items()})
    if isinstance(data, tuple):
        kind: Any = type(data)
        return kind(*map(change, data)) if hasattr(data, "_fields") else kind(map(change, data))
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return _like(data, [change(value) for value in data])
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
