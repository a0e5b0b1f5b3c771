"""Map-style datasets: something with a length whose samples are found by number.

Owns: `Dataset`, `TensorDataset`, `Subset`. Must not know: samplers, loaders, processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from dptrain.core.tensor import Tensor, wrap
from dptrain.data.fetch import batch_getter, samples_at

T_co = TypeVar("T_co", covariant=True)


class Dataset(Generic[T_co]):
    """Base of the datasets: implement `__getitem__(index)` and `__len__()`.

    Two methods are optional and make batches cheaper:

    * `__getitems__(indices)` returns the list of samples at once, as in PyTorch;
    * `get_batch(indices)` returns the batch itself, exactly what `default_collate` would make of those
      samples. The loader calls it when no other `collate_fn` was asked for.
    """

    def __getitem__(self, index: Any) -> T_co:
        """The sample with number `index`."""
        raise NotImplementedError(f"{type(self).__name__} must implement __getitem__(index)")


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Samples are the slices of some tensors along their first dimension.

    Args:
        *tensors: tensors of shape `(samples, ...)`.

    Raises:
        ValueError: no tensors, or one without dimensions.
        AssertionError: their first dimensions differ (PyTorch's exception type).
    """

    tensors: tuple[Tensor, ...]

    def __init__(self, *tensors: Tensor) -> None:
        if not tensors or any(tensor.dim() == 0 for tensor in tensors):
            raise ValueError(
                f"TensorDataset needs one or more tensors of shape (samples, ...), got shapes "
                f"{[list(tensor.shape) for tensor in tensors]}"
            )
        if any(tensor.size(0) != tensors[0].size(0) for tensor in tensors):
            raise AssertionError(
                f"Size mismatch between tensors: their first dimensions are "
                f"{[tensor.size(0) for tensor in tensors]}, and must be equal"
            )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __len__(self) -> int:
        return int(self.tensors[0].size(0))

    def get_batch(self, indices: Sequence[int]) -> list[Tensor]:
        """The collated samples at `indices`: one gather per tensor.

        Returns:
            Tensors of shape `(len(indices), ...)`.
        """
        where = np.asarray(indices, dtype=np.int64)
        return [take_rows(tensor, where) for tensor in self.tensors]


class Subset(Dataset[T_co]):
    """The samples of `dataset` at `indices`, renumbered from 0.

    Args:
        dataset: the whole dataset.
        indices: numbers of the samples to keep, in order.
    """

    dataset: Dataset[T_co]
    indices: Sequence[int]

    def __init__(self, dataset: Dataset[T_co], indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __getitems__(self, indices: Sequence[int]) -> list[T_co]:
        """The samples at `indices`, through the whole dataset's own batch access where it has one."""
        return samples_at(self.dataset, [self.indices[i] for i in indices])

    def get_batch(self, indices: Sequence[int]) -> Any:
        """The collated samples at `indices`, or NotImplemented when the whole dataset is not array-backed."""
        get_batch = batch_getter(self.dataset)
        if get_batch is None:
            return NotImplemented
        return get_batch([self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)


def take_rows(tensor: Tensor, where: np.ndarray) -> Tensor:
    """`tensor[where]` for row numbers `where` (int64); recorded only if the tensor requires gradients."""
    if tensor.requires_grad:
        return tensor[wrap(where)]
    # np.take copies rows several times faster than fancy indexing does.
    return wrap(np.take(tensor.numpy(), where, axis=0))
