"""The contract of `Communicator`, as functions of one rank.

Every function in `CONTRACT` is called on all ranks of a group at once, with that rank's
communicator, and must leave the group in step. `BREAKING` holds those after which the communicator
is broken: each needs a group of its own.
"""

from __future__ import annotations

import os
import threading
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dptrain.comm import (
    CollectiveMismatchError,
    CollectiveTimeoutError,
    Communicator,
    CommunicatorError,
    RankLeftError,
    ReduceOp,
)

DTYPES = [
    np.dtype(name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32")
] + [np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)]
FLOATS = [dtype for dtype in DTYPES if dtype.name.endswith(("float16", "float32", "float64"))]
# Around the borders of the small path, of a staging piece and of a reduction block.
SIZES = [0, 1, 7, 1000, 16 * 1024, 16 * 1024 + 1, 131_072 + 3, 300_001]


def values(rank: int, shape: tuple[int, ...], dtype: np.dtype, salt: int = 0) -> np.ndarray:
    """What rank `rank` contributes; every rank can work out what the others have."""
    random = np.random.default_rng([rank, salt, len(shape), *shape])
    if dtype.name == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if dtype.kind in "iu":
        return random.integers(0, 7, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def all_values(comm: Communicator, shape, dtype, salt: int = 0) -> list[np.ndarray]:
    return [values(rank, shape, dtype, salt) for rank in range(comm.world_size)]


def reduced(arrays: list[np.ndarray], op: str) -> np.ndarray:
    """The reference: a plain loop over the ranks, in order; 16-bit floats in float32."""
    dtype = arrays[0].dtype
    wide = np.float32 if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype
    total = arrays[0].astype(wide)
    for array in arrays[1:]:
        operand = array.astype(wide)
        if op in ("sum", "avg"):
            total = total + operand
        elif op == "product":
            total = total * operand
        else:
            total = np.maximum(total, operand) if op == "max" else np.minimum(total, operand)
    if op == "avg":
        total = total / total.dtype.type(len(arrays))
    return total.astype(dtype)


def same_on_all_ranks(comm: Communicator, array: np.ndarray) -> bool:
    return len({bytes(data) for data in comm.all_gather_object(array.tobytes())}) == 1


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


# -- values ----------------------------------------------------------------------------------------


def all_reduce_is_the_rank_ordered_reduction(comm: Communicator) -> None:
    for dtype in DTYPES:
        for op in ("sum", "max", "min", "product"):
            array = values(comm.rank, (3, 5), dtype)
            work = comm.all_reduce(array, op)
            assert work.wait()
            assert bits(array) == bits(reduced(all_values(comm, (3, 5), dtype), op)), (dtype, op)
            assert work.result is array


def all_reduce_works_for_every_size(comm: Communicator) -> None:
    for size in SIZES:
        for dtype in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int16)):
            array = values(comm.rank, (size,), dtype)
            comm.all_reduce(array).wait()
            assert bits(array) == bits(reduced(all_values(comm, (size,), dtype), "sum"))
    scalar = np.array(float(comm.rank))
    comm.all_reduce(scalar, async_op=False)
    assert scalar.shape == ()
    assert scalar == sum(range(comm.world_size))


def average_divides_by_the_number_of_ranks(comm: Communicator) -> None:
    for dtype in FLOATS:
        for size in (5, 40_001):
            array = values(comm.rank, (size,), dtype)
            comm.all_reduce(array, ReduceOp.AVG).wait()
            assert bits(array) == bits(reduced(all_values(comm, (size,), dtype), "avg"))


def sixteen_bit_sums_accumulate_in_float32(comm: Communicator) -> None:
    # 2048 + 1 is 2048 in float16, so that adding rank by rank in float16 would lose every 1.
    for dtype, large in ((np.dtype(np.float16), 2048), (np.dtype(ml_dtypes.bfloat16), 256)):
        array = np.full(4, large if comm.rank == 0 else 1, dtype)
        comm.all_reduce(array).wait()
        expected = np.float32(large + comm.world_size - 1).astype(dtype)
        assert (array == expected).all()


def infinities_and_overflow_travel_without_a_warning(comm: Communicator) -> None:
    array = np.array([np.inf, np.finfo(np.float32).max, np.nan], np.float32)
    comm.all_reduce(array).wait()
    assert array[0] == np.inf
    assert np.isinf(array[1]) == (comm.world_size > 1)
    assert np.isnan(array[2])


