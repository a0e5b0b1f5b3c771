"""What all transports over MPI have in common: messages between two ranks, and the end of the job.

Owns: sends and receives over MPI, abort. Must not know: collectives.
"""

from __future__ import annotations

import sys
import time
from abc import ABC
from typing import Any

import numpy as np
from mpi4py import MPI

from dptrain.comm.reduction import DTYPE_NAMES
from dptrain.comm.transport import Pending, Transport

Array = np.ndarray[Any, Any]
# MPI counts in 32-bit integers before version 4; a longer message goes as several.
MESSAGE_NBYTES = 1 << 30
# How long a receive waits before it looks for a message of another type in its place.
_LOOK_S = 0.05


class _Requests(Pending):
    """The pieces of one message under way."""

    def __init__(self, requests: list[MPI.Request], dst: int) -> None:
        super().__init__(dst)
        self._requests = requests

    def test(self) -> bool:
        return MPI.Request.Testall(self._requests)


class _Receives(Pending):
    """The pieces of one message to come, checked for their sizes and types."""

    def __init__(self, link: MpiLink, array: Array, src: int | None, tag: int, dtype: str) -> None:
        super().__init__(src)
        self._messages, self._tag, self._dtype = link.messages, tag, dtype
        self._nbytes = array.size
        self._pieces = pieces(array)
        if src is None and len(self._pieces) > 1:
            raise ValueError(
                f"recv from any rank takes messages of up to {MESSAGE_NBYTES} bytes, got room for "
                f"{array.size}; name the source"
            )
        self._source = MPI.ANY_SOURCE if src is None else src
        self._requests = [
            link.messages.Irecv([piece, MPI.BYTE], source=self._source, tag=_typed(tag, dtype))
            for piece in self._pieces
        ]
        self._look_at_s = time.monotonic() + _LOOK_S

    def test(self) -> bool:
        statuses = [MPI.Status() for _ in self._requests]
        whose = "" if self.peer is None else f" of rank {self.peer}"
        try:
            if not MPI.Request.Testall(self._requests, statuses):
                self._look_for_other_types()
                return False
        except MPI.Exception as error:
            raise ValueError(
                f"recv has room for {self._nbytes} bytes, but the message{whose} is "
                f"longer ({error})"
            ) from None
        received = sum(status.Get_count(MPI.BYTE) for status in statuses)
        self.peer = statuses[0].Get_source()
        self.check((self._nbytes, self._dtype), (received, self._dtype), self.peer)
        return True

    def _look_for_other_types(self) -> None:
        if time.monotonic() < self._look_at_s:
            return
        status = MPI.Status()
        for other in DTYPE_NAMES:
            if other != self._dtype and self._messages.Iprobe(
                self._source, _typed(self._tag, other), status
            ):
                for request in self._requests:
                    request.Cancel()
                    request.Free()
                # The size of the other message may be anything.
                self.check((self._nbytes, self._dtype), (self._nbytes, other), status.Get_source())
        self._look_at_s = time.monotonic() + _LOOK_S


def _typed(tag: int, dtype: str) -> int:
    """The tag under which a message of these elements travels: their type is a part of it."""
    return tag * len(DTYPE_NAMES) + DTYPE_NAMES.index(dtype)


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

    def post_send(self, array: Array, dst: int, tag: int, dtype: str) -> Pending:
        requests = [
            self.messages.Isend([piece, MPI.BYTE], dest=dst, tag=_typed(tag, dtype))
            for piece in pieces(array)
        ]
        return _Requests(requests, dst)

    def post_recv(self, array: Array, src: int | None, tag: int, dtype: str) -> Pending:
        return _Receives(self, array, src, tag, dtype)

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
