"""One pass over a loader: tasks in the sampler's order, answered here or by workers.

Owns: `InProcessPass`, `WorkerPass`, the position during a pass. Must not know: how the order is made,
how workers are reached.
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from dptrain.core.capturing import watcher
from dptrain.core.random import use_generator
from dptrain.data.events import pass_ended
from dptrain.data.fetch import Exhausted, Fetcher
from dptrain.data.inbox import Inbox, Task
from dptrain.data.pinning import PinThread, pin, pinning_gpu
from dptrain.data.ranks import known_ranks
from dptrain.data.seeding import SampleGenerator
from dptrain.data.worker import BATCH, ENDED, Begin, Recipe

if TYPE_CHECKING:
    from dptrain.data.crew import Crew
    from dptrain.data.loader import DataLoader

_END = object()


class Pass:
    """An iterator over the batches of one pass."""

    _over = True  # as long as it has not begun

    def __init__(self, loader: DataLoader, fetcher: Fetcher) -> None:
        started = time.perf_counter()
        self._loader = loader
        self._fetcher = fetcher
        self._position, self._taken = loader._begin_pass()
        self._place = self._position.samples_consumed
        self._dealt = loader._dealt()
        self._place_after = loader._place_counter()
        self._first_batch_time_ns: int | None = None
        self._handed_out = 0
        self._pinning_gpu = pinning_gpu() if loader.pin_memory else None
        self._start()
        self._over = False
        loader.data_time_s += time.perf_counter() - started

    def __iter__(self) -> Pass:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        try:
            return self.take()
        except Exhausted:
            self.finish()
            raise StopIteration from None

    def take(self) -> Any:
        """The next batch.

        Raises:
            Exhausted: there was none; `finish` then ends the pass.
        """
        started_ns = time.perf_counter_ns()
        if self._first_batch_time_ns is None:
            self._first_batch_time_ns = started_ns
        watch = watcher()
        if watch is None:
            batch = self._next_batch()
        else:
            batch = watch.block("enumerate(DataLoader)", self._next_batch)
        self._handed_out += 1
        if self._fetcher.iterable:
            self._loader._check_length(self._handed_out)
        self._loader.data_time_s += (time.perf_counter_ns() - started_ns) / 1e9
        return batch

    def __reduce__(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} cannot be pickled")

    def _start(self) -> None:
        """Prepare for the first batch."""

    def _next_batch(self) -> Any:
        """The next batch; moves the position. Raises `Exhausted` after the last."""
        raise NotImplementedError

    def _next_task(self) -> Task | None:
        taken = next(self._taken, _END)
        if taken is _END:
            return None
        offset, step, shard = self._dealt
        position, place = self._position, self._place
        keys = (position.base_seed or 0, position.epoch, place + offset, shard, step)
        self._place = self._place_after(place, taken)
        return Task(taken, keys, place)

    def finish(self) -> None:
        """End the pass, all of whose batches were taken."""
        self._over = True
        self._position.epoch += 1
        self._position.samples_consumed = 0
        self._position.base_seed = None
        self._loader.last_pass_length = self._handed_out
        assert self._first_batch_time_ns is not None
        pass_ended(self._loader, self._first_batch_time_ns)


class InProcessPass(Pass):
    """The batches are fetched in this process, one at a time."""

    def _start(self) -> None:
        self._generator = SampleGenerator(self._position.base_seed or 0)
        with use_generator(self._generator):
            self._fetch = self._fetcher.begin().fetch

    def _next_batch(self) -> Any:
        task = self._next_task()
        if task is None:
            raise Exhausted
        with use_generator(self._generator):
            batch = self._fetch(task.taken, task.keys, self._generator)
        if self._pinning_gpu is not None:
            batch = pin(batch)
        # Only now: a batch that could not be fetched was not consumed.
        self._position.samples_consumed = self._place
        return batch


class WorkerPass(Pass):
    """The batches are fetched by workers ahead of time, and handed out in order unless told otherwise."""

    def _start(self) -> None:
        loader = self._loader
        if not loader.prefetch_factor:
            raise AssertionError(
                "prefetch_factor must be positive for workers to be asked anything"
            )
        begin = Begin(self._position.base_seed or 0)
        crew = loader._resting_crew
        loader._resting_crew = None
        if crew is not None and crew.alive:
            crew.begin(begin)
        else:
            crew = _new_crew(loader, self._fetcher, begin)
        self._crew: Crew = crew
        self._inbox = Inbox(crew, loader.in_order)
        self._active = [True] * len(crew)
        self._turns = itertools.cycle(range(len(crew)))
        self._asked = [0] * len(crew)
        self._drained = False
        self._prefetch = loader.prefetch_factor
        self._pin_thread: PinThread | None = None
        if self._pinning_gpu is not None:
            where = f"in pin memory thread for device {self._pinning_gpu}"
            self._pin_thread = PinThread(partial(self._inbox.next_pinned, where), self._pinning_gpu)
        for _ in range(self._prefetch * len(crew)):
            self._ask()

    def _ask(self) -> None:
        """Give the next task to the worker whose turn it is, if there is one."""
        if self._drained:
            return
        for worker in itertools.islice(self._turns, len(self._active)):
            if self._active[worker] and (
                self._inbox.in_order or self._inbox.load[worker] < self._prefetch
            ):
                break
        else:
            return
        task = self._next_task()
        if task is None:
            self._drained = True
            return
        task.worker = worker
        if self._fetcher.iterable:  # every worker counts its own samples
            base_seed, epoch, _, shard, step = task.keys
            count = len(task.taken) if self._fetcher.batched else 1
            place = self._asked[worker] * count
            # The worker's number in front, so that no two workers share a key on any shard.
            task.keys = (base_seed, epoch, place, shard * len(self._active) + worker, step)
        self._asked[worker] += 1
        self._inbox.add(task)

    def _next_batch(self) -> Any:
        if not self._crew.alive:
            raise RuntimeError(
                "the workers of this pass over a DataLoader have ended; begin a new one"
            )
        while self._inbox.tasks:
            task = self._inbox.tasks.pop(self._wait())
            assert task.answer is not None
            kind, value = task.answer
            if kind == ENDED:
                self._active[task.worker] = False
                self._ask()
                continue
            self._ask()
            if self._pin_thread is not None and self._inbox.tasks:
                self._pin_thread.ask()
            if kind != BATCH:
                value.reraise()
            self._consumed()
            return value
        raise Exhausted

    def _wait(self) -> int:
        """The number of the task whose answer is handed out next, once it is there."""
        timeout_s = self._loader.timeout
        try:
            if self._pin_thread is None:
                return self._inbox.next(timeout_s)
            number: int = self._pin_thread.result(timeout_s)
            return number
        except TimeoutError:
            named = ", ".join(f"{w} (pid {self._crew.pids[w]})" for w in self._inbox.awaited())
            raise RuntimeError(
                f"DataLoader timed out after {timeout_s} seconds waiting for worker {named}"
            ) from None

    def _consumed(self) -> None:
        """Move the position to before the first batch not handed out yet."""
        first = next(iter(self._inbox.tasks.values()), None)
        self._position.samples_consumed = self._place if first is None else first.place_before

    def finish(self) -> None:
        """End the pass, all of whose batches were taken, and let go of the workers."""
        self._let_go()
        super().finish()

    def _let_go(self) -> None:
        loader = self._loader
        if self._pin_thread is not None:
            self._pin_thread.end()  # before anybody else hears the workers
        if loader.persistent_workers and loader._resting_crew is None and self._crew.alive:
            loader._resting_crew = self._crew
        else:
            self._crew.close()

    def __del__(self) -> None:
        if not self._over:
            self._let_go()


def _new_crew(loader: DataLoader, fetcher: Fetcher, begin: Begin) -> Crew:
    from dptrain.data.crew import Crew

    recipe = Recipe(fetcher, loader.worker_init_fn, loader.num_workers, known_ranks())
    return Crew(recipe, begin)
