"""Work that one rank per host does first."""

import pytest

from dptrain.comm.thread import run_ranks
from dptrain.data import local_rank_zero_first


def test_local_rank_zero_goes_first():
    order = []

    def work(communicator):
        with local_rank_zero_first("writing"):
            order.append(communicator.local_rank)

    run_ranks(4, work)
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2, 3]


def test_a_failure_of_local_rank_zero_reaches_every_rank():
    def work(communicator):
        try:
            with local_rank_zero_first("downloading"):
                if communicator.rank == 0:
                    raise OSError("no network")
                pytest.fail("the others must not begin")
        except (OSError, RuntimeError) as error:
            return type(error), str(error)

    results = run_ranks(3, work)
    assert results[0] == (OSError, "no network")
    for rank in (1, 2):
        kind, text = results[rank]
        assert kind is RuntimeError
        assert text.startswith(f"[rank {rank}/3] downloading failed on rank 0")
        assert "OSError: no network" in text


def test_a_world_of_one_just_does_it():
    done = []
    with local_rank_zero_first("writing"):
        done.append(True)
    assert done == [True]
    with pytest.raises(KeyError, match="x"), local_rank_zero_first("writing"):
        raise KeyError("x")


def test_several_started_ranks_without_a_group_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"\[rank 0/2\] writing needs to know the ranks"):
        local_rank_zero_first("writing").__enter__()
