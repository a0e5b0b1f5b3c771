"""Wire format of the side channel between the launcher and its ranks, and the ranks' end of it.

Owns: message encoding, the incremental decoder, the constructors of every message, the address
format and ``Channel``, the one connection a rank has. Must not know: processes, MPI, what a message
leads to. This is the only module of ``launch`` that ``dptrain.comm`` may import.

One message is one JSON object on one line, at most ``MAX_LINE_NBYTES`` long. The first message of a
connection carries the job's token. Besides the control connection a rank opens one connection for
each of its two output streams: a ``stream`` line, then raw bytes. The rank's file descriptors 1 and
2 *are* those sockets, so that output written by C code, by children or by a dying process arrives
as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ENV_ADDRESS = "DPTRAIN_SIDE_CHANNEL"
MAX_LINE_NBYTES = 1 << 20
# JSON spends up to 12 bytes on one character, so these two together stay below MAX_LINE_NBYTES.
_MAX_TEXT_CHARS = 64_000
_MAX_MESSAGE_CHARS = 8_000
STREAMS = ("stdout", "stderr")

Message = dict[str, Any]


class ProtocolError(ValueError):
    """What arrived (or was to be sent) is not a message of this protocol."""


class Address(NamedTuple):
    """Where the launcher listens, and the secret that proves a connection belongs to the job."""

    host: str
    port: int
    token: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}:{self.token}"


def parse_address(text: str) -> Address:
    """Reads ``host:port:token``, the value of ``DPTRAIN_SIDE_CHANNEL``.

    Raises:
        ProtocolError: the text does not have that form.
    """
    parts = text.rsplit(":", 2)
    if len(parts) != 3 or not all(parts) or not parts[1].isascii() or not parts[1].isdigit():
        raise ProtocolError(f"{ENV_ADDRESS} must be host:port:token, found {len(parts)} part(s)")
    port = int(parts[1][:6])
    if not 0 < port < 65536:
        raise ProtocolError(f"{ENV_ADDRESS} has port {parts[1][:6]}, expected 1 to 65535")
    return Address(parts[0], port, parts[2])


# Rank -> launcher.


def hello(token: str, rank: int, world_size: int, local_rank: int) -> Message:
    """First message of a control connection: who is calling."""
    return {
        "kind": "hello",
        "token": token,
        "rank": rank,
        "world_size": world_size,
        "local_rank": local_rank,
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }


def stream(token: str, rank: int, name: str) -> Message:
    """First message of an output connection; raw bytes of stream ``name`` follow."""
    return {"kind": "stream", "token": token, "rank": rank, "name": name}


def beat(phase: str, step: int | None = None, collective: str | None = None) -> Message:
    """What the rank is doing; ``collective`` describes the last collective it entered."""
    return {"kind": "beat", "phase": phase, "step": step, "collective": collective}


def error(type_name: str, text: str, traceback_text: str, code: int = 1) -> Message:
    """The rank fails with an exception and will end with exit status ``code``.

    A long traceback keeps its end, where the exception is; ``time`` is in seconds since the epoch.
    """
    return {
        "kind": "error",
        "type": type_name,
        "message": text[:_MAX_MESSAGE_CHARS],
        "traceback": traceback_text[-_MAX_TEXT_CHARS:],
        "code": code,
        "time": time.time(),
    }


def bye(code: int) -> Message:
    """The rank ends on purpose, with exit status ``code``."""
    return {"kind": "bye", "code": code}


def stacks(text: str) -> Message:
    """Answer to ``stack``: the Python stacks of all threads of the rank."""
    return {"kind": "stacks", "text": text[-_MAX_TEXT_CHARS:]}


# Launcher -> rank.


def stack() -> Message:
    """Asks a rank for its Python stacks."""
    return {"kind": "stack"}


def stop() -> Message:
    """Tells a rank to end at once."""
    return {"kind": "stop"}


def encode(message: Message) -> bytes:
    """One line of ASCII JSON, newline included.

    Raises:
        ProtocolError: the message is longer than ``MAX_LINE_NBYTES``.
    """
    line = json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > MAX_LINE_NBYTES:
        raise ProtocolError(f"message of {len(line)} bytes, at most {MAX_LINE_NBYTES} are allowed")
    return line


def decode(line: bytes) -> Message:
    """The message in one line.

    Raises:
        ProtocolError: the line is not a JSON object with a text field ``kind``.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as exception:
        raise ProtocolError(f"malformed line: {exception}") from None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ProtocolError("a message is a JSON object with a text field 'kind'")
    return message


