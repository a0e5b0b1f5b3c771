"""What the data room asks of the ranks: who is there, and who goes first.

Owns: `group_of_ranks`, `local_rank_zero_first`. Must not know: how ranks talk to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dptrain.comm.communicator import Communicator
from dptrain.comm.default import default_communicator, is_initialized
from dptrain.comm.env import discover
from dptrain.comm.errors import rank_prefix


def group_of_ranks(what: str) -> Communicator:
    """The default communicator, refused where it would be one of several silent worlds of one.

    Args:
        what: what it is needed for, for the message.

    Raises:
        RuntimeError: a launcher started several ranks, and the process group is not initialised.
    """
    if not is_initialized():
        environment = discover()
        if environment.world_size > 1:
            raise RuntimeError(
                f"{rank_prefix(environment.rank, environment.world_size)} {what} needs to know the ranks: "
                f"{environment.launcher} started {environment.world_size} ({environment.source}), but the "
                "process group is not initialized; call dptrain.distributed.init_process_group() first"
            )
    return default_communicator()


def known_ranks() -> tuple[int, int] | None:
    """This rank and the number of ranks; None while that is not settled (see `group_of_ranks`)."""
    try:
        group = group_of_ranks("")
    except RuntimeError:
        return None
    return group.rank, group.world_size


@contextmanager
def local_rank_zero_first(what: str) -> Iterator[None]:
    """Run the block on local rank 0 of every host, then on the other ranks.

    A collective call: every rank of the default communicator must come to it. If the block fails on
    some local rank 0, that rank raises its own error, and all other ranks a RuntimeError that quotes
    it, none of them being left to wait.

    Args:
        what: what the block does, for the message, such as "downloading MNIST".
    """
    communicator = group_of_ranks(what)
    first = communicator.local_rank == 0
    failure: Exception | None = None
    if first:
        try:
            yield
        except (
            Exception
        ) as error:  # an exit or Ctrl-C ends this rank, which the others notice anyway
            failure = error
    report = None if failure is None else f"{type(failure).__name__}: {failure}"
    reports = communicator.all_gather_object(report)
    if failure is not None:
        raise failure
    failed = [rank for rank, text in enumerate(reports) if text is not None]
    if failed:
        raise RuntimeError(
            f"{rank_prefix(communicator.rank, communicator.world_size)} {what} failed on rank "
            f"{failed[0]}, which goes first on its host: {reports[failed[0]]}"
        )
    if not first:
        yield
