"""The contract of `Communicator`: bad arguments, and errors that break a communicator. See `comm_contract`."""

from __future__ import annotations

import time

import numpy as np
import pytest

from dptrain.comm import (
    CollectiveMismatchError,
    CollectiveTimeoutError,
    Communicator,
    CommunicatorError,
    RankLeftError,
)


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
    with pytest.raises(TypeError, match="BAND was asked for float32"):
        comm.all_reduce(good, "band")
    with pytest.raises(ValueError, match="one array for each"):
        comm.all_gather_uneven([good] * (n + 1), good)
    with pytest.raises(ValueError, match=r"outs\[0\] has dtype float64; expected float32"):
        comm.all_gather_uneven([np.zeros(2)] * n, good)
    with pytest.raises(ValueError, match="different memory"):
        comm.all_to_all_uneven([good] * n, [good] * n)
    with pytest.raises(ValueError, match="needs out on the root"):
        comm.gather(None, good, comm.rank)
    with pytest.raises(ValueError, match=r"expected shape .* which is \(world_size"):
        comm.scatter(good, good, comm.rank)
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
