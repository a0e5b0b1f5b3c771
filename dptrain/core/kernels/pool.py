"""The threads that kernels run on: native workers of this process that wait without Python's lock.

Owns: `run`. Must not know: what a kernel computes.

OpenMP is not used: two of its runtimes in one process (PyTorch brings its own), or one beside the
threads of a BLAS library, wait for each other by spinning, at a cost of milliseconds per call, and a
forked child cannot use it. Here a waiting worker yields its core, and sleeps when nothing comes.

A job is published as one ticket: its number and how many shares are left to take. Whoever takes a share
(by compare-and-swap, the caller too) computes it and counts it as done; the caller returns when all are.
A worker that comes late finds no share left and touches nothing.
"""

from __future__ import annotations

import atexit
import os
import struct
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from dptrain.core.kernels.compiled import call
from dptrain.core.kernels.deferred import foreign, intrinsic, ir, njit, types
from dptrain.core.kernels.memory import address
from dptrain.core.kernels.python_calls import python_function
from dptrain.core.threads import get_num_threads

# Places in the shared state, in 64-bit words; those that different threads write lie cache lines apart.
_TICKET, _DONE, _FUNCTION, _ARGS, _SHARES = 0, 16, 32, 33, 34
_SLEEPERS, _STOP, _LIMIT, _MUTEX, _CONDITION, _WORDS = 48, 56, 57, 64, 96, 128
_LEFT_BITS = 32
#: Times that an idle worker yields its core before it sleeps: about a millisecond, longer than Python takes from one
#: kernel to the next. To wake it costs the caller 8 us, and the first share that it takes comes tens of us late.
_SPINS = 6000


_yield_core = foreign("sched_yield", "int32")
_init_mutex = foreign("pthread_mutex_init", "int32", "int64", "int64")
_lock_mutex = foreign("pthread_mutex_lock", "int32", "int64")
_unlock_mutex = foreign("pthread_mutex_unlock", "int32", "int64")
_init_condition = foreign("pthread_cond_init", "int32", "int64", "int64")
_wait = foreign("pthread_cond_wait", "int32", "int64", "int64")
_wake_all = foreign("pthread_cond_broadcast", "int32", "int64")


