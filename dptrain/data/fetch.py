"""How the samples of one batch are fetched from a dataset.

Owns: the choice between a dataset's batch access and sample by sample, and the note that says which
sample failed. Must not know: samplers, loaders, tensors, in which process it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dptrain.data.seeding import SampleGenerator

_SHOWN_INDICES = 8

#: Whose draws a batch's are: base seed, epoch, place of its first sample, shard; and how far the places of
#: its samples are apart.
Keys = tuple[int, int, int, int, int]


class Exhausted(Exception):
    """An iterable dataset has no further batch."""


@dataclass(frozen=True)
class Fetcher:
    """How batches are made of a dataset; can be pickled.

    Args:
        dataset: map-style or iterable.
        collate_fn: makes the batch from the list of samples, or, without batches, of a sample.
        batched: whether tasks are lists of sample numbers or single ones.
        array_backed: use the dataset's `get_batch` where it has one; right only when `collate_fn` is
            `default_collate`, whose result `get_batch` gives.
        iterable: the dataset is iterated over; the numbers only say how many samples are asked for.
        drop_last: of an iterable dataset, leave out a last batch that is shorter.
    """

    dataset: Any
    collate_fn: Callable[[Any], Any]
    batched: bool
    array_backed: bool
    iterable: bool
    drop_last: bool

    def begin(self) -> MapFetching | IterableFetching:
        """Begin a pass."""
        return IterableFetching(self) if self.iterable else MapFetching(self)


class MapFetching:
    """A pass over a map-style dataset."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._collate, self._batched = fetcher.collate_fn, fetcher.batched
        self._dataset = dataset = fetcher.dataset
        self._get_batch = batch_getter(dataset) if fetcher.array_backed else None

    def fetch(self, taken: Any, keys: Keys, generator: SampleGenerator) -> Any:
        """The batch of the samples `taken`, or the one sample.

        Raises:
            Exception: what the dataset raised, with a note that names the sample and the dataset.
        """
        base_seed, epoch, place, shard, _ = keys
        generator.at(base_seed, epoch, place, shard)
        if not self._batched:
            return self._collate(sample_at(self._dataset, taken))
        if self._get_batch is not None:
            batch = _with_note(self._dataset, self._get_batch, taken)
            if batch is not NotImplemented:
                return batch
        dataset, indices = self._dataset, taken
        while hasattr(type(dataset), "below") and "below" in vars(type(dataset)):
            dataset, indices = dataset.below(indices)
        if _agreeing_method(dataset, "__getitems__") is not None:
            samples = samples_at(dataset, indices)
        else:
            samples = _keyed_samples(dataset, indices, keys, generator)
        generator.at(base_seed, epoch, place, shard, of_batch=True)
        return self._collate(samples)


def _keyed_samples(
    dataset: Any, indices: Sequence[int], keys: Keys, generator: SampleGenerator
) -> list[Any]:
    base_seed, epoch, place, shard, step = keys
    at, get, samples = generator.at, dataset.__getitem__, []
    index = None
    try:
        for index in indices:
            at(base_seed, epoch, place, shard)
            samples.append(get(index))
            place += step
    except Exception as error:
        _note_sample(error, dataset, index)
        raise
    return samples


class IterableFetching:
    """A pass over an iterable dataset."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._collate, self._batched = fetcher.collate_fn, fetcher.batched
        self._drop_last = fetcher.drop_last
        self._samples = iter(fetcher.dataset)
        self._over = False

    def fetch(self, taken: Any, keys: Keys, generator: SampleGenerator) -> Any:
        """The batch of the next `len(taken)` samples, or the next sample.

        Raises:
            Exhausted: there are no more.
        """
        if self._over:
            raise Exhausted
        base_seed, epoch, place, shard, _ = keys
        count = len(taken) if self._batched else 1
        samples = []
        for i in range(count):
            generator.at(base_seed, epoch, place + i, shard)
            try:
                samples.append(next(self._samples))
            except StopIteration:
                self._over = True
                break
        if not samples or (self._drop_last and len(samples) < count):
            self._over = True
            raise Exhausted
        generator.at(base_seed, epoch, place, shard, of_batch=True)
        return self._collate(samples if self._batched else samples[0])


def batch_getter(dataset: Any) -> Callable[[Sequence[int]], Any] | None:
    """The dataset's `get_batch`, if it has one that agrees with its `__getitem__`."""
    return _agreeing_method(dataset, "get_batch")


def samples_at(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """The samples at `indices`, by `__getitems__` where the dataset has one, else one by one.

    Raises:
        Exception: what the dataset raised, with a note that names the sample and the dataset.
    """
    get_items = _agreeing_method(dataset, "__getitems__")
    if get_items is not None:
        return _with_note(dataset, get_items, indices)
    return [sample_at(dataset, index) for index in indices]


def sample_at(dataset: Any, index: Any) -> Any:
    """`dataset[index]`; what it raises carries a note that names the sample."""
    try:
        return dataset[index]
    except Exception as error:
        _note_sample(error, dataset, index)
        raise


def _note_sample(error: Exception, dataset: Any, index: Any) -> None:
    error.add_note(f"raised by {type(dataset).__name__}.__getitem__ for sample {index!r}")


def _with_note(dataset: Any, get: Callable[[Sequence[int]], Any], indices: Sequence[int]) -> Any:
    """`get(indices)`; what it raises carries a note that names the samples."""
    try:
        return get(indices)
    except Exception as error:
        shown = ", ".join(map(str, indices[:_SHOWN_INDICES]))
        more = f", ... ({len(indices)} in all)" if len(indices) > _SHOWN_INDICES else ""
        error.add_note(f"raised by {type(dataset).__name__} for the samples [{shown}{more}]")
        raise


def _agreeing_method(dataset: Any, name: str) -> Callable[[Sequence[int]], Any] | None:
    """The batch method `name`, unless a subclass overrode `__getitem__` below it.

    A subclass that changes its samples (an augmentation, say) but not the inherited batch method
    would otherwise silently get batches of the unchanged samples.
    """
    method = getattr(dataset, name, None)
    if not callable(method):
        return None
    for cls in type(dataset).__mro__:
        if name in vars(cls):
            return method
        if "__getitem__" in vars(cls):
            return None
    return method  # an attribute of the instance
