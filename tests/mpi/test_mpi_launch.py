"""What only processes show: agreement with the launcher, idle waiting, shared windows."""

from __future__ import annotations

import time

import numpy as np
import pytest

from dptrain.comm import CommunicatorError
from dptrain.comm.env import ProcessEnv, discover

pytestmark = pytest.mark.mpi


def test_ranks_are_those_of_the_launcher(comm):
    found = discover()
    assert (found.rank, found.world_size) == (comm.rank, comm.world_size)
    assert found.local_world_size == comm.local_world_size
    # Which rank of a host is its first is the launcher's own choice; each is there once.
    assert sorted(comm.all_gather_object(comm.local_rank)) == list(range(comm.world_size))
    assert comm.backend == "mpi"


def test_another_mpi_than_the_launchers_is_an_error_that_names_both():
    from dptrain.comm.mpi import check_launch

    library = "Some MPI v9.9, built somewhere\0"
    started = ProcessEnv(rank=1, world_size=4, source="RANK, WORLD_SIZE", launcher="dprun")
    with pytest.raises(RuntimeError, match=r"dprun .* rank 1 of 4 \(RANK, WORLD_SIZE\)") as caught:
        check_launch(started, 0, 1, library)
    assert "MPI says rank 0 of 1" in str(caught.value)
    assert "'Some MPI v9.9, built somewhere'" in str(caught.value)
    with pytest.raises(RuntimeError, match="rank 2 of 4"):
        check_launch(started, 2, 4, library)
    check_launch(started, 1, 4, library)
    check_launch(ProcessEnv(), 0, 1, library)


def test_waiting_leaves_the_core_to_others(comm):
    comm.barrier()
    begin_s, used_s = time.perf_counter(), time.process_time()
    if comm.rank == comm.world_size - 1 and comm.world_size > 1:
        time.sleep(0.4)  # Not a synchronisation: the time that the others have to wait.
    comm.barrier()
    waited_s = time.perf_counter() - begin_s
    if waited_s > 0.2:
        assert time.process_time() - used_s < 0.5 * waited_s


def test_memory_of_a_closed_communicator_stays_usable(comm):
    room = comm.allocate(1 << 16)
    room[:] = 3
    comm.barrier()
    comm.close()
    assert (room == 3).all()
    with pytest.raises(CommunicatorError, match="is closed"):
        comm.all_reduce(np.zeros(3))


def test_windows_are_reduced_where_they_lie_and_by_every_rank(comm):
    room = comm.allocate(1 << 20).view(np.float32)
    position = comm._transport.position(room[5:])
    shared = comm._transport.__class__.__name__ == "HostTransport"
    assert position == ((0, 20) if shared else (-1, 0))
    room[:] = comm.rank
    copies = [room.copy() for _ in range(3)]
    comm.all_reduce(room).wait()
    for copy in copies:
        comm.all_reduce(copy, async_op=False)
        assert np.array_equal(copy, room)


def test_many_small_calls_in_a_row_stay_in_step(comm):
    total = comm.world_size * (comm.world_size - 1) // 2
    works = []
    for step in range(150):
        works.append(comm.all_reduce(np.array([step, comm.rank])))
        if step % 7 == 0:
            comm.barrier()
    for step, work in enumerate(works):
        work.wait()
        assert work.result.tolist() == [step * comm.world_size, total]


def test_what_is_too_long_for_one_piece_moves_in_several(comm, monkeypatch):
    from dptrain.comm import mpi_link, mpi_network

    monkeypatch.setattr(mpi_link, "MESSAGE_NBYTES", 1000)
    monkeypatch.setattr(mpi_network, "_CHUNK_NBYTES", 100_000)
    n, size = comm.world_size, 120_001
    array = np.arange(size, dtype=np.float32) * (comm.rank + 1)
    comm.all_reduce(array).wait()
    assert np.array_equal(array, np.arange(size, dtype=np.float32) * (n * (n + 1) // 2))
    out = np.zeros((n, size), np.int32)
    comm.all_gather(out, np.full(size, comm.rank, np.int32)).wait()
    assert np.array_equal(out, np.repeat(np.arange(n, dtype=np.int32), size).reshape(n, size))
    wide = out.copy()
    comm.all_to_all(out, wide).wait()
    assert (out == comm.rank).all()
    part = np.zeros((1, size), np.int32)
    comm.reduce_scatter(part, wide).wait()
    assert (part == n * comm.rank).all()
    comm.broadcast(part, n - 1).wait()
    assert (part == n * (n - 1)).all()
    outs = [np.zeros(size + rank, np.int16) for rank in range(n)]
    comm.all_gather_uneven(outs, np.full(size + comm.rank, comm.rank, np.int16)).wait()
    assert all((out == rank).all() for rank, out in enumerate(outs))
    if n > 1:
        work = comm.send(np.full(5001, comm.rank, np.int16), (comm.rank + 1) % n)
        received = np.zeros(5001, np.int16)
        comm.recv(received, (comm.rank - 1) % n).wait()
        work.wait()
        assert (received == (comm.rank - 1) % n).all()


def test_processors_that_reorder_writes_get_a_memory_barrier(comm, monkeypatch):
    from dptrain.comm import mpi_host
    from dptrain.comm.mpi import connect

    monkeypatch.setattr(mpi_host.platform, "machine", lambda: "aarch64")
    with connect(timeout_s=20.0) as other:
        assert other._transport._order_memory is not None
        for step in range(20):
            array = np.full(40_000, step)
            other.all_reduce(array).wait()
            assert (array == step * comm.world_size).all()


def test_gigabytes_that_32_bits_do_not_count(comm):
    size = 2**31 + 3
    if comm.world_size != 2:
        pytest.skip("for two ranks, which need 8 GiB together")
    array = np.full(size, comm.rank + 1, np.uint8)
    comm.broadcast(array, 1).wait()
    array[-1] += comm.rank
    comm.all_reduce(array, "max").wait()
    assert array[-1] == 3
    assert array[0] == array[-2] == 2
    if comm.rank == 0:
        comm.send(array, 1).wait()
    else:
        array[:] = 0
        comm.recv(array, 0).wait()
        assert array[-1] == 3
        assert array[2**31] == 2
