"""Datasets: samples found by number, or streams of samples.

Owns: `Dataset`, `IterableDataset`, `TensorDataset`, `Subset`, `random_split`. Must not know: samplers, loaders, processes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from dptrain.core.random import Generator, default_generator
from dptrain.core.tensor import Tensor, wrap
from dptrain.data.fetch import batch_getter, samples_at
from dptrain.data.reuse import LEAST_BYTES, ReusedArrays

if TYPE_CHECKING:
    from dptrain.data.joined import ChainDataset, ConcatDataset

T = TypeVar("T")
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

    def __add__(self, other: Dataset[T_co]) -> ConcatDataset[T_co]:
        """This dataset, and then the other."""
        from dptrain.data.joined import ConcatDataset

        return ConcatDataset([self, other])


class IterableDataset(Dataset[T_co], Iterable[T_co]):
    """Base of the datasets that are streams: implement `__iter__()` (abstract), and `__len__()` where it is known.

    Every worker of a `DataLoader` iterates over its own copy; `shard` deals the samples out among them.
    """

    def __add__(self, other: Dataset[T_co]) -> ChainDataset:  # type: ignore[override]
        """This stream, and then the other."""
        from dptrain.data.joined import ChainDataset

        return ChainDataset([self, other])


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Samples are the slices of some tensors along their first dimension.

    Args:
        *tensors: tensors of shape `(samples, ...)`.

    Raises:
        ValueError: no tensors, or one without dimensions.
        AssertionError: their first dimensions differ (PyTorch's exception type).
    """

    tensors: tuple[Tensor, ...]
    _memory: ReusedArrays | None = None

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
        if self._memory is None:
            self._memory = ReusedArrays()
        return gather(self.tensors, indices, self._memory)


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

    def below(self, indices: Sequence[int]) -> tuple[Any, list[int]]:
        """The whole dataset, and the numbers there of the samples at `indices`."""
        return self.dataset, [self.indices[i] for i in indices]

    def __getitems__(self, indices: Sequence[int]) -> list[T_co]:
        """The samples at `indices`, through the whole dataset's own batch access where it has one."""
        return samples_at(*self.below(indices))

    def get_batch(self, indices: Sequence[int]) -> Any:
        """The collated samples at `indices`, or NotImplemented when the whole dataset is not array-backed."""
        get_batch = batch_getter(self.dataset)
        if get_batch is None:
            return NotImplemented
        return get_batch([self.indices[i] for i in indices])

    def __len__(self) -> int:
        return len(self.indices)


def random_split(
    dataset: Dataset[T],
    lengths: Sequence[int | float],
    generator: Generator | None = None,
) -> list[Subset[T]]:
    """Deal the samples of a dataset out to subsets, at random and each once.

    Args:
        dataset: the dataset.
        lengths: sizes of the subsets; or fractions that sum to 1, of which each is rounded down and what
            is left goes to the subsets one by one from the first on.
        generator: what the order is drawn from; by default the generator that `dptrain.manual_seed` seeds.

    Raises:
        ValueError: the lengths do not sum to the dataset's (or to 1), or a fraction is not in [0, 1].
    """
    size = len(dataset)  # type: ignore[arg-type]
    if math.isclose(sum(lengths), 1) and sum(lengths) <= 1:
        sizes = _sizes_of_fractions(size, lengths)
    else:
        sizes = [int(length) for length in lengths]
    if sum(lengths) != size and sum(sizes) != size:
        raise ValueError(
            f"Sum of input lengths does not equal the length of the input dataset! They are {list(lengths)}, "
            f"the dataset has {size} samples"
        )
    stream = (default_generator() if generator is None else generator).stream()
    order = stream.permutation(size).tolist()
    ends = list(accumulate(sizes))
    return [
        Subset(dataset, order[end - count : end]) for end, count in zip(ends, sizes, strict=True)
    ]


def _sizes_of_fractions(size: int, fractions: Sequence[float]) -> list[int]:
    for i, fraction in enumerate(fractions):
        if not 0 <= fraction <= 1:
            raise ValueError(f"Fraction at index {i} is not between 0 and 1: {fraction}")
    sizes = [math.floor(size * fraction) for fraction in fractions]
    for i in range(size - sum(sizes)):
        sizes[i % len(sizes)] += 1
    for i, count in enumerate(sizes):
        if count == 0:
            warnings.warn(
                f"Length of split at index {i} is 0. This might result in an empty dataset.",
                stacklevel=3,
            )
    return sizes


def gather(
    tensors: Sequence[Tensor], indices: Sequence[int], memory: ReusedArrays | None = None
) -> list[Tensor]:
    """`[tensor[indices] for tensor in tensors]`; recorded only of tensors that require gradients.

    Args:
        tensors: one or more, equally long.
        indices: row numbers.
        memory: where large results go.
    """
    where = np.asarray(indices, dtype=np.int64)
    # As unsigned numbers the negative ones are large.
    if not where.size or where.view(np.uint64).max() >= len(tensors[0]):
        return [tensor[wrap(where)] for tensor in tensors]
    return [_take_rows(tensor, where, memory) for tensor in tensors]


def _take_rows(tensor: Tensor, where: np.ndarray, memory: ReusedArrays | None) -> Tensor:
    """`tensor[where]` for row numbers that are neither negative nor out of range."""
    array = tensor._array
    if tensor.requires_grad or type(array) is not np.ndarray:
        return tensor[wrap(where)]
    # This copies rows several times faster than fancy indexing, but only where it need not look at the
    # numbers first: "clip" would take a negative one for 0.
    rows = None
    if memory is not None and where.size * array.strides[0] >= LEAST_BYTES:
        rows = memory.empty((where.size, *array.shape[1:]), array.dtype)
    return wrap(array.take(where, 0, rows, "clip"))
