"""Groups, backends and the default group, on ranks that are threads and on one rank."""

from __future__ import annotations

import datetime
import gc
import weakref

import pytest

import dptrain
import dptrain.distributed as dist
from dptrain.comm import run_ranks


@pytest.fixture
def alone():
    dist.init_process_group()
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"backend": "gloo"},
        {"backend": "MPI"},
        {"backend": "cpu:gloo,cuda:nccl"},
        {"backend": dist.Backend.GLOO, "init_method": "env://"},
        {"init_method": "tcp://127.0.0.1:29500", "world_size": 1, "rank": 0},
        {"timeout": datetime.timedelta(seconds=5)},
        {"timeout": 5.0, "group_name": "g", "device_id": dptrain.device("cpu")},
    ],
)
def test_every_form_of_init_starts_a_world_of_one(arguments):
    dist.init_process_group(**arguments)
    try:
        assert dist.get_world_size() == 1
        x = dptrain.ones(2)
        dist.all_reduce(x)
        assert x.tolist() == [1.0, 1.0]
        if "timeout" in arguments:
            assert dist.group.WORLD.communicator.timeout_s == 5.0
        if "cuda" in arguments.get("backend", ""):
            assert dist.get_backend_config() == "cpu:gloo,cuda:nccl"
            assert dist.get_backend() == "gloo"
    finally:
        dist.destroy_process_group()
    assert not dist.is_initialized()
    assert dist.group.WORLD is None


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"backend": "nccl"}, ValueError, "not available"),
        ({"backend": 3}, ValueError, "string"),
        ({"backend": "cpu:gloo,cpu:mpi"}, ValueError, "one device:backend pair"),
        ({"init_method": "foo://"}, RuntimeError, "No rendezvous handler"),
        ({"world_size": 2}, ValueError, "launcher"),
        ({"rank": 1}, ValueError, "launcher"),
        ({"store": object()}, ValueError, "store"),
    ],
)
def test_bad_arguments_of_init_are_refused(arguments, kind, words):
    with pytest.raises(kind, match=words):
        dist.init_process_group(**arguments)
    assert not dist.is_initialized()


def test_calls_without_a_group_say_so():
    for call in (dist.get_rank, dist.barrier, lambda: dist.all_reduce(dptrain.ones(1))):
        with pytest.raises(ValueError, match="Default process group has not been initialized"):
            call()
    with pytest.raises(AssertionError, match="cannot be None"):
        dist.destroy_process_group()


def test_the_group_of_all_ranks_cannot_be_initialised_twice(alone):
    with pytest.raises(ValueError, match="twice"):
        dist.init_process_group()


def test_groups_of_threads_number_their_ranks_and_reduce(alone):
    dist.destroy_process_group()

    def rank(comm):
        me = dist.get_rank()
        odd = dist.new_group([3, 1])
        backwards = dist.new_group([2, 0, 3], sort_ranks=False)
        assert (odd == dist.GroupMember.NON_GROUP_MEMBER) is (me % 2 == 0)
        x = dptrain.tensor([float(me)])
        if me % 2:
            assert dist.get_process_group_ranks(odd) == [1, 3]
            dist.all_reduce(x, group=odd)
            assert x.item() == 4.0
            dist.broadcast(x, 3, group=odd)
            with pytest.raises(ValueError, match="Global rank 0 is not part of group"):
                dist.broadcast(x, 0, group=odd)
        else:
            assert dist.get_rank(odd) == -1
            with pytest.warns(UserWarning, match="does not belong"):
                assert dist.all_reduce(x, group=odd) is None
        if me != 1:
            assert dist.get_group_rank(backwards, 2) == 0
            assert dist.get_global_rank(backwards, 0) == 2
        pair = dist.split_group(split_ranks=[[0, 2], [1, 3]])
        assert pair.ranks == [me % 2, me % 2 + 2]
        halves, listed = dist.new_subgroups(2)
        assert halves.ranks == [me // 2 * 2, me // 2 * 2 + 1]
        assert [one is halves for one in listed] == [me < 2, me >= 2]
        nested = dist.split_group(halves, [[1], [0]])
        assert nested.ranks == [me]

    run_ranks(4, rank)


def test_ranks_that_ask_for_different_groups_learn_it():
    def rank(comm):
        with pytest.raises(ValueError, match="ask for different groups"):
            dist.new_group([0, 1] if comm.rank else [0])

    run_ranks(2, rank)


def test_a_work_of_a_receive_from_any_rank_knows_its_source():
    def rank(comm):
        if comm.rank == 0:
            x = dptrain.zeros(3).reshape(3, 1).expand(3, 2).clone().t()  # not contiguous
            work = dist.irecv(x)
            work.wait()
            assert work.source_rank() == 1
            assert work.is_success()
            assert x.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        elif comm.rank == 1:
            dist.send(dptrain.arange(6.0).reshape(2, 3), 0)

    run_ranks(3, rank)


def test_monitored_barrier_names_the_ranks_that_are_missing():
    def rank(comm):
        if comm.rank == 2:
            return
        with pytest.raises(RuntimeError, match=r"monitored_barrier.*|rank 2") as caught:
            dist.monitored_barrier(timeout=datetime.timedelta(seconds=0.3))
        assert "rank 2" in str(caught.value)

    run_ranks(3, rank)


@pytest.mark.parametrize("sizes", [[1, 2, 3], [2, 0, 1]])
def test_lists_of_different_sizes(sizes):
    def rank(comm):
        me = comm.rank
        parts = [dptrain.zeros(size, 2) for size in sizes]
        dist.all_gather(parts, dptrain.full((sizes[me], 2), float(me)))
        assert all((part == r).all() for r, part in enumerate(parts))
        mine = dptrain.zeros(sizes[me])
        dist.reduce_scatter(mine, [dptrain.full((size,), float(me)) for size in sizes])
        assert mine.tolist() == [3.0] * sizes[me]
        got = [dptrain.zeros(sizes[me]) for _ in sizes]
        dist.all_to_all(got, [dptrain.full((size,), float(me)) for size in sizes])
        assert [g.tolist() for g in got] == [[float(r)] * sizes[me] for r in range(3)]

    run_ranks(3, rank)


def test_tensors_of_other_devices_are_refused_by_name(alone, host_devices):
    host_devices(2)
    away = dptrain.ones(2).to("cpu:1")
    for call in (
        lambda: dist.all_reduce(away),
        lambda: dist.all_gather([away], dptrain.ones(2)),
        lambda: dist.scatter(dptrain.ones(2), [away]),
    ):
        with pytest.raises(RuntimeError, match=r"No backend type associated with device cpu:1"):
            call()


def test_a_group_lives_no_longer_than_its_communicator():
    def rank(comm):
        dist.barrier()
        return weakref.ref(dist.group.WORLD), dist.group.WORLD is dist.GroupMember.WORLD

    found = run_ranks(2, rank)
    gc.collect()
    assert [(ref(), same) for ref, same in found] == [(None, True)] * 2


def test_a_future_raises_where_its_value_is_asked_for():
    def rank(comm):
        future = dist.all_reduce(dptrain.ones(2 + comm.rank), async_op=True).get_future()
        after = future.then(lambda done: done.value()[0])
        for _ in range(2):
            with pytest.raises(RuntimeError, match="different collectives"):
                after.wait()
        assert after.done()

    run_ranks(2, rank)
