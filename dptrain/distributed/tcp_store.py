"""A key-value store behind a socket.

Owns: `TCPStore`, its server and the framing of messages. Must not know: what is stored.

A message is its length in four bytes and then the text that `encode` makes. The server has one
thread for each connection, so that a request may wait there for a key; a client opens a further
connection while all that it has are waiting.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

from dptrain.comm.errors import NetworkError
from dptrain.distributed.stores import DEFAULT_TIMEOUT, TableStore
from dptrain.distributed.table import OPERATIONS, DistStoreError, Table, decode, encode

_LENGTH = struct.Struct("!I")
_CLIENTS = "init/"
#: How much longer than a request may wait a client waits for the answer to it.
_GRACE_S = 30.0
_RETRY_S = 0.05


def _send(connection: socket.socket, message: Any) -> None:
    text = encode(message)
    connection.sendall(_LENGTH.pack(len(text)) + text)


def _receive(connection: socket.socket) -> Any:
    """The next message; None where the other side has closed the connection."""
    head = _exactly(connection, _LENGTH.size)
    body = head and _exactly(connection, _LENGTH.unpack(head)[0])
    return decode(body) if body else None


def _exactly(connection: socket.socket, nbytes: int) -> bytes:
    found = bytearray()
    while len(found) < nbytes:
        piece = connection.recv(min(nbytes - len(found), 1 << 20))
        if not piece:
            return b""
        found += piece
    return bytes(found)


class _Server:
    """Answers requests to one table until it is closed."""

    def __init__(self, listener: socket.socket) -> None:
        self.table, self.port = Table(), int(listener.getsockname()[1])
        #: Stores of this process that it serves.
        self.users = 0
        self._listener, self._lock = listener, threading.Lock()
        self._connections: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="TCPStore server", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            with self._lock:
                self._connections.add(connection)
            threading.Thread(
                target=self._answer, args=(connection,), name="TCPStore client", daemon=True
            ).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (request := _receive(connection)) is not None:
                _send(connection, self._result(*request))
        with self._lock:
            self._connections.discard(connection)

    def _result(self, operation: str, *args: Any) -> list[Any]:
        if operation not in OPERATIONS:
            return ["error", f"no operation {operation!r}"]
        try:
            return ["result", getattr(self.table, operation)(*args)]
        except (ValueError, TypeError) as error:
            return ["error", str(error)]

    def leave(self) -> None:
        """Count a store of this process less; after the last one, cut off all clients."""
        with self._lock:
            self.users -= 1
            if self.users > 0:
                return
            if _shared.get(self.port) is self:
                del _shared[self.port]
            left, self._connections = list(self._connections), set()
        for found in (self._listener, *left):
            with contextlib.suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
        self._listener.close()


#: Servers that several stores of this process may share, by port.
_shared: dict[int, _Server] = {}


class TCPStore(TableStore):
    """A store in one process, its server, that others reach over TCP.

    Args:
        host_name: the server's host. A server on "localhost" or 127.0.0.1 listens there alone, one with
            another name on all addresses of its host: anybody who reaches them can read and write.
        port: the server's port; 0 (for the server): a free one, see `port`.
        world_size: how many stores, the server's with them, use it; None: any number.
        is_master: whether this store is the server.
        timeout: how long to wait for the server, for the others and for keys.
        wait_for_workers: the server waits until all `world_size` have come.
        multi_tenant: share a server of this process on the same port.
        master_listen_fd: a socket that listens already.
        use_libuv: accepted; has no effect.

    Attributes:
        host: `host_name`.
        port: the port on which the server listens.

    Raises:
        NetworkError (`DistNetworkError`): the server cannot be reached, or cannot listen.
        DistStoreError: the others did not come in time.
        ValueError: no port number.
    """

    def __init__(
        self,
        host_name: str,
        port: int,
        world_size: int | None = None,
        is_master: bool = False,
        timeout: timedelta = DEFAULT_TIMEOUT,
        wait_for_workers: bool = True,
        multi_tenant: bool = False,
        master_listen_fd: int | None = None,
        use_libuv: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= port < 1 << 16:
            raise ValueError(f"TCPStore: a port is a number from 0 to 65535, got {port}")
        self.set_timeout(timeout)
        self.host, self._server = host_name, None
        if is_master:
            self._server = _server(host_name, port, multi_tenant, master_listen_fd)
            self._server.users += 1
        self.port = port if self._server is None else self._server.port
        self._idle: list[socket.socket] = [self._connected()]
        self._close = weakref.finalize(self, _close, self._idle, self._server)
        if world_size is not None and world_size > 0 and wait_for_workers:
            self._ask("add", _CLIENTS, 1)
            if is_master:
                self._wait_for_workers(world_size)

    def _wait_for_workers(self, world_size: int) -> None:
        limit_s = self._timeout.total_seconds()
        deadline_s = time.monotonic() + limit_s
        while (here := self._ask("add", _CLIENTS, 0)) < world_size:
            if time.monotonic() > deadline_s:
                self._close()
                raise DistStoreError(
                    f"TCPStore on {self.host}:{self.port} timed out after {limit_s:g} seconds waiting for "
                    f"clients. {here}/{world_size} clients joined."
                )
            time.sleep(_RETRY_S)

    def _connected(self) -> socket.socket:
        """A new connection to the server, which may yet have to start."""
        limit_s = self._timeout.total_seconds()
        deadline_s, reason = time.monotonic() + limit_s, "there was no time"
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                found = socket.create_connection((self.host, self.port), timeout=left_s)
            except OSError as error:
                reason = str(error)
                time.sleep(min(_RETRY_S, left_s))
                continue
            if found.getsockname() == found.getpeername():  # A free port can reach itself.
                found.close()
                continue
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        raise NetworkError(
            f"TCPStore: no server answers on {self.host}:{self.port} within {limit_s * 1000:.0f}ms ({reason}); "
            "one process has to make it with is_master=True"
        )

    def _ask(self, operation: str, *args: Any) -> Any:
        waits = operation in ("get", "wait", "pop")
        try:
            connection = self._idle.pop()
        except IndexError:  # all are waiting in other threads
            connection = self._connected()
        try:
            connection.settimeout(_GRACE_S + (args[-1] if waits else 0.0))
            _send(connection, [operation, *args])
            answer = _receive(connection)
        except OSError as error:
            connection.close()
            raise self._lost(operation, str(error)) from error
        except BaseException:  # Ctrl-C: an answer that nobody read would belong to the next request
            connection.close()
            raise
        if answer is None:
            connection.close()
            raise self._lost(operation, "it has closed the connection")
        self._idle.append(connection)
        kind, found = answer
        if kind == "error":
            raise ValueError(found)
        return found

    def _lost(self, operation: str, reason: str) -> NetworkError:
        return NetworkError(
            f"TCPStore: {operation} failed, as the server on {self.host}:{self.port} is gone: {reason}. Did its "
            "process end or crash?"
        )

    def _own_keys(self) -> int:
        return int(self._ask("has", [_CLIENTS]))

    def list_keys(self) -> list[str]:
        return [key for key in super().list_keys() if key != _CLIENTS]

    def clone(self) -> TCPStore:
        """Another client of the same server."""
        return TCPStore(self.host, self.port, timeout=self._timeout)

    def __repr__(self) -> str:
        server = ", server" if self._server is not None else ""
        return f"TCPStore({self.host}:{self.port}{server})"


def _server(host: str, port: int, multi_tenant: bool, descriptor: int | None) -> _Server:
    if multi_tenant and port in _shared:
        return _shared[port]
    if descriptor is not None:
        listener = socket.socket(fileno=descriptor)
    else:
        try:
            listener = _listener(host, port)
        except OSError as error:
            raise NetworkError(
                f"TCPStore: the server socket cannot listen on {host}:{port}: {error}"
            ) from error
    made = _Server(listener)
    if multi_tenant:
        _shared[made.port] = made
    return made


def _listener(host: str, port: int) -> socket.socket:
    if _is_loopback(host):
        return socket.create_server(("127.0.0.1", port), backlog=2048)
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=2048, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=2048)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host) == ipaddress.ip_address("127.0.0.1")
    except ValueError:
        return host == "localhost"


def _close(idle: list[socket.socket], server: _Server | None) -> None:
    for connection in idle:
        connection.close()
    if server is not None:
        server.leave()
