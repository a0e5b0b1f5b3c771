"""Averages gradients over the ranks while backward still runs.

Owns: `Reducer`: the launch of buckets in index order, unused parameters, the wait at the end, the
division. Must not know: modules, and which backend moves the bytes.

A bucket is a slice of the flat gradient buffer, so nothing is copied. After each parameter's
gradient is final, a hook counts its bucket down; buckets are launched strictly in index order, the
same on every rank, whatever became ready first. When the walk is over, what is missing is launched,
and everything is waited for: after `backward()` returns, `param.grad` is the mean over the ranks
that had data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from dptrain.comm.communicator import Communicator, Work
from dptrain.core import engine
from dptrain.core.flat import adopt, place_of
from dptrain.core.hooks import RemovableHandle
from dptrain.core.tensor import Tensor
from dptrain.futures import Future
from dptrain.parallel.bucket_state import BucketState, Section
from dptrain.parallel.buckets import END_CAP_MB, HOST_END_CAP_MB
from dptrain.parallel.grad_bucket import CommHook
from dptrain.parallel.gradient_owners import GradientOwners
from dptrain.parallel.statistics import StepRecord, StepTimes
from dptrain.parallel.step_check import StepCheck
from dptrain.parallel.weights import SampleWeights


class Reducer:
    """Keeps the gradients of parameters equal over the ranks.

    Args:
        named: names and parameters in registration order; all require gradients.
        communicator: how to reach the other ranks.
        bucket_cap_mb: see `plan_buckets`.
        name: first part of the name of every collective.
        weights: the counts of samples by which ranks weigh; None: every rank weighs the same.

    Attributes:
        enabled: whether backward averages; else gradients stay this rank's.
        divide_by: what sums are divided by in place of the ranks that had data; None: those.
        hook: averages a bucket in place of an all-reduce, with its state.
        after: runs at the end of each averaged backward; None: nothing does.
        owners: bring each averaged gradient to the rank that updates it alone; None: to all.
        last_backward_ns: when the last backward began to bring gradients (`time.perf_counter_ns`).
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        communicator: Communicator,
        bucket_cap_mb: float | Sequence[float] | None,
        name: str,
        weights: SampleWeights | None = None,
    ) -> None:
        self.communicator = communicator
        self.enabled = True
        self.divide_by: int | None = None
        self.hook: tuple[Any, CommHook] | None = None
        self.owners: GradientOwners | None = None
        self.after: Callable[[], None] | None = None
        self.times = StepTimes()
        self.forward_ns = (0, 0)
        self.last_backward_ns = self._began_ns = -1
        self.sections: list[Section] = []
        self._cap, self._name, self.weights = bucket_cap_mb, name, weights
        self._buckets: list[BucketState] = []
        self._bucket_of: dict[int, BucketState] = {}
        self._names: dict[int, str] = {}
        self._handles: list[RemovableHandle] = []
        self._pass: object | None = None
        self._next = 0
        self._seen: set[int] = set()
        self._totals: tuple[np.ndarray, Work] | None = None
        self.step_check = StepCheck(communicator, name, self.sections)
        self.add(named)

    def add(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Average these parameters too, in buckets that follow the others. Collective."""
        params = []
        for name, p in named:
            self._names[id(p)] = name
            params.append(p)
        wanted = {id(p) for p in params}
        for storage in adopt(params):
            own = [p for p in storage.params if id(p) in wanted]
            section = Section(storage, own, self.communicator)
            self.sections.append(section)
            end_cap_mb = _end_cap_mb(self.communicator)
            made = section.buckets(self._cap, end_cap_mb, self._name, len(self._buckets))
            self._buckets += made
            self._bucket_of |= {id(storage.params[i]): b for b in made for i in b.members}
        for p in params:
            if self.weights is not None:
                self._handles.append(p.register_hook(self.weights.hook(p, self._names[id(p)])))
            self._handles.append(p.register_post_accumulate_grad_hook(self._on_ready))
        if self.owners is not None:
            self.owners.watch(self, params)

    def detach(self) -> None:
        """Leave the parameters alone from here on."""
        self.step_check.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def name_of(self, p: Tensor) -> str:
        """The name of a parameter in the module."""
        return self._names[id(p)]

    @property
    def layout(self) -> list[list[str]]:
        """The names of the parameters in each bucket."""
        return [
            [self.name_of(b.section.storage.params[i]) for i in b.members] for b in self._buckets
        ]

    @property
    def bucket_nbytes(self) -> list[int]:
        """The size of each bucket's gradients."""
        return [b.gradients.nbytes for b in self._buckets]

    # ---- during the walk ---------------------------------------------------------------------

    def _on_ready(self, p: Tensor) -> None:
        """A parameter's gradient is final (called by the engine during the walk)."""
        if not self.enabled:
            self.last_backward_ns = time.perf_counter_ns()
            self.step_check.backward_done()
            return
        if self._pass is not engine.current_pass():
            self._begin()
        if p._grad is not p._slot or p._slot is None:  # else one call for each parameter more
            self._settle(p)
        if id(p) in self._seen:
            return
        self._seen.add(id(p))
        bucket = self._bucket_of[id(p)]
        bucket.arrived += 1
        bucket.waiting -= 1
        if bucket.waiting == 0:
            bucket.ready_ns = time.perf_counter_ns()
            # The last one is left to `_finish`: the walk is about over, and a change of threads for
            # nothing costs more than the rest of it could hide.
            last = len(self._buckets) - 1
            while self._next < last and self._buckets[self._next].waiting == 0:
                self._launch(self._buckets[self._next])

    def take_part(self) -> None:
        """Make the collectives of a backward that reaches no parameter. Collective.

        Afterwards the gradients are the averages, as on the ranks whose backward it was.
        """
        for section in self.sections:
            for p in section.params():
                p._grad = None
        self._reset()
        self._finish()

    def _begin(self) -> None:
        self._pass = engine.current_pass()
        self._reset()
        engine.queue_callback(self._finish)

    def _reset(self) -> None:
        self._next = 0
        self._seen.clear()
        self._began_ns = time.perf_counter_ns()
        for bucket in self._buckets:
            bucket.begin()
        self._totals = None
        if self.weights is not None or (self.divide_by is not None and self.hook is not None):
            count = 0.0 if self.weights is None else self.weights.take()
            totals = np.array([count, 1.0])
            work = self.communicator.all_reduce(totals, name=f"{self._name} counts", joinable=True)
            self._totals = (totals, work)

    def _launch(self, bucket: BucketState, async_op: bool = True) -> None:
        self._next += 1
        if bucket.arrived == len(bucket.members):
            bucket.used[:] = 1
        else:
            self._fill_unused(bucket)
        if bucket.carries_flags:
            bucket.section.tell()
        bucket.launched_ns = time.perf_counter_ns()
        bucket.ready_ns = bucket.ready_ns or bucket.launched_ns
        if self.hook is not None:
            state, hook = self.hook
            last = bucket is self._buckets[-1]
            bucket.seen = bucket.as_grad_bucket(last)
            bucket.future = _checked(hook(state, bucket.seen), hook)
            return
        if self.owners is not None:
            bucket.work = self.owners.reduce(bucket, self.communicator, async_op)
            return
        bucket.work = self.communicator.all_reduce(
            bucket.message, self._op, name=bucket.name, joinable=True, async_op=async_op
        )

    @property
    def _op(self) -> str:
        return "avg" if self.weights is None and self.divide_by is None else "sum"

    def _fill_unused(self, bucket: BucketState) -> None:
        """Parameters that this pass did not touch take part with zeros, or with what they hold."""
        storage = bucket.section.storage
        for k, i in enumerate(bucket.members):
            p = storage.params[i]
            unused = id(p) not in self._seen and p._grad is None
            bucket.used[k] = not unused
            if unused:
                storage.free_slot(i)
                storage.grad[storage.places[i].start : storage.places[i].stop] = 0
            elif id(p) not in self._seen:
                if self.weights is not None:
                    self.weights.once.refuse(p, self.name_of(p))
                self._settle(p)

    # ---- when the walk is over -----------------------------------------------------------------

    def _finish(self) -> None:
        """Launch what is missing, wait for everything, settle who used what."""
        waited_from_ns = time.perf_counter_ns()
        while self._next < len(self._buckets):
            # Nothing is left to overlap with: run it here.
            self._launch(self._buckets[self._next], async_op=False)
        flags = [
            self.communicator.all_reduce(
                section.flags, "max", name=f"{self._name} used parameters", joinable=True
            )
            for section in self.sections
            if self.hook is not None or self.owners is not None or not section.whole
        ]
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()
            else:
                self._take(bucket)
        for work in flags:
            work.wait()
        self._scale()
        self.step_check.backward_done()
        self.last_backward_ns = time.perf_counter_ns()
        self.times.add(
            StepRecord(
                self.forward_ns,
                self._began_ns,
                waited_from_ns,
                self.last_backward_ns,
                [b.times() for b in self._buckets],
            )
        )
        if len(self._seen) < len(self._names):  # What this rank used, it has.
            for section in self.sections:
                _publish(section)
        if self.owners is not None:
            self.owners.keep_own(p for s in self.sections for p in s.params())
        if self.weights is not None:
            self.weights.averaged(p for s in self.sections for p in s.params())
        self._pass = None
        if self.after is not None:
            self.after()

    def _take(self, bucket: BucketState) -> None:
        """Bring what a hook made of a bucket into its place."""
        assert bucket.seen is not None
        found = bucket.future.wait()
        bucket.arrived_ns = time.perf_counter_ns()
        bucket.seen.bring_home(found)
        bucket.future = bucket.seen = None

    def _scale(self) -> None:
        """The division, where it is not by the ranks that took part (which the communicator does)."""
        if self._op == "avg":
            return
        count, ranks = 0.0, 1.0
        if self._totals is not None:
            totals, work = self._totals
            work.wait()
            count, ranks = totals.tolist()
        divisor = count if self.weights is not None else float(self.divide_by or 1)
        # A hook has divided by the ranks that took part.
        factor = (ranks if self.hook is not None else 1.0) / divisor if divisor else 0.0
        for bucket in self._buckets:
            bucket.gradients[...] *= bucket.gradients.dtype.type(factor)

    def _settle(self, p: Tensor) -> None:
        """See to it that the parameter's gradient lies in its slot."""
        place = place_of(p)
        if place is None or (p._grad is not p._slot and not place.storage.settle(place.position)):
            raise RuntimeError(
                f"[rank {self.communicator.rank}/{self.communicator.world_size}] parameter {self.name_of(p)!r} of "
                f"shape {list(p.shape)} and dtype {p.dtype} changed its dtype or was rebound after "
                "DistributedDataParallel was made; convert the module first, then wrap it"
            )


def _end_cap_mb(communicator: Communicator) -> float:
    """How small the first and the last bucket are, by default.

    On one host the ranks reduce some MiB in the time that it costs to begin: cutting less than that
    off, to begin early, takes longer. Sums are made in rank order either way, so no bit depends on it.
    """
    one_host = communicator.local_world_size == communicator.world_size
    return HOST_END_CAP_MB if one_host else END_CAP_MB


def _publish(section: Section) -> None:
    """A gradient exists on all ranks or on none: where any rank used the parameter."""
    storage, flags = section.storage, section.told()
    for i in section.positions:
        storage.params[i]._grad = storage.slot(i) if flags[i] > 0 else None


def _checked(found: Any, hook: CommHook) -> Future[Any]:
    if isinstance(found, Future):
        return found
    name = getattr(hook, "__qualname__", type(hook).__name__)
    raise TypeError(
        f"communication hook {name} must return a dptrain.futures.Future, got {type(found).__name__}"
    )