def results_are_bitwise_equal_on_all_ranks(comm: Communicator) -> None:
    for size in (11, 100_003):
        array = values(comm.rank, (size,), np.dtype(np.float32), salt=1)
        comm.all_reduce(array, "avg").wait()
        assert same_on_all_ranks(comm, array)


def reduce_gives_the_result_to_the_root_only(comm: Communicator) -> None:
    for root in range(comm.world_size):
        for size in (3, 20_000, 200_000):
            array = values(comm.rank, (size,), np.dtype(np.float32))
            before = array.copy()
            comm.reduce(array, root, "sum").wait()
            total = reduced(all_values(comm, (size,), np.dtype(np.float32)), "sum")
            assert bits(array) == bits(total if comm.rank == root else before)


def broadcast_copies_the_root(comm: Communicator) -> None:
    for root in range(comm.world_size):
        for size in SIZES:
            for dtype in (np.dtype(np.float64), np.dtype(bool), np.dtype(ml_dtypes.bfloat16)):
                array = values(comm.rank, (size,), dtype)
                if comm.rank == root:
                    array.flags.writeable = False  # The root's array is only read.
                comm.broadcast(array, root).wait()
                assert bits(array) == bits(values(root, (size,), dtype))


def all_gather_collects_by_rank(comm: Communicator) -> None:
    for shape in ((), (0,), (3, 1), (70_001,), (2, 150_000)):
        for dtype in (np.dtype(np.float32), np.dtype(np.uint8)):
            out = np.zeros((comm.world_size, *shape), dtype)
            comm.all_gather(out, values(comm.rank, shape, dtype)).wait()
            assert bits(out) == bits(np.stack(all_values(comm, shape, dtype)))


def all_gather_takes_a_part_of_its_own_output(comm: Communicator) -> None:
    for size in (4, 150_000):
        out = np.zeros((comm.world_size, size), np.float32)
        out[comm.rank] = values(comm.rank, (size,), out.dtype)
        comm.all_gather(out, out[comm.rank]).wait()
        assert bits(out) == bits(np.stack(all_values(comm, (size,), out.dtype)))


def reduce_scatter_gives_each_rank_its_part(comm: Communicator) -> None:
    for length in (0, 1, 5, 60_001):
        shape = (comm.world_size * length, 2)
        array = values(comm.rank, shape, np.dtype(np.float32))
        total = reduced(all_values(comm, shape, array.dtype), "sum")
        part = slice(comm.rank * length, (comm.rank + 1) * length)
        out = np.zeros((length, 2), np.float32)
        comm.reduce_scatter(out, array).wait()
        assert bits(out) == bits(total[part])
        comm.reduce_scatter(array[part], array).wait()
        assert bits(array[part]) == bits(total[part])


def all_to_all_transposes_parts(comm: Communicator) -> None:
    for length in (0, 1, 3, 50_000):
        shape = (comm.world_size, length)
        out = np.zeros(shape, np.int32)
        comm.all_to_all(out, values(comm.rank, shape, out.dtype)).wait()
        expected = [array[comm.rank] for array in all_values(comm, shape, out.dtype)]
        assert bits(out) == bits(np.stack(expected))


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


# -- Work ------------------------------------------------------------------------------------------


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


# -- objects, messages, groups ---------------------------------------------------------------------


def objects_are_broadcast_and_gathered(comm: Communicator) -> None:
    mine = {"rank": comm.rank, "text": "x" * (comm.rank * 40_000)}
    everyone = [{"rank": rank, "text": "x" * (rank * 40_000)} for rank in range(comm.world_size)]
    assert comm.all_gather_object(mine) == everyone
    for root in range(comm.world_size):
        assert comm.broadcast_object(mine if comm.rank == root else None, root) == everyone[root]
        gathered = comm.gather_object(mine, root)
        assert gathered == (everyone if comm.rank == root else None)


def messages_pass_between_two_ranks(comm: Communicator) -> None:
    right, left = (comm.rank + 1) % comm.world_size, (comm.rank - 1) % comm.world_size
    if right == comm.rank:
        return
    for size in (0, 3, 200_000):
        received = np.zeros(size)
        # Both directions at once and the sends first: nobody may need the other to receive.
        works = [
            comm.send(np.full(size, comm.rank, float), right, tag=5),
            comm.send(np.array([comm.rank], np.int8), right, tag=6),
        ]
        note = np.zeros(1, np.int8)
        comm.recv(note, left, tag=6).wait()  # Tags may be received out of order.
        work = comm.recv(received, left, tag=5)
        work.wait()
        for sent in works:
            sent.wait()
        assert (received == left).all()
        assert note[0] == left
        assert work.result is received
        assert work.is_completed()


