"""Captured steps of ranks that train together: what NCCL does is in the graph, the rest is agreed upon.

Over stand-ins, with one rank; on a GPU: `test_compile_gpu.py`.
"""

from functools import partial

import fake_nccl
import pytest
from captured import COMPILER, optimizer_of, stepper, train
from thread_ranks import on_ranks

import dptrain
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.nccl import NcclTransport
from dptrain.compiler.ranks import Ranks, Wish
from dptrain.compiler.state import Survey
from dptrain.parallel import DistributedDataParallel

compiled = pytest.mark.skipif(COMPILER is None, reason="no g++ to run the CUDA kernels with")


def wrapped(comm, **options):
    """A step of a model with buffers whose gradients are averaged."""
    wrap = partial(DistributedDataParallel, process_group=comm, **options)
    return stepper(optimizer_of("AdamW"), wrap=wrap)


@compiled
def test_a_step_whose_gradients_nccl_averages(gpu):
    def rank(comm):
        library = fake_nccl.Library()
        with TransportCommunicator(NcclTransport(comm._transport, 0, library)) as ours:
            losses, left, _ = train(wrapped(ours), 8, compiled=False)
            calls = len(library.calls)
            found, kept, report = train(wrapped(ours), 8, compiled=True)
            assert len(library.calls) - calls < calls  # a replay makes none of its own
            return found == losses, kept == left, report.replays

    assert on_ranks(1, rank) == [(True, True, 5)]


@compiled
@pytest.mark.parametrize(
    ("options", "reason"),
    [({}, "through the host by backend 'thread'"), ({"weighted": True}, "decided on the host")],
)
def test_averages_that_the_host_makes_are_not_recorded(gpu, options, reason):
    def rank(comm):
        if options:
            transport = NcclTransport(comm._transport, 0, fake_nccl.Library())
            with TransportCommunicator(transport) as ours:
                return steps(ours)
        return steps(comm)

    def steps(comm):
        model, optimizer, step = wrapped(comm, **options)()
        call = dptrain.compile(step)
        with pytest.warns(UserWarning, match=reason):
            train(lambda: (model, optimizer, call), 4, compiled=False)
        return dptrain.compiler.explain(call).replays

    assert on_ranks(1, rank) == [0]


def test_ranks_do_the_same_or_each_as_it_is():
    def rank(comm):
        ranks = Ranks(Survey())
        ranks._groups = [comm]
        mine = Wish.REPLAY if comm.rank else Wish.AS_IT_IS
        return ranks.agree(Wish.REPLAY), ranks.agree(mine), ranks.agree(Wish.RECORD)

    assert on_ranks(2, rank) == [(True, False, True)] * 2


def test_a_rank_without_data_is_not_ready_for_a_replay():
    def rank(comm):
        ranks = Ranks(Survey())
        ranks._groups = [comm]
        if comm.rank:
            comm.join()
            return None
        found = ranks.agree(Wish.REPLAY)
        comm.join()
        return found

    assert on_ranks(2, rank) == [False, None]
