"""The launcher's end of the side channel.

Owns: the listening socket, which connections belong to the job, who the ranks are and what they
last said. Must not know: processes, mpirun, what a failure leads to. Nothing that arrives here can
raise: a connection that is not one of ours, or that breaks the protocol, is dropped.
"""

from __future__ import annotations

import contextlib
import secrets
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from . import protocol
from .protocol import Address, LineReader, Message, ProtocolError

_READ_NBYTES = 1 << 16


@dataclass
class RankState:
    """What the hub knows of a rank.

    Attributes:
        beat: the last beat, or None.
        exit_code: the exit status it announced, or None.
    """

    rank: int
    local_rank: int
    pid: int
    host: str
    beat: Message | None = None
    exit_code: int | None = None


class Event(NamedTuple):
    """A message (error, bye or stacks) from a rank, or with None its connection's end."""

    rank: int
    message: Message | None


class Hub:
    """Accepts the ranks' connections; sockets are served by the owner's selector.

    Every key of the selector has a function without arguments as its data, to be called when ready.

    Args:
        selector: where the sockets are registered.
        world_size: number of ranks expected.
        on_output: called with (rank, stream name, bytes); an OSError from it closes that stream, so
            that the rank sees the broken pipe.
        reachable: listen on all interfaces, for ranks on other hosts.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        world_size: int,
        on_output: Callable[[int, str, bytes], None],
        *,
        reachable: bool = False,
    ) -> None:
        self._selector = selector
        self._world_size = world_size
        self._on_output = on_output
        self._listener = socket.create_server(("" if reachable else "127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        host = socket.gethostname() if reachable else "127.0.0.1"
        self.address = Address(host, self._listener.getsockname()[1], secrets.token_hex(16))
        self.ranks: dict[int, RankState] = {}
        self._connections: set[_Connection] = set()
        self._control: dict[int, _Connection] = {}
        self._events: list[Event] = []

    def take_events(self) -> list[Event]:
        """The events since the last call, in order of arrival."""
        events, self._events = self._events, []
        return events

    def send(self, rank: int, message: Message) -> None:
        """Sends to a rank, if it is connected; never blocks."""
        connection = self._control.get(rank)
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.sock.send(protocol.encode(message))

    def broadcast(self, message: Message) -> None:
        """Sends to every connected rank."""
        for rank in list(self._control):
            self.send(rank, message)

    def is_connected(self, rank: int) -> bool:
        """Whether the rank's control connection is open."""
        return rank in self._control

    @property
    def is_idle(self) -> bool:
        """Whether every connection of the job has ended."""
        return not any(connection.rank is not None for connection in self._connections)

    def close(self) -> None:
        """Closes every socket."""
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        connection = _Connection(sock)
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.sock.recv(_READ_NBYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        try:
            self._feed(connection, data)
        except (ProtocolError, OSError):
            self._drop(connection)

    def _feed(self, connection: _Connection, data: bytes) -> None:
        if connection.rank is None:
            connection.greeting += data
            end = connection.greeting.find(b"\n") + 1
            if end == 0:
                if len(connection.greeting) > _READ_NBYTES:
                    raise ProtocolError("no greeting")
                return
            self._greet(connection, protocol.decode(bytes(connection.greeting[:end])))
            data = bytes(connection.greeting[end:])
        assert connection.rank is not None
        if connection.stream is not None:
            if data:
                self._on_output(connection.rank, connection.stream, data)
            return
        for message in connection.reader.feed(data):
            self._receive(connection.rank, message)

    def _greet(self, connection: _Connection, message: Message) -> None:
        token, rank = message.get("token"), message.get("rank")
        if not isinstance(token, str) or not secrets.compare_digest(
            token.encode("utf-8", "replace"), self.address.token.encode()
        ):
            raise ProtocolError("wrong token")
        if type(rank) is not int or not 0 <= rank < self._world_size:
            raise ProtocolError(f"no rank {rank!r} in a job of {self._world_size}")
        if message["kind"] == "stream" and message.get("name") in protocol.STREAMS:
            connection.stream = message["name"]
        elif message["kind"] == "hello" and rank not in self.ranks:
            details = [message.get(name) for name in ("local_rank", "pid")]
            local_rank, pid = (value if type(value) is int else -1 for value in details)
            self.ranks[rank] = RankState(rank, local_rank, pid, str(message.get("host"))[:255])
            self._control[rank] = connection
        else:
            raise ProtocolError(f"unexpected greeting of rank {rank}")
        connection.rank = rank

    def _receive(self, rank: int, message: Message) -> None:
        kind = message["kind"]
        state = self.ranks[rank]
        if kind == "beat":
            state.beat = message
        elif kind in ("bye", "error"):
            code = message.get("code")
            state.exit_code = code & 0xFF if type(code) is int else 1
            self._events.append(Event(rank, message))
        elif kind == "stacks":
            self._events.append(Event(rank, message))

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection.sock)
        connection.sock.close()
        rank = connection.rank
        if rank is not None and self._control.get(rank) is connection:
            del self._control[rank]
            self._events.append(Event(rank, None))


class _Connection:
    """One accepted socket; ``rank`` is None until it greets, ``stream`` unless it is output."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.greeting = bytearray()
        self.reader = LineReader()
        self.rank: int | None = None
        self.stream: str | None = None
