"""Ranks as threads: results, failures, contexts."""

from __future__ import annotations

import contextvars
import threading

import numpy as np
import pytest

from dptrain.comm import CollectiveMismatchError, CommunicatorError, RankLeftError, run_ranks
from dptrain.comm.serial import SerialCommunicator
from dptrain.comm.thread import connect


def test_results_come_by_rank_and_arguments_are_passed():
    assert run_ranks(3, lambda comm, a, b: (comm.rank, a, b), 1, b=2) == [
        (0, 1, 2),
        (1, 1, 2),
        (2, 1, 2),
    ]


def test_the_first_exception_is_raised_with_its_rank_and_stops_those_who_wait():
    def fail(comm):
        comm.barrier()
        if comm.rank == 1:
            raise KeyError("lost")
        comm.all_reduce(np.zeros(3)).wait()

    with pytest.raises(KeyError, match=r"\[rank 1/4\] lost"):
        run_ranks(4, fail)


def test_an_exception_without_a_message_carries_its_rank_as_a_note():
    def fail(comm):
        raise AssertionError

    with pytest.raises(AssertionError) as caught:
        run_ranks(1, fail)
    assert caught.value.__notes__ == ["[rank 0/1] raised this"]


def test_a_mismatch_is_raised_once_with_one_prefix():
    def fail(comm):
        comm.all_reduce(np.zeros(3 + comm.rank), async_op=False)

    with pytest.raises(CollectiveMismatchError) as caught:
        run_ranks(2, fail)
    assert str(caught.value).count("[rank ") == 1


def test_abort_stops_groups_that_were_split_off():
    def fail(comm):
        group = comm.split(comm.rank // 2)
        if comm.rank == 3:
            comm.abort(5)
        elif comm.rank < 2:
            comm.barrier()
        else:
            group.barrier()

    with pytest.raises(RankLeftError, match=r"aborted the job with code 5"):
        run_ranks(4, fail)


def test_each_rank_has_its_own_context():
    variable = contextvars.ContextVar("variable", default=-1)
    variable.set(7)

    def change(comm):
        before = variable.get()
        variable.set(comm.rank)
        comm.barrier()
        return before, variable.get()

    assert run_ranks(3, change) == [(7, 0), (7, 1), (7, 2)]
    assert variable.get() == 7


def test_no_thread_outlives_its_communicator():
    before = set(threading.enumerate())

    def use(comm):
        for _ in range(3):
            comm.all_reduce(np.ones(3)).wait()

    run_ranks(3, use)
    assert set(threading.enumerate()) <= before


def test_no_thread_is_started_for_calls_that_are_not_asynchronous():
    names = []

    def use(comm):
        comm.all_reduce(np.ones(3), async_op=False)
        comm.all_gather_object("x")
        comm.barrier()
        names.extend(thread.name for thread in threading.enumerate())

    run_ranks(2, use)
    assert not [name for name in names if "comm" in name]


def test_a_world_needs_a_rank():
    with pytest.raises(ValueError, match="1 or more, got 0"):
        connect(0)


def test_serial_abort_ends_the_program():
    comm = SerialCommunicator()
    with pytest.raises(SystemExit) as caught:
        comm.abort(3)
    assert caught.value.code == 3
    with pytest.raises(CommunicatorError, match="aborted with code 3"):
        comm.barrier()
