"""What all transports over MPI have in common: messages between two ranks, and the end of the job.

Owns: sends and receives over MPI, abort. Must not know: collectives.
"""

from __future__ import annotations

import sys
from abc import ABC
from typing import Any

import numpy as np
from mpi4py import MPI

from dptrain.comm.transport import Pending, Transport

Array = np.ndarray[Any, Any]
# MPI counts in 32-bit integers before version 4; a longer message goes as several.
MESSAGE_NBYTES = 1 << 30


class _Requests(Pending):
    """The pieces of one message under way."""

    def __init__(self, requests: list[MPI.Request], dst: int) -> None:
        super().__init__(dst)
        self._requests = requests

    def test(self) -> bool:
        return MPI.Request.Testall(self._requests)


class _Receives(Pending):
    """The pieces of one message to come, checked for their sizes."""

    def __init__(self, link: MpiLink, array: Array, src: int | None, tag: int) -> None:
        super().__init__(src)
        self._nbytes = array.size
        self._pieces = pieces(array)
        if src is None and len(self._pieces) > 1:
            raise ValueError(
                f"recv from any rank takes messages of up to {MESSAGE_NBYTES} bytes, got room for "
                f"{array.size}; name the source"
            )
        self._requests = [
            link.messages.Irecv(
                [piece, MPI.BYTE], source=MPI.ANY_SOURCE if src is None else src, tag=tag
            )
            for piece in self._pieces
        ]

    def test(self) -> bool:
        statuses = [MPI.Status() for _ in self._requests]
        whose = "" if self.peer is None else f" of rank {self.peer}"
        try:
            if not MPI.Request.Testall(self._requests, statuses):
                return False
        except MPI.Exception as error:
            raise ValueError(
                f"recv has room for {self._nbytes} bytes, but the message{whose} is "
                f"longer ({error})"
            ) from None
        received = sum(status.Get_count(MPI.BYTE) for status in statuses)
        self.peer = statuses[0].Get_source()
        if received != self._nbytes:
            raise ValueError(
                f"recv has room for {self._nbytes} bytes, but rank {self.peer} sent {received}"
            )
        return True


class MpiLink(Transport, ABC):
    """The part of a transport that talks to MPI.

    Args:
        comm: a communicator of its own for this transport; owned from now on.

    Attributes:
        comm: used by the thread that runs the collectives only.
        messages: a duplicate for sends and receives, which any thread may start.
    """

    backend = "mpi"

    def __init__(self, comm: MPI.Intracomm, local_rank: int, local_world_size: int) -> None:
        self.comm = comm
        self.messages = comm.Dup()
        self.rank = comm.rank
        self.world_size = comm.size
        self.local_rank = local_rank
        self.local_world_size = local_world_size

    def post_send(self, array: Array, dst: int, tag: int) -> Pending:
        requests = [
            self.messages.Isend([piece, MPI.BYTE], dest=dst, tag=tag) for piece in pieces(array)
        ]
        return _Requests(requests, dst)

    def post_recv(self, array: Array, src: int | None, tag: int) -> Pending:
        return _Receives(self, array, src, tag)

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(code)


def pieces(array: Array) -> list[Array]:
    """A (nbytes,) array cut into what one message of MPI can carry; at least one piece."""
    count = max(-(-array.size // MESSAGE_NBYTES), 1)
    return [array[i * MESSAGE_NBYTES : (i + 1) * MESSAGE_NBYTES] for i in range(count)]


def failed_ranks(comm: MPI.Intracomm) -> list[int]:
    """The ranks of `comm` that MPI knows to have died; none where MPI cannot tell."""
    try:
        found = comm.Get_group().Translate_ranks(range(comm.size), comm.Get_failed())
    except (NotImplementedError, MPI.Exception):
        return []
    return [rank for rank, among in enumerate(found) if among != MPI.UNDEFINED]
