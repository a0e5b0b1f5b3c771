"""How the samples of one batch are fetched from a dataset.

Owns: the choice between a dataset's batch access and sample by sample, and the note that says which
sample failed. Must not know: samplers, loaders, tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_SHOWN_INDICES = 8


def batch_getter(dataset: Any) -> Callable[[Sequence[int]], Any] | None:
    """The dataset's `get_batch`, if it has one that agrees with its `__getitem__`."""
    return _agreeing_method(dataset, "get_batch")


def fetch_batch(
    dataset: Any, indices: Sequence[int], collate: Callable[[list[Any]], Any], array_backed: bool
) -> Any:
    """The collated batch of the samples at `indices`.

    Args:
        dataset: a map-style dataset.
        indices: sample numbers.
        collate: makes the batch from the list of samples.
        array_backed: use the dataset's `get_batch` where it has one; right only when `collate` is
            `default_collate`, whose result `get_batch` gives.

    Raises:
        Exception: what the dataset raised, with a note that names the sample and the dataset.
    """
    get_batch = batch_getter(dataset) if array_backed else None
    if get_batch is not None:
        batch = _with_note(dataset, get_batch, indices)
        if batch is not NotImplemented:
            return batch
    return collate(samples_at(dataset, indices))


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
        error.add_note(f"raised by {type(dataset).__name__}.__getitem__ for sample {index!r}")
        raise


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
