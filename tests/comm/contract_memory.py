"""The contract of `Communicator`: random shapes, memory of `allocate`, works and listeners. See `comm_contract`."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from contract_values import (
    DTYPES,
    all_values,
    bits,
    reduced,
    values,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dptrain.comm import (
    Communicator,
)


def any_shape_and_dtype_agrees_with_numpy(comm: Communicator) -> None:
    # The same seed on every rank: all draw the same examples, in the same order.
    @seed(comm.world_size)
    @settings(
        max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
        dtype=st.sampled_from(DTYPES),
        op=st.sampled_from(["sum", "max", "min", "product"]),
        wait_at_once=st.booleans(),
    )
    def run(shape: tuple[int, ...], dtype: np.dtype, op: str, wait_at_once: bool) -> None:
        array, copy = (values(comm.rank, shape, dtype) for _ in range(2))
        out = np.empty((comm.world_size, *shape), dtype)
        first = comm.all_reduce(array, op, async_op=not wait_at_once)
        second = comm.all_gather(out, copy)
        second.wait()
        first.wait()
        arrays = all_values(comm, shape, dtype)
        assert bits(array) == bits(reduced(arrays, op))
        assert bits(out) == bits(np.stack(arrays))

    run()


def memory_of_allocate_gives_the_same_results(comm: Communicator) -> None:
    size = 200_003
    room = comm.allocate(4 * size + 64)
    assert room.dtype == np.uint8
    assert room.shape == (4 * size + 64,)
    assert room.__array_interface__["data"][0] % 64 == 0
    assert not room.any()
    window = room[64:].view(np.float32)
    for op in ("sum", "avg", "max"):
        window[:] = values(comm.rank, (size,), window.dtype)
        private = window.copy()
        comm.all_reduce(window, op).wait()
        comm.all_reduce(private, op).wait()
        assert bits(window) == bits(private)
    for part in (window[:10], window[1000:150_000]):
        part[:] = comm.rank
        comm.all_reduce(part).wait()
        assert (part == sum(range(comm.world_size))).all()
    window[:] = comm.rank + 1
    comm.broadcast(window, comm.world_size - 1).wait()
    assert (window == comm.world_size).all()
    comm.release(room)
    window[:] = 1
    comm.all_reduce(window).wait()  # Ordinary memory now.
    assert (window == comm.world_size).all()
    with pytest.raises(ValueError, match="no result of allocate"):
        comm.release(room)


def different_places_in_memory_are_no_mismatch(comm: Communicator) -> None:
    room = comm.allocate(800_000).view(np.float32)
    begin = 1000 * comm.rank
    array = room[begin : begin + 100_000]
    array[:] = 1
    comm.all_reduce(array).wait()
    assert (array == comm.world_size).all()
    mixed = array if comm.rank == 0 else np.full(100_000, comm.world_size, np.float32)
    comm.all_reduce(mixed).wait()
    assert (mixed == comm.world_size**2).all()
    comm.release(comm.allocate(0))


def works_finish_in_any_order_of_waiting(comm: Communicator) -> None:
    arrays = [np.full(size, comm.rank + 1.0) for size in (1, 100_000, 3, 50_000)]
    works = [comm.all_reduce(array, name=f"w{i}") for i, array in enumerate(arrays)]
    for work in reversed(works):
        work.wait()
    total = sum(range(1, comm.world_size + 1))
    assert all((array == total).all() for array in arrays)
    finished = [work.finished_ns for work in works]
    assert finished == sorted(finished)
    for work in works:
        assert work.is_completed()
        assert work.queued_ns <= work.started_ns <= work.met_ns <= work.finished_ns


def a_work_may_be_waited_for_on_another_thread(comm: Communicator) -> None:
    array = np.ones(1000)
    work = comm.all_reduce(array)
    waits = [threading.Thread(target=work.wait) for _ in range(3)]
    for thread in waits:
        thread.start()
    for thread in waits:
        thread.join()
    assert work.is_completed()
    assert (array == comm.world_size).all()


def a_work_runs_without_being_waited_for(comm: Communicator) -> None:
    work = comm.all_reduce(np.ones(10))
    deadline_s = time.monotonic() + 20
    while not work.is_completed():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    assert (work.result == comm.world_size).all()


def a_work_keeps_its_array_alive(comm: Communicator) -> None:
    work = comm.all_reduce(np.full(100_000, 1, np.int64))
    rest = [np.zeros(100_000, np.int64) for _ in range(3)]  # Would reuse freed memory.
    work.wait()
    assert (work.result == comm.world_size).all()
    assert not any(array.any() for array in rest)


def a_work_tells_what_went_wrong(comm: Communicator) -> None:
    work = comm.all_reduce(np.ones(3))
    work.wait()
    assert work.exception() is None
    if comm.world_size > 1 and comm.rank == 0:
        late = comm.recv(np.zeros(4), 1, tag=9, timeout=0.05)
        assert late.exception() is None  # Not over yet.
        with pytest.raises(TimeoutError):
            late.wait()
        assert isinstance(late.exception(), TimeoutError)
    comm.barrier()


def listeners_see_every_finished_work(comm: Communicator) -> None:
    seen = []
    remove = comm.add_listener(lambda work: seen.append((work.kind, work.name, work.nbytes)))
    comm.all_reduce(np.ones(4), name="one").wait()
    comm.broadcast(np.ones(2, np.float32), name="two", async_op=False)
    remove()
    comm.all_reduce(np.ones(4), name="three").wait()
    assert seen == [("all_reduce", "one", 32), ("broadcast", "two", 8)]


def an_error_of_a_listener_is_raised_by_wait(comm: Communicator) -> None:
    def listener(work: object) -> None:
        raise KeyError("listener")

    remove = comm.add_listener(listener)
    work = comm.all_reduce(np.ones(4))
    with pytest.raises(KeyError, match="listener"):
        work.wait()
    remove()
    comm.barrier()
