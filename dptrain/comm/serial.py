"""A world of one rank: every collective is the identity.

Owns: `SerialCommunicator`. Must not know: other processes. It is a communicator like the others,
with the same checks, so that nothing else has to ask how many ranks there are.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from dptrain.comm.call import Call, Roster
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.communicator import DEFAULT_TIMEOUT_S
from dptrain.comm.movement import SharedTransport
from dptrain.comm.transport import Pending, Transport, Watch, private_memory

Array = np.ndarray[Any, Any]


class SerialTransport(SharedTransport):
    """Connects a rank with itself."""

    backend = "serial"
    rank = local_rank = 0
    world_size = local_world_size = 1
    small_nbytes = 0
    chunk_nbytes = None

    def __init__(self) -> None:
        self._source: Array | None = None

    def meet(self, record: bytes, source: Array | None, watch: Watch) -> list[bytes]:
        self._source = source
        return [record]

    def views(self, rows: int, columns: int, dtype: np.dtype[Any]) -> list[Array]:
        assert self._source is not None
        return [self._source]

    def move(self, call: Call, roster: Roster, watch: Watch) -> None:
        source, target = call.source, call.target
        # In place there is nothing to do; else the only part of the input is the result.
        if source is not None and target is not None and not np.may_share_memory(source, target):
            np.copyto(target, source.reshape(target.shape))

    def exchange(self, text: str, watch: Watch) -> list[str]:
        return [text]

    def split(self, color: int | None, key: int, watch: Watch) -> Transport | None:
        return None if color is None else SerialTransport()

    def allocate(self, nbytes: int, watch: Watch) -> Array:
        return private_memory(nbytes)

    def release(self, buffer: Array) -> None:
        pass  # It was private memory all along.

    def post_send(self, array: Array, dst: int, tag: int, dtype: str) -> Pending:
        raise AssertionError("a world of one has nobody to send to")

    def post_recv(self, array: Array, src: int | None, tag: int, dtype: str) -> Pending:
        raise AssertionError("a world of one has nobody to receive from")

    def abort(self, code: int) -> NoReturn:
        raise SystemExit(code)

    def leave(self, reason: str | None) -> None:
        self._source = None


class SerialCommunicator(TransportCommunicator):
    """The communicator of a program that runs as one rank."""

    def __init__(
        self, *, timeout_s: float = DEFAULT_TIMEOUT_S, warn_after_s: float | None = 30.0
    ) -> None:
        super().__init__(SerialTransport(), timeout_s=timeout_s, warn_after_s=warn_after_s)