def a_message_of_another_size_is_an_error(comm: Communicator) -> None:
    if comm.world_size == 1:
        return
    if comm.rank == 0:
        comm.send(np.zeros(3), 1).wait()
        comm.send(np.zeros(5), 1).wait()
    elif comm.rank == 1:
        with pytest.raises(ValueError, match=r"room for 32 bytes, but rank 0 sent 24"):
            comm.recv(np.zeros(4), 0).wait()
        with pytest.raises(ValueError, match="room for 32 bytes"):
            comm.recv(np.zeros(4), 0).wait()
    comm.barrier()


def a_message_that_does_not_come_times_out(comm: Communicator) -> None:
    if comm.world_size > 1 and comm.rank == 0:
        work = comm.recv(np.zeros(4), 1, tag=9, timeout=0.05)
        with pytest.raises(TimeoutError, match=r"recv of 32 bytes with rank 1 timed out"):
            work.wait()
    comm.barrier()


def split_makes_groups_by_color_ordered_by_key(comm: Communicator) -> None:
    color = None if comm.rank == 2 else comm.rank % 2
    group = comm.split(color, key=-comm.rank)
    members = [r for r in reversed(range(comm.world_size)) if r != 2 and r % 2 == comm.rank % 2]
    assert (group is None) == (color is None)
    if group is not None:
        assert group.world_size == len(members)
        assert members[group.rank] == comm.rank
        array = values(comm.rank, (70_000,), np.dtype(np.float32))
        group.all_reduce(array).wait()
        parts = [values(rank, (70_000,), array.dtype) for rank in members]
        assert bits(array) == bits(reduced(parts, "sum"))
        room = group.allocate(400_000).view(np.float32)
        room[:] = 1
        group.all_reduce(room).wait()
        assert (room == len(members)).all()
        again = group.split(group.rank)
        assert again is not None
        assert again.world_size == 1
        group.close()
        with pytest.raises(CommunicatorError, match="closed"):
            group.barrier()
    comm.barrier()


# -- join ------------------------------------------------------------------------------------------


def join_answers_for_ranks_without_data(comm: Communicator) -> None:
    size = 100_001
    room = comm.allocate(4 * size).view(np.float32)
    arrays = [np.zeros(3, np.float32), np.zeros(size, np.float32), room]
    for step in range(comm.rank + 1):
        ranks = range(step, comm.world_size)  # Rank r takes part in steps 0 to r.
        for array in arrays:
            shown = [values(rank, array.shape, array.dtype, step) for rank in ranks]
            for op in ("sum", "avg", "min"):
                array[:] = shown[comm.rank - step]
                comm.all_reduce(array, op, joinable=True).wait()
                assert bits(array) == bits(reduced(shown, op))
            array[:] = shown[comm.rank - step]
            comm.broadcast(array, root=None, joinable=True).wait()
            assert bits(array) == bits(shown[0])
            comm.all_reduce(array, joinable=True)  # Still under way when join() is called.
    result = comm.join()
    calls = 3 * 5  # Per step: five calls for each array.
    expected = tuple(calls * (comm.world_size - 1 - rank) for rank in range(comm.world_size))
    assert result.shadowed_by_rank == expected
    assert result.shadowed == expected[comm.rank]
    comm.barrier()


def join_leaves_memory_of_the_joined_rank_alone(comm: Communicator) -> None:
    room = comm.allocate(400_000).view(np.float32)
    room[:] = comm.rank
    if comm.rank == comm.world_size - 1:
        comm.all_reduce(room, joinable=True).wait()
    comm.join()
    assert (room == comm.rank).all()


def join_without_anything_to_answer_returns(comm: Communicator) -> None:
    for _ in range(3):
        assert comm.join().shadowed_by_rank == (0,) * comm.world_size


# -- bad arguments ---------------------------------------------------------------------------------