class LineReader:
    """Cuts a byte stream into messages, whatever pieces it arrives in."""

    def __init__(self, limit: int = MAX_LINE_NBYTES) -> None:
        self._limit = limit
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yields the messages that ``data`` completes. Iterate to the end before feeding again.

        Raises:
            ProtocolError: a line is malformed or longer than the limit. What came before it has
                been yielded; the stream is of no further use.
        """
        searched = len(self._pending)
        self._pending += data
        while (end := self._pending.find(b"\n", searched)) >= 0:
            line = bytes(self._pending[: end + 1])
            del self._pending[: end + 1]
            searched = 0
            if len(line) > self._limit:
                raise ProtocolError(f"line of {len(line)} bytes, at most {self._limit} are allowed")
            yield decode(line)
        if len(self._pending) > self._limit:
            raise ProtocolError(f"line of more than {self._limit} bytes")


def open_connection(address: Address, timeout_s: float = 10.0) -> socket.socket:
    """A blocking TCP connection to the launcher.

    Raises:
        OSError: the launcher cannot be reached within ``timeout_s``.
    """
    sock = socket.create_connection((address.host, address.port), timeout_s)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Channel:
    """A rank's control connection to the launcher. Thread-safe.

    There is one per process: ``launch.rank`` opens and installs it, others use
    ``Channel.current()`` and never connect themselves. A forked child does not own its parent's
    channel and has none.
    """

    _current: Channel | None = None

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock
        self._lock = threading.Lock()
        self._handlers: dict[str, Callable[[Message], None]] = {}

    @classmethod
    def connect(cls, address: Address, timeout_s: float = 10.0) -> Channel:
        """Connects to the launcher; the first message to send is ``hello``."""
        return cls(open_connection(address, timeout_s))

    @classmethod
    def current(cls) -> Channel | None:
        """The channel of this process, or None when no launcher watches it."""
        return cls._current

    def install(self) -> None:
        """Makes this the channel that ``current()`` returns, here but not in forked children."""
        Channel._current = self
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # The child's copy of the socket would hide the parent's death from the launcher. The lock
        # may have been held by a thread that does not exist in the child.
        self._lock = threading.Lock()
        self._detach(shut_down=False)

    def send(self, message: Message) -> bool:
        """Sends a message; False when the launcher is gone or the channel is closed."""
        data = encode(message)
        with self._lock:
            if self._sock is None:
                return False
            try:
                self._sock.sendall(data)
            except OSError:
                return False
        return True

    def on(self, kind: str, handler: Callable[[Message], None]) -> None:
        """Calls ``handler(message)`` on the reader thread for each message of that kind."""
        self._handlers[kind] = handler

    def listen(self, on_eof: Callable[[], None]) -> None:
        """Starts the daemon thread that reads from the launcher.

        Args:
            on_eof: called once, on that thread, when the launcher is gone.
        """
        threading.Thread(
            target=self._read, args=(on_eof,), name="dptrain-side-channel", daemon=True
        ).start()

    def _read(self, on_eof: Callable[[], None]) -> None:
        reader = LineReader()
        sock = self._sock
        while sock is not None:
            try:
                data = sock.recv(65536)
            except OSError:
                data = b""
            if not data or self._sock is None:
                break
            try:
                for message in reader.feed(data):
                    handler = self._handlers.get(message["kind"])
                    if handler is not None:
                        handler(message)
            except ProtocolError:
                break
        if self._sock is not None:  # closed from our side is not the launcher's death
            on_eof()

    def close(self) -> None:
        """Closes the connection; idempotent."""
        self._detach(shut_down=True)

    def _detach(self, shut_down: bool) -> None:
        if Channel._current is self:
            Channel._current = None
        with self._lock:
            sock, self._sock = self._sock, None
        if sock is None:
            return
        with contextlib.suppress(OSError):
            if shut_down:  # else the reader thread, blocked in recv, would keep the connection open
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
