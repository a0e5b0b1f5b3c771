"""Where the buckets of a reducer lie in flat storage, and how far each has come in a backward pass.

Owns: `Section` (the part of a storage whose gradients are averaged), `BucketState`. Must not know:
communicators' calls, when a bucket is launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator, Work
from dptrain.core.arrays import to_host
from dptrain.core.flat import FlatStorage, aligned_empty, placed
from dptrain.core.kernels import prepare_sums
from dptrain.core.tensor import Tensor
from dptrain.parallel.buckets import consecutive, plan_buckets
from dptrain.parallel.grad_bucket import GradBucket
from dptrain.parallel.statistics import BucketTimes


class Section:
    """The parameters of one storage that a reducer averages, and a flag for each: used, or not.

    A storage may hold others' parameters too (an optimizer made it for several modules). Where it
    does not, the flags stand behind the gradients in the storage's memory and travel with the last
    bucket; else they need a message of their own.

    Args:
        storage: the storage.
        params: those of its parameters that are averaged.
        communicator: gives the memory of the gradients.
    """

    def __init__(
        self, storage: FlatStorage, params: Sequence[Tensor], communicator: Communicator
    ) -> None:
        self.storage = storage
        self.positions = sorted(placed(p).position for p in params)
        self.whole = len(self.positions) == len(storage.params)
        self._away = type(storage.data) is not np.ndarray
        if storage.extra.size != len(storage.params):
            allocate = self._beside if self._away else communicator.allocate
            storage.use_grad_memory(allocate, extra=len(storage.params))
        if communicator.world_size == 2 and not self._away:
            prepare_sums()
        own = self._away or not self.whole
        self._own = np.zeros(len(storage.params) if own else 0, storage.data.dtype)

    def _beside(self, nbytes: int) -> Any:
        return aligned_empty(nbytes, self.storage.xp)

    @property
    def used(self) -> np.ndarray:
        """By position in the storage: not 0 where this rank used the parameter. On the host."""
        return self._own if self._away or not self.whole else self.storage.extra

    @property
    def flags(self) -> Any:
        """What the ranks tell each other of `used`."""
        return self.storage.extra if self.whole else self._own

    def tell(self) -> None:
        """Put `used` where it travels with the gradients, if that is on a device."""
        if self._away and self.whole:
            if self._used_all():  # the usual case, which a CUDA graph can record
                self.storage.extra.fill(1)
            else:
                self.storage.extra[...] = self.storage.xp.asarray(self._own)

    def told(self) -> np.ndarray:
        """By position: not 0 where some rank used the parameter, as the ranks have told each other.

        What this rank used itself it knows; a device is only asked, and waited for, where that is not all.
        """
        if not self._away or not self.whole:
            return np.asarray(self.flags)
        return self._own if self._used_all() else to_host(self.storage.extra)

    def _used_all(self) -> bool:
        return bool(self._own[self.positions].all())

    def params(self) -> list[Tensor]:
        """The parameters, in the order of the storage."""
        return [self.storage.params[i] for i in self.positions]

    def buckets(
        self,
        bucket_cap_mb: float | Sequence[float] | None,
        end_cap_mb: float,
        name: str,
        first: int,
    ) -> list[BucketState]:
        """Cut the section into buckets, numbered from `first`; for the sizes see `plan_buckets`."""
        made: list[BucketState] = []
        for run in consecutive(self.positions):
            bounds = [(self.storage.places[i].start, self.storage.places[i].stop) for i in run]
            itemsize = self.storage.data.itemsize
            for bucket in plan_buckets(bounds, itemsize, bucket_cap_mb, end_cap_mb):
                index = first + len(made)
                made.append(BucketState(self, run[bucket.first : bucket.last], index, name))
        return made


class BucketState:
    """A bucket and how far it has come in the running pass."""

    def __init__(self, section: Section, members: Sequence[int], index: int, name: str) -> None:
        self.section, self.members, self.index = section, list(members), index
        self.name = f"{name} bucket {index}"
        places = section.storage.places
        self.start, self.stop = places[members[0]].start, places[members[-1]].stop
        self.carries_flags = section.whole and members[-1] == section.positions[-1]
        self.begin()

    def begin(self) -> None:
        """Forget the last pass."""
        params = self.section.storage.params
        #: Parameters whose gradient is still to come; frozen ones never get one.
        self.waiting = [params[i]._requires_grad for i in self.members].count(True)
        self.arrived = 0
        self.ready_ns = self.launched_ns = 0
        self.work: Work | None = None
        self.future: Any = None
        self.seen: GradBucket | None = None  # what a hook was given
        self.arrived_ns = 0

    # The memory of the gradients may be replaced by another reducer, so it is looked up each time.

    @property
    def gradients(self) -> np.ndarray:
        """The bucket's gradients."""
        return self.section.storage.grad_memory[self.start : self.stop]

    @property
    def used(self) -> np.ndarray:
        """Of the bucket's parameters, in their order: not 0 where this rank used one. On the host."""
        return self.section.used[self.members[0] : self.members[-1] + 1]

    @property
    def message(self) -> np.ndarray:
        """The gradients, and with the last bucket of a section the flags."""
        memory = self.section.storage.grad_memory
        return memory[self.start :] if self.carries_flags else memory[self.start : self.stop]

    def as_grad_bucket(self, last: bool) -> GradBucket:
        """What a communication hook sees."""
        storage = self.section.storage
        params = [storage.params[i] for i in self.members]
        places = [storage.places[i] for i in self.members]
        return GradBucket(self.index, last, self.gradients, params, places, self.start)

    def times(self) -> BucketTimes:
        """When things happened in the pass that is over."""
        work = self.work
        if work is None:  # a hook made the calls
            begun = self.launched_ns
            return BucketTimes(
                self.index,
                self.gradients.nbytes,
                self.ready_ns,
                begun,
                begun,
                begun,
                self.arrived_ns,
            )
        return BucketTimes(
            self.index,
            self.gradients.nbytes,
            self.ready_ns,
            self.launched_ns,
            work.started_ns,
            work.met_ns,
            work.finished_ns,
        )
