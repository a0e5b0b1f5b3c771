"""The DataLoader: passes over a dataset in batches, and its position for an exact resume.

Owns: the arguments, the passes and their position (epoch, samples consumed). Must not know: models,
how ranks talk to each other, what is done at the end of a pass (see `dptrain.data.events`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic

from dptrain.core.cuda import device_count
from dptrain.core.random import Generator, default_generator
from dptrain.data.collate import default_collate, default_convert
from dptrain.data.dataset import IterableDataset, T_co
from dptrain.data.fetch import Fetcher
from dptrain.data.loader_arguments import (
    check_iterable,
    check_order,
    check_workers,
    context_of,
    warn_if_no_batch,
)
from dptrain.data.passes import InProcessPass, WorkerPass
from dptrain.data.ranks import known_ranks
from dptrain.data.sampler import (
    BatchSampler,
    EndlessSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

if TYPE_CHECKING:
    from dptrain.data.crew import Crew

#: Decided at construction; changing one later would not change what the samplers already hold.
_FIXED = frozenset(
    {"batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"}
)


@dataclass
class Position:
    """Where a loader is: `samples_consumed` samples into the order of epoch `epoch`.

    `base_seed` is what the pass's random draws come from; None between passes.
    """

    epoch: int = 0
    samples_consumed: int = 0
    base_seed: int | None = None


class DataLoader(Generic[T_co]):
    """Iterates over a dataset in batches, in the order of a sampler, with PyTorch's arguments.

    With `num_workers`, worker processes fetch the batches ahead of time. They are forked from a small
    server process, never from this one, which may have MPI, a GPU and compute threads: what the dataset
    and `collate_fn` need travels to them by pickle, classes and functions of the script included, the
    script itself is not run again, and memory that only a fork would inherit is not there. Large arrays of
    the dataset are in memory that all workers share. Batches come back through shared memory.

    Random draws of a sample from dptrain's generator depend on the base seed of the pass (drawn from the
    generator as the pass begins, also where nothing is random), the epoch and the sample's place in the
    order alone: they are the same for any number of workers, with a `DistributedSampler` for any number
    of ranks, and after a resume. In workers, `random` and NumPy's global
    state are seeded for every batch, or once per worker if there is a `worker_init_fn`, which may
    then seed them itself; without workers they are left alone.

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
        num_workers: worker processes; 0 fetches in this process, when a batch is asked for.
        collate_fn: makes a batch from a list of samples; `default_collate` by default.
        pin_memory: hand out batches in page-locked memory, from where `.to(device, non_blocking=True)` returns at
            once; with workers, a thread pins the next batch while one is used. Objects with a method
            `pin_memory` are asked for it. Without a GPU it has no effect, of which a warning tells, as in PyTorch.
            `PrefetchLoader` brings batches to a GPU ahead of time.
        drop_last: leave out a last batch that is shorter.
        timeout: seconds to wait for a batch of a worker; 0 waits for ever.
        worker_init_fn: called with the worker's number in every worker that begins.
        multiprocessing_context: has no effect: workers always start the one way that is safe.
        generator: where `shuffle=True` and the base seed of a pass draw from.
        prefetch_factor: batches that each worker is asked for ahead of time; by default 2.
        persistent_workers: keep the workers from one pass to the next.
        pin_memory_device: deprecated, of no effect: memory is pinned for the current GPU.
        in_order: hand out the batches in the sampler's order, else as they are ready; a resume then
            repeats batches that were handed out before their turn.

    Attributes:
        data_time_s: seconds spent so far in choosing, fetching and collating samples.
        last_pass_length: number of batches of the last pass that came to its end.

    Raises:
        ValueError: arguments that exclude each other, or a batch size that is no positive integer.
        TypeError: the dataset has no `__getitem__` and is no `IterableDataset`.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
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
        check_workers(num_workers, timeout, prefetch_factor, persistent_workers)
        self._iterable = isinstance(dataset, IterableDataset)
        if self._iterable:
            check_iterable(shuffle, sampler, batch_sampler)
        elif not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"DataLoader needs a dataset with __getitem__(index), got {type(dataset).__name__}"
            )
        check_order(batch_size, shuffle, sampler, batch_sampler, drop_last)
        if self._iterable:
            sampler = EndlessSampler()
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
            warn_if_no_batch(batch_sampler)
        self.dataset = dataset
        self.batch_size = batch_size
        self.sampler = sampler
        self.batch_sampler = batch_sampler
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.pin_memory_device = pin_memory_device
        self.timeout = timeout
        self.worker_init_fn = worker_init_fn
        self.prefetch_factor = 2 if num_workers and prefetch_factor is None else prefetch_factor
        self.persistent_workers = persistent_workers
        self.in_order = in_order
        self.multiprocessing_context = multiprocessing_context
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
        self._reported_length: int | None = None
        self._resting_crew: Crew | None = None
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

    @property
    def multiprocessing_context(self) -> Any:
        """The context that was asked for; workers always start in the same way."""
        return self._multiprocessing_context

    @multiprocessing_context.setter
    def multiprocessing_context(self, context: Any) -> None:
        self._multiprocessing_context = context_of(context, self.num_workers)

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank (also while a resumed one has fewer left).

        Of an iterable dataset: as many as its own length says.
        """
        if not self._iterable:
            return len(self._batches)
        count = len(self.dataset)
        if self.batch_size is not None:
            count = count // self.batch_size if self.drop_last else -(-count // self.batch_size)
        self._reported_length = count
        return count

    def __iter__(self) -> Iterator[Any]:
        if self.pin_memory and self.pin_memory_device:
            warnings.warn(
                "pin_memory_device is deprecated, the current accelerator will be used as the device,"
                f"ignore pin_memory_device='{self.pin_memory_device}'.",
                stacklevel=2,
            )
        if self.pin_memory and not device_count():
            warnings.warn(
                "'pin_memory' argument is set as true but no accelerator is found, then device "
                "pinned memory won't be used.",
                stacklevel=2,
            )
        fetcher = Fetcher(
            self.dataset,
            self.collate_fn,
            batched=self.batch_sampler is not None,
            array_backed=self.collate_fn is default_collate,
            iterable=self._iterable,
            drop_last=self.drop_last,
        )
        return (WorkerPass if self.num_workers else InProcessPass)(self, fetcher)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resting_crew": None}

    def _check_length(self, batches: int) -> None:
        """Warn if an iterable dataset has given more batches than `len(loader)` said."""
        if self._reported_length is not None and batches > self._reported_length:
            warnings.warn(
                f"the length of {type(self.dataset).__name__} was reported to be {self._reported_length} "
                f"batches (by len(loader)), but {batches} have been fetched. With workers, every one "
                "iterates over its own copy of the dataset: see dptrain.utils.data.shard",
                stacklevel=3,
            )
            self._reported_length = None

    # ---- passes ----------------------------------------------------------------------------------

    def _begin_pass(self) -> tuple[Position, Iterator[Any]]:
        """Settle epoch and place at which the next pass begins, and what it yields from there on."""
        resume, self._resume = self._resume, None
        epoch = self._settle_epoch()
        if resume and resume.epoch != epoch:
            resume = None
        order, batches = self._order, self._batches
        if hasattr(order, "samples_consumed"):  # deals out from that place on by itself
            start, skip = order.samples_consumed, 0
        else:
            start = skip = resume.samples_consumed if resume else 0
        seed = resume.base_seed if resume else None
        self._position = Position(epoch, start, self._draw_seed() if seed is None else seed)
        if _only_cuts(batches):
            return self._position, batches.cut(islice(iter(order), skip, None))
        if self.batch_sampler is None:
            return self._position, islice(iter(order), skip, None)
        return self._position, _skip_batches(iter(batches), skip)

    def _draw_seed(self) -> int:
        generator = default_generator() if self.generator is None else self.generator
        return int(generator.stream().integers(2**63))

    def _dealt(self) -> tuple[int, int, int]:
        """Whose places this rank takes: offset and distance in the one order of all ranks, and shard.

        The shard tells ranks apart that share no order.
        """
        order = self._order
        if hasattr(order, "place_after"):
            return order.rank, order.num_replicas, 0
        ranks = known_ranks()
        return 0, 1, ranks[0] if ranks else 0

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

    def _place_counter(self) -> Callable[[int, Any], int]:
        """A function of a place and of what is taken there; it gives the place after that."""
        order, batches = self._order, self._batches
        # The nominal size, so that a rank whose last batch is shorter counts as the others do.
        nominal: int = batches.batch_size if _only_cuts(batches) else 0
        if self.batch_sampler is None:
            nominal = 1
        if hasattr(order, "place_after"):
            return lambda place, taken: int(order.place_after(place, nominal or len(taken)))
        if _only_cuts(batches) and hasattr(order, "__len__"):
            end = len(order)
            return lambda place, taken: min(place + nominal, end)
        return lambda place, taken: place + (nominal or len(taken))

    # ---- position --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The position: after the batch handed out last, or at the next epoch once a pass is over.

        Returns:
            A dict that JSON can hold: `epoch`, `samples_consumed` (of the epoch's order; over all ranks
            with a `DistributedSampler`), `base_seed`, `dataset_size`, and `sampler`, the sampler's own state.
        """
        order = self._order
        return {
            "epoch": self._position.epoch,
            "samples_consumed": self._position.samples_consumed,
            "base_seed": self._position.base_seed,
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
        if inside and self._iterable:
            raise RuntimeError(
                f"cannot continue {state['samples_consumed']} samples into epoch {state['epoch']}: "
                "an IterableDataset only begins anew; save at the end of an epoch"
            )
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
        place = state["epoch"], state["samples_consumed"], state.get("base_seed")
        self._resume, self._position = Position(*place), Position(*place)


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
