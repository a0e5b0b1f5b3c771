"""Which arguments of a DataLoader fit together.

Owns: the checks of PyTorch's arguments. Must not know: what the arguments do.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Sized
from multiprocessing.context import BaseContext
from typing import Any

from dptrain.data.sampler import BatchSampler


def check_workers(
    num_workers: int, timeout: float, prefetch_factor: int | None, persistent_workers: bool
) -> None:
    """Refuse what concerns workers where it contradicts itself; warn of more workers than cores."""
    if not isinstance(num_workers, int):
        raise TypeError(f"num_workers should be an int, but got {num_workers!r}")
    if num_workers < 0:
        raise ValueError(
            "num_workers option should be non-negative; use num_workers=0 to disable multiprocessing."
        )
    if timeout < 0:
        raise ValueError("timeout option should be non-negative")
    if num_workers == 0 and prefetch_factor is not None:
        raise ValueError(
            "prefetch_factor option could only be specified in multiprocessing, but num_workers=0; "
            "set prefetch_factor to None."
        )
    if prefetch_factor is not None and prefetch_factor < 0:
        raise ValueError("prefetch_factor option should be non-negative")
    if persistent_workers and num_workers == 0:
        raise ValueError("persistent_workers option needs num_workers > 0")
    cores = len(os.sched_getaffinity(0)) if num_workers else 0
    if num_workers > cores:
        warnings.warn(
            f"This DataLoader will create {num_workers} worker processes, but this process may use "
            f"{cores} cores; so many workers may make loading slower",
            stacklevel=3,
        )


def context_of(context: Any, num_workers: int) -> Any:
    """The multiprocessing context that `multiprocessing_context` names."""
    if context is None:
        return None
    if num_workers == 0:
        raise ValueError(
            "multiprocessing_context can only be used with multi-process loading (num_workers > 0), "
            f"but got num_workers={num_workers}"
        )
    if isinstance(context, str):
        valid = multiprocessing.get_all_start_methods()
        if context not in valid:
            raise ValueError(
                "multiprocessing_context option should specify a valid start method in "
                f"{valid!r}, but got multiprocessing_context={context!r}"
            )
        return multiprocessing.get_context(context)
    if not isinstance(context, BaseContext):
        raise TypeError(
            "multiprocessing_context option should be a valid context object or a string specifying "
            f"the start method, but got multiprocessing_context={context}"
        )
    return context


def check_iterable(shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
    """An iterable dataset decides its order itself."""
    for name, value in (
        ("shuffle", shuffle or None),
        ("sampler", sampler),
        ("batch_sampler", batch_sampler),
    ):
        if value is not None:
            raise ValueError(
                f"DataLoader with IterableDataset: expected unspecified {name} option, but got "
                f"{name}={value}"
            )


def check_order(
    batch_size: Any, shuffle: Any, sampler: Any, batch_sampler: Any, drop_last: bool
) -> None:
    """One argument decides the order, and one how it is cut into batches."""
    if sampler is not None and shuffle:
        raise ValueError("sampler option is mutually exclusive with shuffle")
    if batch_sampler is not None:
        if batch_size != 1 or shuffle or sampler is not None or drop_last:
            raise ValueError(
                "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and drop_last"
            )
    elif batch_size is None and drop_last:
        raise ValueError(
            "batch_size=None option disables auto-batching and is mutually exclusive with drop_last"
        )


def warn_if_no_batch(batches: BatchSampler) -> None:
    """A loop without a single step looks like a training that went well."""
    if not (batches.drop_last and isinstance(batches.sampler, Sized)):
        return
    count = len(batches.sampler)
    if 0 < count < batches.batch_size:
        warnings.warn(
            f"batch_size={batches.batch_size} with drop_last=True leaves no batch at all: the sampler "
            f"yields {count} samples; choose a smaller batch_size or drop_last=False",
            stacklevel=3,
        )
