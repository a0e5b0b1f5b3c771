"""Averages gradients over the ranks while backward still runs.

Owns: `Reducer`: buckets, their launch in index order, unused parameters, the wait at the end.
Must not know: modules, and which backend moves the bytes.

A bucket is a slice of the flat gradient buffer, so nothing is copied. After each parameter's
gradient is final, a hook counts its bucket down; buckets are launched strictly in index order, the
same on every rank, whatever became ready first. When the walk is over, what is missing is launched,
and everything is waited for: after `backward()` returns, `param.grad` is the mean over the ranks
that had data.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from dptrain.comm.communicator import Communicator, Work
from dptrain.core import engine
from dptrain.core.flat import FlatStorage, Place, place_of
from dptrain.core.tensor import Tensor
from dptrain.parallel.buckets import Bucket, plan_buckets
from dptrain.parallel.statistics import StepTimes


class _BucketState:
    """A bucket and how far it has come in the running pass."""

    def __init__(self, storage: FlatStorage, bucket: Bucket, is_last: bool, name: str) -> None:
        self.storage, self.bucket, self.name = storage, bucket, name
        # The used-flags stand behind the gradients and travel with the last bucket.
        stop = storage.grad_memory.size if is_last else bucket.stop
        self.array = storage.grad_memory[bucket.start : stop]
        self.waiting = 0
        self.work: Work | None = None

    @property
    def members(self) -> range:
        return range(self.bucket.first, self.bucket.last)


class Reducer:
    """Keeps the gradients of some flat storages equal over the ranks.

    Args:
        storages: flat storages whose parameters all require gradients.
        communicator: how to reach the other ranks.
        bucket_cap_mb: see `plan_buckets`.
        name: first part of the name of every collective.
    """

    def __init__(
        self,
        storages: Sequence[FlatStorage],
        communicator: Communicator,
        bucket_cap_mb: float | None,
        name: str,
    ) -> None:
        self.communicator = communicator
        self.enabled = True
        self.times = StepTimes()
        #: When the last synchronised backward pass was over (`time.perf_counter_ns`).
        self.last_step_ns = -1
        self._buckets: list[_BucketState] = []
        self._bucket_of: dict[int, _BucketState] = {}
        self._pass: object | None = None
        self._next = 0
        self._seen: set[int] = set()
        for storage in storages:
            storage.use_grad_memory(communicator.allocate, extra=len(storage.params))
            bounds = [(place.start, place.stop) for place in storage.places]
            plan = plan_buckets(bounds, storage.data.itemsize, bucket_cap_mb)
            for bucket in plan:
                state = _BucketState(
                    storage, bucket, bucket is plan[-1], f"{name} bucket {len(self._buckets)}"
                )
                self._buckets.append(state)
                for i in state.members:
                    p = storage.params[i]
                    self._bucket_of[id(p)] = state
                    p.register_post_accumulate_grad_hook(self._on_ready)

    # ---- during the walk ---------------------------------------------------------------------

    def _on_ready(self, p: Tensor) -> None:
        """A parameter's gradient is final (called by the engine during the walk)."""
        if not self.enabled:
            return
        if self._pass is not engine.current_pass():
            self._begin()
        place = _settled(p)
        if id(p) in self._seen:
            return
        self._seen.add(id(p))
        place.storage.extra[place.position] = 1
        bucket = self._bucket_of[id(p)]
        bucket.waiting -= 1
        if bucket.waiting == 0:
            self._launch_ready()

    def _begin(self) -> None:
        self._pass = engine.current_pass()
        self._next = 0
        self._seen.clear()
        for bucket in self._buckets:
            bucket.waiting = len(bucket.members)
            bucket.work = None
            bucket.storage.extra.fill(0)
        engine.queue_callback(self._finish)

    def _launch_ready(self) -> None:
        while self._next < len(self._buckets) and self._buckets[self._next].waiting == 0:
            self._launch(self._buckets[self._next])

    def _launch(self, bucket: _BucketState, async_op: bool = True) -> None:
        self._next += 1
        bucket.work = self.communicator.all_reduce(
            bucket.array, "avg", name=bucket.name, joinable=True, async_op=async_op
        )

    # ---- when the walk is over -----------------------------------------------------------------

    def _finish(self) -> None:
        """Launch what is missing, wait for everything, settle who used what."""
        waited_from = time.perf_counter_ns()
        while self._next < len(self._buckets):
            bucket = self._buckets[self._next]
            if bucket.waiting:
                self._fill_unused(bucket)
            # Nothing is left to overlap with: run it here and save the change of threads.
            self._launch(bucket, async_op=False)
        works = [b.work for b in self._buckets if b.work is not None]
        for work in works:
            work.wait()
        self.last_step_ns = time.perf_counter_ns()
        self.times.add(works, waited_from, self.last_step_ns)
        for storage in {id(b.storage): b.storage for b in self._buckets}.values():
            _publish(storage)
        self._pass = None

    def _fill_unused(self, bucket: _BucketState) -> None:
        """Parameters that this pass did not touch take part with zeros, or with what they hold."""
        storage = bucket.storage
        for i in bucket.members:
            p = storage.params[i]
            if id(p) in self._seen:
                continue
            if p._grad is None:
                storage.grad[storage.places[i].start : storage.places[i].stop] = 0
            else:
                _settled(p)
                storage.extra[i] = 1


def _publish(storage: FlatStorage) -> None:
    """A gradient exists on all ranks or on none: where any rank used the parameter."""
    if storage.extra.all():  # the usual case: everything was used everywhere
        for i, p in enumerate(storage.params):
            p._grad = storage.slot(i)
        return
    for i, p in enumerate(storage.params):
        p._grad = storage.slot(i) if storage.extra[i] > 0 else None


def _settled(p: Tensor) -> Place:
    """Where the parameter lies, with its gradient in its slot."""
    place = place_of(p)
    if place is None or (p._grad is not p._slot and not place.storage.settle(place.position)):
        raise RuntimeError(
            f"a parameter of shape {list(p.shape)} and dtype {p.dtype} changed its dtype or was rebound after "
            "DistributedDataParallel was made; convert the module first, then wrap it"
        )
    return place
