"""Datasets made of several others: one after the other, or side by side.

Owns: `ConcatDataset`, `ChainDataset`, `StackDataset`. Must not know: samplers, loaders, processes.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from dptrain.data.dataset import Dataset, IterableDataset, T_co
from dptrain.data.fetch import samples_at


class ConcatDataset(Dataset[T_co]):
    """The samples of several map-style datasets, one dataset after the other.

    Args:
        datasets: one or more.

    Attributes:
        datasets: the list of them.
        cumulative_sizes: for each, how many samples there are up to its end.

    Raises:
        AssertionError: there are none, or one is an IterableDataset (PyTorch's exception type).
    """

    datasets: list[Dataset[T_co]]
    cumulative_sizes: list[int]

    @staticmethod
    def cumsum(sequence: Iterable[Any]) -> list[int]:
        """The sums of the lengths up to each."""
        return list(accumulate(map(len, sequence)))

    def __init__(self, datasets: Iterable[Dataset[T_co]]) -> None:
        super().__init__()
        self.datasets = list(datasets)
        if not self.datasets:
            raise AssertionError("datasets should not be an empty iterable")
        if any(isinstance(dataset, IterableDataset) for dataset in self.datasets):
            raise AssertionError("ConcatDataset does not support IterableDataset")
        self.cumulative_sizes = self.cumsum(self.datasets)

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, idx: int) -> T_co:
        if idx < 0:
            if -idx > len(self):
                raise ValueError(
                    f"absolute value of index should not exceed dataset length: {idx}, {len(self)}"
                )
            idx += len(self)
        which = bisect_right(self.cumulative_sizes, idx)
        if which == len(self.datasets):
            raise IndexError(f"there is no sample {idx} among {len(self)}")
        return self.datasets[which][idx - (self.cumulative_sizes[which - 1] if which else 0)]

    @property
    def cummulative_sizes(self) -> list[int]:
        """PyTorch's older spelling."""
        warnings.warn(
            "`cummulative_sizes` attribute is renamed to `cumulative_sizes`",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.cumulative_sizes


class ChainDataset(IterableDataset[Any]):
    """The samples of several streams, one stream after the other.

    Args:
        datasets: the streams; only taken when their turn comes.

    Raises:
        AssertionError: on the way, one is no IterableDataset (PyTorch's exception type).
    """

    def __init__(self, datasets: Iterable[Dataset[Any]]) -> None:
        super().__init__()
        self.datasets = datasets

    def _streams(self) -> Iterator[IterableDataset[Any]]:
        for dataset in self.datasets:
            if not isinstance(dataset, IterableDataset):
                raise AssertionError(
                    f"ChainDataset only supports IterableDataset, got {type(dataset).__name__}"
                )
            yield dataset

    def __iter__(self) -> Iterator[Any]:
        for dataset in self._streams():
            yield from dataset

    def __len__(self) -> int:
        streams: Iterator[Any] = self._streams()
        return sum(len(stream) for stream in streams)


class StackDataset(Dataset[Any]):
    """Sample i holds sample i of each of several datasets.

    Args:
        *args: the datasets, whose samples become a tuple; or
        **kwargs: the datasets by name, whose samples become a dict.

    Raises:
        ValueError: there are none or both, or their lengths differ.
    """

    datasets: tuple[Any, ...] | dict[str, Any]

    def __init__(self, *args: Dataset[Any], **kwargs: Dataset[Any]) -> None:
        if args and kwargs:
            raise ValueError(
                "StackDataset takes datasets by position (samples are tuples) or by name (dicts), not both"
            )
        if not args and not kwargs:
            raise ValueError("At least one dataset should be passed")
        self.datasets = args or kwargs
        self._length = len(self._all()[0])
        if any(len(dataset) != self._length for dataset in self._all()):
            raise ValueError(
                f"Size mismatch between datasets: {[len(dataset) for dataset in self._all()]}"
            )

    def _all(self) -> list[Any]:
        datasets = self.datasets
        return list(datasets.values() if isinstance(datasets, dict) else datasets)

    def _sample(self, part: Callable[[Any], Any]) -> Any:
        if isinstance(self.datasets, dict):
            return {name: part(dataset) for name, dataset in self.datasets.items()}
        return tuple(part(dataset) for dataset in self.datasets)

    def __getitem__(self, index: Any) -> Any:
        return self._sample(lambda dataset: dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples at `indices`, through the datasets' own batch access where they have one."""
        columns = [_column(dataset, indices) for dataset in self._all()]
        rows = zip(*columns, strict=True)
        if isinstance(self.datasets, dict):
            return [dict(zip(self.datasets, row, strict=True)) for row in rows]
        return list(rows)

    def __len__(self) -> int:
        return self._length


def _column(dataset: Any, indices: Sequence[int]) -> list[Any]:
    samples = samples_at(dataset, indices)
    if len(samples) != len(indices):
        raise ValueError(
            f"Nested dataset's output size mismatch. Expected {len(indices)}, got {len(samples)}"
        )
    return samples
