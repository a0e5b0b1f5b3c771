"""The contract of `Communicator`: objects, messages, groups and `join`. See `comm_contract`."""

from __future__ import annotations

import numpy as np
import pytest
from contract_values import (
    bits,
    reduced,
    values,
)

from dptrain.comm import (
    Communicator,
    CommunicatorError,
)


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


def messages_of_any_rank_say_who_sent_them(comm: Communicator) -> None:
    if comm.world_size == 1:
        return
    if comm.rank == 0:
        seen = {}
        for _ in range(comm.world_size - 1):
            note = np.zeros(2, np.int64)
            work = comm.recv(note, tag=3)
            work.wait()
            seen[work.peer] = note.tolist()
        assert seen == {rank: [rank, -rank] for rank in range(1, comm.world_size)}
        assert sorted(comm.recv_object()[0] for _ in seen) == sorted(seen)
    else:
        comm.send(np.array([comm.rank, -comm.rank]), 0, tag=3).wait()
        comm.send_object(comm.rank, 0)
    comm.barrier()


def objects_are_scattered_and_exchanged(comm: Communicator) -> None:
    ranks = range(comm.world_size)
    for root in ranks:
        mine = comm.scatter_object(["x" * r for r in ranks] if comm.rank == root else None, root)
        assert mine == "x" * comm.rank
    assert comm.all_to_all_object([(comm.rank, r) for r in ranks]) == [
        (r, comm.rank) for r in ranks
    ]
    with pytest.raises(ValueError, match="one object for each"):
        comm.all_to_all_object([0] * (comm.world_size + 1))


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


def a_message_of_another_type_is_an_error(comm: Communicator) -> None:
    if comm.world_size == 1:
        return
    if comm.rank == 0:
        comm.send(np.ones(3), 1).wait()
        comm.send(np.ones(3, np.int32), 1, tag=2).wait()
    elif comm.rank == 1:  # As many bytes each time: read as they are they would be other numbers.
        with pytest.raises(ValueError, match="type int64, but rank 0 sent float64"):
            comm.recv(np.zeros(3, np.int64), 0).wait()
        with pytest.raises(ValueError, match="type float32, but rank 0 sent int32"):
            comm.recv(np.zeros(3, np.float32), tag=2).wait()
    comm.barrier()


def a_message_that_does_not_come_times_out(comm: Communicator) -> None:
    if comm.world_size > 1 and comm.rank == 0:
        work = comm.recv(np.zeros(4), 1, tag=9, timeout=0.05)
        with pytest.raises(TimeoutError, match=r"recv of 32 bytes with rank 1 at .*timed out"):
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


def join_answers_for_ranks_without_data(comm: Communicator) -> None:
    size = 100_001
    room = comm.allocate(4 * size).view(np.float32)
    arrays = [np.zeros(3, np.float32), np.zeros(size, np.float32), room]
    for step in range(comm.rank + 1):
        ranks = range(step, comm.world_size)  # Rank r takes part in steps 0 to r.
        for array in arrays:
            shown = [values(rank, array.shape, array.dtype, 10 + step) for rank in ranks]
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