def _word(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def _read(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_word(builder, values[0]), "seq_cst", 8)

    return types.int64(address), generate


@intrinsic
def _write(typing_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store_atomic(values[1], _word(builder, values[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(address, value), generate


@intrinsic
def _add(typing_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, values[0]), values[1], "seq_cst")

    return types.int64(address, value), generate


@intrinsic
def _swap(typing_context: Any, address: Any, expected: Any, value: Any) -> Any:
    """Whether the word was `expected`; it is `value` then."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pair = builder.cmpxchg(_word(builder, values[0]), values[1], values[2], "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(address, expected, value), generate


@njit
def _take(state: int, worker: int) -> bool:
    """Compute one share of the published job; False if none is left for this worker."""
    ticket = _read(state)
    left = ticket & ((1 << _LEFT_BITS) - 1)
    # The limit is read after the ticket: if the swap then succeeds, both are of one job. A worker that was let in
    # by the limit of an earlier job would write where this one has no scratch for it.
    if left == 0 or worker >= _read(state + 8 * _LIMIT):
        return False
    if _swap(state, ticket, ticket - 1):
        # The job cannot end before this share is done, so what is read here belongs to it.
        function, args = _read(state + 8 * _FUNCTION), _read(state + 8 * _ARGS)
        call(function, (args, left - 1, _read(state + 8 * _SHARES), worker))
        _add(state + 8 * _DONE, 1)
    return True


@cache
def _serial() -> Any:
    @python_function
    def serial(function, args, shares):
        for share in range(shares):
            call(function, (args, share, shares, 0))

    return serial


@cache
def serial_batch() -> Any:
    """Compiled: run `count` kernels one after the other in this thread.

    Their table of 64-bit integers has a row (function, address of the arguments, shares) for each.
    """

    @python_function
    def batch(table, count):
        for row in range(count):
            place = table + 24 * row
            function, args = _read(place), _read(place + 8)
            shares = _read(place + 16)
            for share in range(shares):
                call(function, (args, share, shares, 0))

    return batch


@cache
def _functions() -> tuple[Any, Any, Any, Any]:
    """The compiled halves of the pool: (initialise, work, launch, stop). Made when a pool is."""

    @python_function
    def initialise(state):
        _init_mutex(state + 8 * _MUTEX, 0)
        _init_condition(state + 8 * _CONDITION, 0)

    @python_function
    def work(state, worker):
        idle = 0
        while _read(state + 8 * _STOP) == 0:
            if _take(state, worker):
                idle = 0
                continue
            idle += 1
            if idle < _SPINS:
                _yield_core()
                continue
            _lock_mutex(state + 8 * _MUTEX)
            _add(state + 8 * _SLEEPERS, 1)
            # A caller publishes first and looks for sleepers then; a worker does the reverse.
            mask = (1 << _LEFT_BITS) - 1
            if _read(state) & mask == 0 and _read(state + 8 * _STOP) == 0:
                _wait(state + 8 * _CONDITION, state + 8 * _MUTEX)
            _add(state + 8 * _SLEEPERS, -1)
            _unlock_mutex(state + 8 * _MUTEX)
            idle = 0

    @python_function
    def launch(state, function, args, shares, limit):
        _write(state + 8 * _FUNCTION, function)
        _write(state + 8 * _ARGS, args)
        _write(state + 8 * _SHARES, shares)
        _write(state + 8 * _DONE, 0)
        _write(state + 8 * _LIMIT, limit)
        number = (_read(state) >> _LEFT_BITS) + 1
        _write(state, (number << _LEFT_BITS) | shares)
        if _read(state + 8 * _SLEEPERS) > 0:
            _lock_mutex(state + 8 * _MUTEX)
            _wake_all(state + 8 * _CONDITION)
            _unlock_mutex(state + 8 * _MUTEX)
        while _take(state, 0):
            pass
        waited = 0
        while _read(state + 8 * _DONE) < shares:
            waited += 1
            if waited > 50:
                _yield_core()

    @python_function
    def stop(state):
        _write(state + 8 * _STOP, 1)
        _lock_mutex(state + 8 * _MUTEX)
        _wake_all(state + 8 * _CONDITION)
        _unlock_mutex(state + 8 * _MUTEX)

    return initialise, work, launch, stop


class _Pool:
    """The workers of this process; the caller of a job is worker 0."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        initialise, work, self._launch, self._stop = _functions()
        self._memory = np.zeros(_WORDS, np.int64)
        self._state = address(self._memory)
        initialise(self._state)
        self._lock = threading.Lock()
        self._workers = [
            threading.Thread(target=self._serve, args=(work, number), daemon=True)
            for number in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()

    def _serve(self, work: Any, number: int) -> None:
        work(self._state, number)  # as a method: the memory lives as long as the worker looks at it

    def run(self, function: int, args: int, shares: int, limit: int) -> bool:
        """Run a job unless another thread's job is running."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._launch(self._state, function, args, shares, limit)
        finally:
            self._lock.release()
        return True

    def stop(self) -> None:
        """End the workers."""
        self._stop(self._state)
        for worker in self._workers:
            worker.join(timeout=5)


_pool: _Pool | None = None
_making = threading.Lock()


def _pool_of(threads: int) -> _Pool:
    global _pool
    with _making:
        if _pool is None or _pool.threads < threads:
            if _pool is not None:
                _pool.stop()
            _pool = _Pool(threads)
        return _pool


#: Bytes below which a second thread would wait longer than it works: some 8 us of a pass by one thread.
_WORTH_THREADS = 1 << 18
#: Sums that are kept beside each other of one result: for so many threads at most.
_MOST_BLOCKS = 16
#: Bytes that all of them may take, and how many times their bytes the work is at least: the sums of a block are
#: cleared, and read once more than a single one's would be.
_MOST_SUMS, _LEAST_WORK = 1 << 20, 12


def as_bytes(products: int) -> int:
    """How many bytes move in the time of so many products of a register tile, about."""
    return products // 3


def shares(parts: int, nbytes: int) -> int:
    """Into how many shares to cut `parts` equal parts of a pass over `nbytes`, taken as they come."""
    if nbytes <= _WORTH_THREADS:  # nearly every one
        return 1 if parts else 0
    threads = get_num_threads()
    return min(parts, 8 * threads) if threads > 1 else min(parts, 1)


def blocks(parts: int, nbytes: int, sums: int) -> int:
    """Into how many blocks, at least one, to cut a pass that sums: each is a share with sums of its own.

    They are added up in order, and however many threads there are, the blocks are the same: so are the
    bits of the result.

    Args:
        parts, nbytes: as of `shares`.
        sums: bytes of the sums of a block.
    """
    if nbytes <= _WORTH_THREADS:
        return 1
    most = min(_MOST_SUMS, nbytes // _LEAST_WORK) // sums
    return max(1, min(parts, _MOST_BLOCKS, most))


def across(parts: int, blocks: int, nbytes: int) -> int:
    """Into how many parts to cut the sums of a block, where there are fewer blocks than threads."""
    threads = get_num_threads() if nbytes > _WORTH_THREADS else 1
    return max(1, min(parts, -(-threads // blocks)))


class _Arguments(threading.local):
    """Where a thread's kernel finds its arguments: it runs one at a time."""

    def __init__(self) -> None:
        memory: Any = np.empty(_MOST_ARGUMENTS, np.int64)
        self.place = memory, address(memory)


_MOST_ARGUMENTS = 64
_words = cache(lambda count: struct.Struct(f"{count}q"))
_arguments = _Arguments()


def run(function: int, args: Sequence[int], shares: int) -> None:
    """Compute all shares of a kernel, on several threads where there are shares for them.

    Args:
        function: address of the kernel.
        args: its arguments; what they point to stays alive meanwhile.
        shares: into how many parts the work is cut. Each is computed once, by any thread with any
            worker number below `get_num_threads()`; the result may depend on their number alone.
    """
    if not shares:
        return
    memory, place = _arguments.place
    _words(len(args)).pack_into(memory, 0, *args)
    if shares == 1:
        _serial()(function, place, 1)
    else:
        run_packed(function, place, shares)


def run_packed(function: int, place: int, shares: int) -> None:
    """`run` with the arguments in memory, at an address; at least one share."""
    threads = min(shares, get_num_threads())
    if threads < 2 or not _pool_of(threads).run(function, place, shares, threads):
        # Alone, or the workers are busy with another thread's job.
        _serial()(function, place, shares)


def _forget() -> None:
    """In a forked child: the workers stayed with the parent."""
    global _pool, _making
    _pool, _making = None, threading.Lock()


def _end() -> None:
    if _pool is not None:
        _pool.stop()


# A worker must not run compiled code that the end of the process takes away.
atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