def bad_arguments_are_refused_before_anybody_is_asked(comm: Communicator) -> None:
    n = comm.world_size
    good = np.zeros((n, 2), np.float32)
    with pytest.raises(ValueError, match=r"C-contiguous, got shape \(2, 3\) with strides"):
        comm.all_reduce(np.zeros((3, 2)).T)
    with pytest.raises(TypeError, match="list"):
        comm.all_reduce([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="complex64"):
        comm.all_reduce(np.zeros(2, np.complex64))
    with pytest.raises(TypeError, match=">f8"):
        comm.all_reduce(np.zeros(2, ">f8"))
    with pytest.raises(TypeError, match="AVG was asked for int32"):
        comm.all_reduce(np.zeros(2, np.int32), "avg")
    with pytest.raises(ValueError, match="'median' is no reduction"):
        comm.all_reduce(good, "median")
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        comm.all_reduce(frozen)
    for root in (-1, n, 1.5):
        with pytest.raises(ValueError, match="is no rank of a group"):
            comm.broadcast(good, root)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="joinable=True"):
        comm.broadcast(good, None)
    with pytest.raises(ValueError, match=r"expected shape \(\d, 3\), which is \(world_size"):
        comm.all_gather(good, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="float64"):
        comm.all_gather(np.zeros((n, 2)), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="first dimension"):
        comm.reduce_scatter(np.zeros(1), np.zeros(()))
    if n > 1:
        with pytest.raises(ValueError, match="pad it to a multiple"):
            comm.reduce_scatter(np.zeros(1), np.zeros(n + 1))
    with pytest.raises(ValueError, match="different memory"):
        comm.all_to_all(good, good)
    with pytest.raises(ValueError, match="itself"):
        comm.send(good, comm.rank)
    with pytest.raises(ValueError, match="no rank"):
        comm.recv(good, n)
    if n > 1:
        with pytest.raises(ValueError, match="tag=-1"):
            comm.send(good, (comm.rank + 1) % n, tag=-1)
    with pytest.raises(ValueError, match="0 bytes or more"):
        comm.allocate(-1)
    comm.barrier()  # Still in step.


# -- errors that break -----------------------------------------------------------------------------

MISMATCHES = {
    "op": (("all_reduce", "f4", 3, "sum", None), ("all_reduce", "f4", 3, "max", None)),
    "dtype": (("all_reduce", "f4", 3, "sum", None), ("all_reduce", "i4", 3, "sum", None)),
    "shape": (("all_reduce", "f4", 3, "sum", None), ("all_reduce", "f4", 4, "sum", None)),
    "name": (("all_reduce", "f4", 3, "sum", "a"), ("all_reduce", "f4", 3, "sum", "b")),
    "kind": (("all_reduce", "f4", 3, "sum", None), ("broadcast", "f4", 3, 0, None)),
    "root": (("broadcast", "f4", 3, 0, None), ("broadcast", "f4", 3, 1, None)),
    "barrier": (("barrier", None, None, None, None), ("all_reduce", "f4", 3, "sum", None)),
    "join": (("join", None, None, None, None), ("all_reduce", "f4", 3, "sum", None)),
    "large": (("all_reduce", "f4", 10**6, "sum", None), ("all_reduce", "f4", 10, "sum", None)),
}


def _call(comm: Communicator, kind, dtype, size, argument, name) -> None:
    if kind == "barrier":
        comm.barrier()
    elif kind == "join":
        comm.join()
    else:
        getattr(comm, kind)(np.zeros(size, dtype), argument, name=name).wait()


def a_mismatch_is_an_error_on_every_rank(comm: Communicator, case: str) -> None:
    if comm.world_size == 1:
        pytest.skip("one rank cannot disagree")
    usual, odd = MISMATCHES[case]
    last = comm.world_size - 1
    with pytest.raises(CollectiveMismatchError) as caught:
        _call(comm, *(odd if comm.rank == last else usual))
    message = str(caught.value)
    assert message.startswith(f"[rank {comm.rank}/{comm.world_size}] ")
    mine, others = message.split("\n")[1:3]
    assert mine.startswith("  this rank")
    assert (odd if comm.rank == last else usual)[0] in mine
    assert (usual if comm.rank == last else odd)[0] in others
    assert ("rank 0" if comm.rank == last else f"rank {last} called") in others
    for line in (mine, others):  # Both call sites.
        assert f"{os.path.basename(__file__)}:" in line
    with pytest.raises(CommunicatorError, match="can no longer be used") as broken:
        comm.all_reduce(np.zeros(3))
    assert "different collectives" in str(broken.value)


