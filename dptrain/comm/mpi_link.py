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

    def __init__(self, requests: list[MPI.Request]) -> None:
        self._requests = requests

    def test(self) -> bool:
        return MPI.Request.Testall(self._requests)


class _Receives(Pending):
    """The pieces of one message to come, checked for their sizes."""

    def __init__(self, link: MpiLink, array: Array, src: int, tag: int) -> None:
        self._nbytes, self._src = array.size, src
        self._pieces = _pieces(array)
        self._requests = [
            link.messages.Irecv([piece, MPI.BYTE], source=src, tag=tag) for piece in self._pieces
        ]

    def test(self) -> bool:
        statuses = [MPI.Status() for _ in self._requests]
        try:
            if not MPI.Request.Testall(self._requests, statuses):
                return False
        except MPI.Exception as error:
            raise ValueError(
                f"recv has room for {self._nbytes} bytes, but the message of rank {self._src} is "
                f"longer ({error})"
            ) from None
        received = sum(status.Get_count(MPI.BYTE) for status in statuses)
        if received != self._nbytes:
            raise ValueError(
                f"recv has room for {self._nbytes} bytes, but rank {self._src} sent {received}"
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
        return _Requests(
            [self.messages.Isend([piece, MPI.BYTE], dest=dst, tag=tag) for piece in _pieces(array)]
        )

    def post_recv(self, array: Array, src: int, tag: int) -> Pending:
        return _Receives(self, array, src, tag)

    def abort(self, code: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(code)


def _pieces(array: Array) -> list[Array]:
    count = max(-(-array.size // MESSAGE_NBYTES), 1)
    return [array[i * MESSAGE_NBYTES : (i + 1) * MESSAGE_NBYTES] for i in range(count)]
