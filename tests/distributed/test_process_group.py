"""Groups, backends and the default group, on ranks that are threads and on one rank."""

from __future__ import annotations

import datetime
import gc
import weakref

import fake_cupy
import fake_nccl
import pytest

import dptrain
import dptrain.distributed as dist
from dptrain.comm import nccl, run_ranks
from dptrain.core import cuda
from dptrain.distributed import backends


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
        ({"backend": "smoke"}, ValueError, "not available"),
        ({"backend": "cpu:gloo,cuda:smoke"}, ValueError, "not available"),
        ({"backend": 3}, ValueError, "string"),
        ({"backend": "cpu:gloo,cpu:mpi"}, ValueError, "one device:backend pair"),
        ({"init_method": "foo://"}, RuntimeError, "No rendezvous handler"),
        ({"world_size": 2}, ValueError, "launcher"),
        ({"rank": 1}, ValueError, "launcher"),
        ({"store": object()}, TypeError, "must be a Store, got object"),
        ({"store": dist.HashStore(), "rank": 0}, AssertionError, "world_size must be positive"),
        ({"store": dist.HashStore(), "world_size": 1}, AssertionError, "rank must be non-negative"),
        ({"store": dist.HashStore(), "init_method": "env://"}, AssertionError, "both init_method"),
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


def test_nccl_without_a_gpu_says_why(monkeypatch):
    gone = cuda.Probe("14.2.0", toolkit=13020, driver=13000, count=0, status=100, visible="")
    monkeypatch.setattr(cuda, "probe", lambda: gone)
    with pytest.raises(
        RuntimeError, match=r"'nccl' was asked for, but no GPU is visible: CUDA_VIS"
    ):
        dist.init_process_group("nccl")
    assert not dist.is_initialized()
    dist.init_process_group("cpu:gloo,cuda:nccl")  # no GPU was asked for yet
    dist.destroy_process_group()


def test_with_gpus_the_backend_is_nccl_unless_another_is_named(monkeypatch):
    library = fake_nccl.Library()
    monkeypatch.setattr(nccl, "binding", lambda: library)
    monkeypatch.setattr(backends, "find_spec", lambda name: True)
    with fake_cupy.installed(monkeypatch):
        for arguments, expected in (
            ({}, "nccl"),
            ({"backend": "nccl"}, "nccl"),
            ({"backend": "cpu:gloo,cuda:nccl"}, "nccl"),
            ({"backend": "gloo"}, "serial"),
            ({"backend": "nccl", "device_id": dptrain.device("cuda:1")}, "nccl"),
        ):
            dist.init_process_group(**arguments)
            assert dist.group.WORLD.communicator.backend == expected
            place = "cuda:1" if "device_id" in arguments else "cuda:0"
            if expected == "nccl":
                assert dptrain.cuda.current_device() == int(place[-1])
            x = dptrain.ones(2).to(place)
            dist.all_reduce(x)
            dist.barrier()
            assert x.tolist() == [1.0, 1.0]
            dist.destroy_process_group()
    assert [name for _, name, _ in library.calls].count("NcclCommunicator") == 4
