"""The DataLoader: passes over a dataset in batches, and its position for an exact resume.

Owns: the arguments, the passes and their position (epoch, samples consumed). Must not know: models,
how ranks talk to each other, what is done at the end of a pass (see `dptrain.data.events`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dptrain.core.random import Generator
from dptrain.data.collate import default_collate, default_convert
from dptrain.data.events import pass_ended
from dptrain.data.fetch import fetch_batch, sample_at
from dptrain.data.sampler import BatchSampler, RandomSampler, Sampler, SequentialSampler

#: Decided at construction; changing one later would not change what the samplers already hold.
_FIXED = frozenset({"batch_size", "batch_sampler", "sampler", "drop_last", "dataset"})


@dataclass
class Position:
    """Where a loader is: `samples_consumed` samples into the order of epoch `epoch`."""

    epoch: int = 0
    samples_consumed: int = 0


class DataLoader:
    """Iterates over a dataset in batches, in the order of a sampler, with PyTorch's arguments.

    This version loads in the calling process; arguments that only concern worker processes are
    refused rather than ignored.

    Every `iter(loader)` begins a pass, and the passes are numbered: a sampler with `set_epoch` (such as
    `DistributedSampler`) is moved on to the next epoch when the user did not call `set_epoch` since
    the last pass. The first pass is epoch 0.

    `state_dict()` is the position for an exact resume. With a `DistributedSampler` it is one cursor for
    all ranks: save it on rank 0, load it on every rank, of which there may be another number.

    Args:
        dataset: has `__getitem__` and, unless a sampler is given, `__len__`. Datasets with `get_batch`
            (`TensorDataset`, see `Dataset`) give whole batches at once if `collate_fn` is the default.
        batch_size: samples per batch; None gives single samples, converted but not collated.
        shuffle: a new random order every pass.
        sampler: an iterable of sample numbers; not together with `shuffle`.
        batch_sampler: an iterable of lists of sample numbers; not together with `batch_size`,
            `shuffle`, `sampler` and `drop_last`.
        num_workers: 0; worker processes are not available in this version.
        collate_fn: makes a batch from a list of samples; `default_collate` by default.
        pin_memory: has no effect without a GPU, of which a warning tells, as in PyTorch.
        drop_last: leave out a last batch that is shorter.
        timeout, worker_init_fn, multiprocessing_context, prefetch_factor, persistent_workers,
            pin_memory_device, in_order: concern worker processes; only the defaults are accepted.
        generator: where `shuffle=True` draws its seeds from.

    Attributes:
        data_time_s: seconds spent so far in choosing, fetching and collating samples.
        last_pass_length: number of batches of the last pass that came to its end.

    Raises:
        ValueError: arguments that exclude each other, a batch size that is no positive integer, or an
            argument that this version cannot honour.
        TypeError: the dataset has no `__getitem__`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[int] | Iterable[int] | None = None,
        batch_sampler: Sampler[list[int]] | Iterable[list[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        _check_workers(num_workers, timeout, prefetch_factor, persistent_workers)
        _refuse(
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context,
            pin_memory_device=pin_memory_device or None,
            in_order=None if in_order else False,
        )
        if not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"DataLoader needs a dataset with __getitem__(index), got {type(dataset).__name__}"
            )
        _check_exclusive(batch_size, shuffle, sampler, batch_sampler, drop_last)
        if pin_memory:
            warnings.warn(
                "'pin_memory' argument is set as true but no accelerator is found, then device "
                "pinned memory won't be used.",
                stacklevel=2,
            )
        if sampler is None:
            sampler = (
                RandomSampler(dataset, generator=generator)
                if shuffle
                else SequentialSampler(dataset)
            )
        if batch_sampler is not None:
            batch_size = None
        elif batch_size is not None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
            _warn_if_no_batch(batch_sampler)
        self.dataset = dataset
        self.batch_size = batch_size
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.timeout = timeout
        self.generator = generator
        self.collate_fn: Callable[[Any], Any]
        if collate_fn is not None:
            self.collate_fn = collate_fn
        else:
            self.collate_fn = default_convert if batch_sampler is None else default_collate
        self.data_time_s = 0.0
        self.last_pass_length: int | None = None
        self._position = Position()
        self._resume: Position | None = None
        self._epoch_seen: int | None = None
        self._constructed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and getattr(self, "_constructed", False):
            raise ValueError(
                f"{name} attribute should not be set after {type(self).__name__} is initialized; "
                "make a new one"
            )
        super().__setattr__(name, value)

    @property
    def _batches(self) -> Any:
        """What yields the lists of sample numbers, or single numbers where there are no batches."""
        return self.sampler if self.batch_sampler is None else self.batch_sampler

    @property
    def _order(self) -> Any:
        """What decides the order of the samples: the sampler under a BatchSampler, else as `_batches`."""
        batches = self._batches
        return batches.sampler if _only_cuts(batches) else batches

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank (also while a resumed one has fewer left)."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return _Pass(self)

    # ---- passes ----------------------------------------------------------------------------------

    def _begin_pass(self) -> tuple[Position, Iterator[Any]]:
        """Settle epoch and place at which the next pass begins, and what it yields from there on."""
        resume, self._resume = self._resume, None
        epoch = self._settle_epoch()
        order, batches = self._order, self._batches
        if hasattr(order, "samples_consumed"):  # deals out from that place on by itself
            start, skip = order.samples_consumed, 0
        else:
            start = skip = resume.samples_consumed if resume and resume.epoch == epoch else 0
        self._position = Position(epoch, start)
        if _only_cuts(batches):
            return self._position, batches.cut(islice(iter(order), skip, None))
        if self.batch_sampler is None:
            return self._position, islice(iter(order), skip, None)
        return self._position, _skip_batches(iter(batches), skip)

    def _settle_epoch(self) -> int:
        sampler = self._epoch_owner()
        if sampler is None:
            epoch = 0 if self._epoch_seen is None else self._epoch_seen + 1
        elif hasattr(sampler, "begin_pass"):
            epoch = sampler.begin_pass()
        else:
            # Not a sampler of ours: an unchanged epoch means that set_epoch was not called.
            if sampler.epoch == self._epoch_seen:
                sampler.set_epoch(sampler.epoch + 1)
            epoch = sampler.epoch
        self._epoch_seen = epoch
        return epoch

    def _epoch_owner(self) -> Any:
        """The sampler that is told the epoch, if there is one that can be asked for it too."""
        for sampler in (self._batches, getattr(self._batches, "sampler", None)):
            if hasattr(sampler, "set_epoch") and hasattr(sampler, "epoch"):
                return sampler
        return None

    def _place_after(self, place: int, taken: Any) -> int:
        """Samples consumed once the numbers in `taken` are, `place` having been before."""
        order, batches = self._order, self._batches
        if _only_cuts(batches):
            # The nominal size, so that a rank whose last batch is shorter counts as the others do.
            count = batches.batch_size
        else:
            count = 1 if self.batch_sampler is None else len(taken)
        if hasattr(order, "place_after"):
            return int(order.place_after(place, count))
        if _only_cuts(batches) and hasattr(order, "__len__"):
            return int(min(place + count, len(order)))
        return place + count

    def _fetch(self, taken: Any) -> Any:
        if self.batch_sampler is None:
            return self.collate_fn(sample_at(self.dataset, taken))
        array_backed = self.collate_fn is default_collate
        return fetch_batch(self.dataset, taken, self.collate_fn, array_backed)

    # ---- position --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position: after the batch handed out last, or at the next epoch once a pass is over.

        Returns:
            A dict that JSON can hold: `epoch`, `samples_consumed` (of the epoch's order; over all ranks
            with a `DistributedSampler`), `dataset_size`, and `sampler`, the sampler's own state.
        """
        order = self._order
        return {
            "epoch": self._position.epoch,
            "samples_consumed": self._position.samples_consumed,
            "dataset_size": len(self.dataset) if hasattr(self.dataset, "__len__") else None,
            "sampler": order.state_dict() if hasattr(order, "state_dict") else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next pass continue at a saved position.

        Raises:
            ValueError: the state is of a dataset of another size, or of another order.
            RuntimeError: the position is inside an epoch, and the sampler cannot repeat its order.
        """
        order = self._order
        size = len(self.dataset) if hasattr(self.dataset, "__len__") else None
        if state["dataset_size"] != size:
            raise ValueError(
                f"the saved position is of a dataset of {state['dataset_size']} samples, this one has "
                f"{size}; continue with the dataset that the run began with"
            )
        inside = state["samples_consumed"] > 0
        repeatable = hasattr(order, "state_dict") and hasattr(order, "load_state_dict")
        if inside and not (repeatable or isinstance(order, Sequence)):
            raise RuntimeError(
                f"cannot continue {state['samples_consumed']} samples into epoch {state['epoch']}: "
                f"{type(order).__name__} has no state_dict() and load_state_dict(), so it may not repeat "
                "its order; give it both, or save at the end of an epoch"
            )
        if repeatable and state["sampler"] is not None and (inside or hasattr(order, "set_epoch")):
            order.load_state_dict(state["sampler"])
        owner = self._epoch_owner()
        if owner is not None:
            owner.set_epoch(state["epoch"])
        if hasattr(order, "samples_consumed"):
            order.samples_consumed = state["samples_consumed"]
        # As seen from a sampler without epochs, the pass before the next one was of the epoch before.
        self._epoch_seen = state["epoch"] - 1
        self._resume = Position(state["epoch"], state["samples_consumed"])
        self._position = Position(state["epoch"], state["samples_consumed"])


class _Pass:
    """One pass over a loader."""

    def __init__(self, loader: DataLoader) -> None:
        started = time.perf_counter()
        self._loader = loader
        self._position, self._taken = loader._begin_pass()
        self._place = self._position.samples_consumed
        self._first_batch_time_ns: int | None = None
        self._batches = 0
        self._over = False
        loader.data_time_s += time.perf_counter() - started

    def __iter__(self) -> _Pass:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        started_ns = time.perf_counter_ns()
        if self._first_batch_time_ns is None:
            self._first_batch_time_ns = started_ns
        taken = next(self._taken, None)
        if taken is None:
            self._finish()
            raise StopIteration
        self._batches += 1
        self._place = self._loader._place_after(self._place, taken)
        batch = self._loader._fetch(taken)
        # Only now: a batch that could not be fetched was not consumed.
        self._position.samples_consumed = self._place
        self._loader.data_time_s += (time.perf_counter_ns() - started_ns) / 1e9
        return batch

    def _finish(self) -> None:
        self._over = True
        self._position.epoch += 1
        self._position.samples_consumed = 0
        self._loader.last_pass_length = self._batches
        assert self._first_batch_time_ns is not None
        pass_ended(self._loader, self._first_batch_time_ns)


def _only_cuts(batches: Any) -> bool:
    """Whether it is a BatchSampler whose lists are runs of its sampler's numbers."""
    return isinstance(batches, BatchSampler) and type(batches).__iter__ is BatchSampler.__iter__


def _skip_batches(batches: Iterator[Sequence[int]], skip: int) -> Iterator[Sequence[int]]:
    skipped = 0
    while skipped < skip:
        batch = next(batches, None)
        if batch is None:
            break
        skipped += len(batch)
    if skipped != skip:
        raise RuntimeError(
            f"cannot continue {skip} samples into the epoch: the batches of the batch sampler now end "
            f"at {skipped} samples; it does not repeat the order of the saved run"
        )
    return batches


def _check_workers(
    num_workers: int, timeout: float, prefetch_factor: int | None, persistent_workers: bool
) -> None:
    if num_workers < 0:
        raise ValueError(
            "num_workers option should be non-negative; use num_workers=0 to disable multiprocessing."
        )
    if num_workers > 0:
        raise ValueError("worker processes are not available in this version; use num_workers=0")
    if timeout < 0:
        raise ValueError("timeout option should be non-negative")
    if prefetch_factor is not None:
        raise ValueError(
            "prefetch_factor option could only be specified in multiprocessing, but num_workers=0; "
            "set prefetch_factor to None."
        )
    if persistent_workers:
        raise ValueError("persistent_workers option needs num_workers > 0")
    _refuse(timeout=timeout or None)


def _warn_if_no_batch(batches: BatchSampler) -> None:
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


def _refuse(**arguments: Any) -> None:
    """Refuse arguments that are set (not None) and that only worker processes would honour."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"DataLoader got {name}={value!r}, which only concerns worker processes; they are not "
                f"available in this version, leave {name} at its default"
            )


def _check_exclusive(
    batch_size: Any, shuffle: Any, sampler: Any, batch_sampler: Any, drop_last: bool
) -> None:
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
