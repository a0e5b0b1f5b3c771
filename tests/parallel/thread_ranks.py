"""Running a function on thread ranks, each with its own default group and generator."""

from dptrain.comm.default import set_default
from dptrain.comm.thread import run_ranks
from dptrain.core.random import Generator, set_shard, use_generator


def on_ranks(world_size, function, *args):
    """Run `function(comm, *args)` on thread ranks and return what they return, by rank."""

    def rank(comm, *rest):
        set_default(comm)
        set_shard(comm.rank)  # as init_process_group does
        with use_generator(Generator().manual_seed(0)):
            return function(comm, *rest)

    return run_ranks(world_size, rank, *args)


def errors_on_ranks(world_size, function):
    """The exception of every rank; None where there was none."""

    def rank(comm):
        try:
            function(comm)
        except Exception as error:
            return error
        return None

    return on_ranks(world_size, rank)