def a_missing_rank_is_a_timeout_that_names_it(comm: Communicator) -> None:
    if comm.world_size == 1:
        pytest.skip("one rank is never missing")
    comm.all_reduce(np.zeros(2), name="before").wait()
    late = comm.world_size - 1
    if comm.rank != late:
        with pytest.raises(CollectiveTimeoutError) as caught:
            comm.all_reduce(np.zeros(3), name="lonely", timeout=0.2).wait()
        message = str(caught.value)
        assert f"rank {late} is missing" in message
        assert "name='before'" in message  # Its last collective.
        assert "name='lonely'" in message
        assert isinstance(caught.value, TimeoutError)
    else:
        # Comes when the others have given up, and does not hang. It may still find what they had
        # contributed, but the next call finds them gone.
        time.sleep(0.5)
        with pytest.raises(CommunicatorError):  # noqa: PT012
            for _ in range(2):
                comm.all_reduce(np.zeros(3), name="lonely", timeout=20.0).wait()


def a_rank_that_closes_is_named_to_those_who_wait(comm: Communicator) -> None:
    if comm.world_size == 1:
        comm.close()
        with pytest.raises(CommunicatorError, match="is closed"):
            comm.barrier()
        return
    comm.barrier()
    if comm.rank == 0:
        comm.close()
        comm.close()
        with pytest.raises(CommunicatorError, match="is closed"):
            comm.all_reduce(np.zeros(3))
        return
    with pytest.raises(RankLeftError, match=r"rank 0 closed its communicator") as caught:
        comm.all_reduce(np.zeros(3), name="late").wait()
    assert "name='late'" in str(caught.value)


def what_is_queued_behind_an_error_fails_too(comm: Communicator) -> None:
    if comm.world_size == 1:
        pytest.skip("one rank cannot disagree")
    works = [comm.all_reduce(np.zeros(3 + comm.rank), name="wrong")]
    # Refused at once, or later by wait(): that depends on how far the first one has come.
    with pytest.raises(CommunicatorError):  # noqa: PT012
        works.append(comm.all_reduce(np.zeros(3)))
        works[1].wait()
    with pytest.raises(CollectiveMismatchError):
        works[0].wait()
    with pytest.raises(CollectiveMismatchError):
        works[0].wait()


def waiting_has_a_timeout_of_its_own(comm: Communicator) -> None:
    if comm.world_size == 1:
        pytest.skip("one rank never waits")
    if comm.rank == 0:
        work = comm.all_reduce(np.ones(3), name="slow")
        with pytest.raises(TimeoutError, match=r"all_reduce 'slow' was not over"):
            work.wait(timeout=0.05)
        comm.send(np.zeros(1), 1).wait()  # Lets the others go on.
    else:
        if comm.rank == 1:
            comm.recv(np.zeros(1), 0).wait()
        work = comm.all_reduce(np.ones(3), name="slow")
    work.wait()
    assert (work.result == comm.world_size).all()


def close_finishes_what_is_queued(comm: Communicator) -> None:
    works = [comm.all_reduce(np.ones(50_000)) for _ in range(3)]
    comm.close()
    for work in works:
        work.wait()
        assert (work.result == comm.world_size).all()


CONTRACT = [
    all_reduce_is_the_rank_ordered_reduction,
    all_reduce_works_for_every_size,
    average_divides_by_the_number_of_ranks,
    sixteen_bit_sums_accumulate_in_float32,
    infinities_and_overflow_travel_without_a_warning,
    results_are_bitwise_equal_on_all_ranks,
    reduce_gives_the_result_to_the_root_only,
    broadcast_copies_the_root,
    all_gather_collects_by_rank,
    all_gather_takes_a_part_of_its_own_output,
    reduce_scatter_gives_each_rank_its_part,
    all_to_all_transposes_parts,
    any_shape_and_dtype_agrees_with_numpy,
    memory_of_allocate_gives_the_same_results,
    different_places_in_memory_are_no_mismatch,
    works_finish_in_any_order_of_waiting,
    a_work_may_be_waited_for_on_another_thread,
    a_work_runs_without_being_waited_for,
    a_work_keeps_its_array_alive,
    listeners_see_every_finished_work,
    an_error_of_a_listener_is_raised_by_wait,
    objects_are_broadcast_and_gathered,
    messages_pass_between_two_ranks,
    a_message_of_another_size_is_an_error,
    a_message_that_does_not_come_times_out,
    split_makes_groups_by_color_ordered_by_key,
    join_answers_for_ranks_without_data,
    join_leaves_memory_of_the_joined_rank_alone,
    join_without_anything_to_answer_returns,
    bad_arguments_are_refused_before_anybody_is_asked,
    waiting_has_a_timeout_of_its_own,
]
BREAKING = [
    a_missing_rank_is_a_timeout_that_names_it,
    a_rank_that_closes_is_named_to_those_who_wait,
    what_is_queued_behind_an_error_fails_too,
    close_finishes_what_is_queued,
]
