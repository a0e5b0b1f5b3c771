"""The side channel's wire format, and the hub against whatever connects to it."""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from dptrain.launch import protocol
from dptrain.launch.hub import Hub
from dptrain.launch.protocol import Channel, LineReader, ProtocolError
from hypothesis import given
from hypothesis import strategies as st

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
_messages = st.dictionaries(st.text(), _values, max_size=5).flatmap(
    lambda rest: st.text().map(lambda kind: {**rest, "kind": kind})
)


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(_messages, max_size=5), st.lists(st.integers(0, 1 << 20), max_size=8))
def test_messages_survive_any_cutting(messages: list[protocol.Message], places: list[int]) -> None:
    data = b"".join(map(protocol.encode, messages))
    reader = LineReader()
    assert [m for piece in _cut(data, places) for m in reader.feed(piece)] == messages


@given(st.binary(max_size=200))
def test_garbage_raises_protocol_error_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        for message in LineReader().feed(data + b"\n"):
            assert isinstance(message["kind"], str)


@pytest.mark.parametrize("line", [b"[" * 100_000, b"9" * 5000, b'{"kind": 1}', b"[]", b"\xff", b""])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(line)


def test_messages_before_a_malformed_line_are_delivered() -> None:
    seen = []
    with pytest.raises(ProtocolError):
        seen.extend(LineReader().feed(protocol.encode(protocol.bye(0)) + b"oops\n"))
    # list.extend takes what was yielded before the error
    assert seen == [protocol.bye(0)]


@pytest.mark.parametrize("tail", [b"", b"\n"])
def test_lines_over_the_limit_are_refused(tail: bytes) -> None:
    reader = LineReader(limit=100)
    assert list(reader.feed(b" " * 100)) == []
    with pytest.raises(ProtocolError, match="100"):
        list(reader.feed(b" " + tail))


def test_the_longest_error_fits_into_a_line_and_keeps_its_end() -> None:
    text = "\U0001f4a5" * 200_000 + "the end"
    line = protocol.encode(protocol.error("Error", text, text))
    assert len(line) <= protocol.MAX_LINE_NBYTES
    assert protocol.decode(line)["traceback"].endswith("the end")
    with pytest.raises(ProtocolError, match="at most"):
        protocol.encode({"kind": "x", "text": "a" * protocol.MAX_LINE_NBYTES})


@given(st.text(min_size=1).filter(lambda s: ":" not in s), st.integers(1, 65535))
def test_addresses_round_trip(token: str, port: int) -> None:
    address = protocol.Address("::1", port, token)
    assert protocol.parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "host", "host:1", "host:x:t", "host:0:t", "host:65536:t", ":1:t"]
)
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        protocol.parse_address(text)


class _Served:
    """A hub served from the test's own thread."""

    def __init__(self, world_size: int) -> None:
        self.output: list[tuple[int, str, bytes]] = []
        self.selector = selectors.DefaultSelector()
        self.hub = Hub(self.selector, world_size, lambda *args: self.output.append(args))

    def serve(self) -> None:
        for key, _ in self.selector.select(0.02):
            key.data()

    def connect(self, data: bytes) -> socket.socket:
        sock = protocol.open_connection(self.hub.address)
        sock.sendall(data)
        return sock

    def hello(self, rank: int) -> bytes:
        return protocol.encode(protocol.hello(self.hub.address.token, rank, 2, rank))


@pytest.fixture
def served() -> Iterator[_Served]:
    server = _Served(2)
    yield server
    server.hub.close()
    server.selector.close()


def _is_dropped(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + bytes(300) + b"\n",
        b"x" * 70_000,
        b'{"kind":"hello","token":"wrong","rank":0}\n',
        b'{"kind":"hello","token":5,"rank":0}\n',
        b'{"kind":"hello","token":"TOKEN","rank":2}\n',
        b'{"kind":"hello","token":"TOKEN","rank":true}\n',
        b'{"kind":"stream","token":"TOKEN","rank":0,"name":"stdin"}\n',
        b'{"kind":"bye","token":"TOKEN","rank":0,"code":0}\n',
    ],
)
def test_strangers_are_dropped_and_ranks_still_served(
    served: _Served, until: Callable[..., None], greeting: bytes
) -> None:
    stranger = served.connect(greeting.replace(b"TOKEN", served.hub.address.token.encode()))

    def gone() -> bool:
        served.serve()
        return _is_dropped(stranger)

    until(gone, "the stranger is dropped")
    assert served.hub.ranks == {}
    with stranger, served.connect(served.hello(1)):
        until(lambda: bool(served.serve() or served.hub.ranks), "a real rank is accepted")
    assert served.hub.ranks[1].pid == os.getpid()


def test_a_second_hello_of_the_same_rank_is_dropped(
    served: _Served, until: Callable[..., None]
) -> None:
    with served.connect(served.hello(0)) as first, served.connect(served.hello(0)) as second:
        dropped = lambda: served.serve() or _is_dropped(first) or _is_dropped(second)  # noqa: E731
        until(dropped, "one of the two is dropped")
        assert served.hub.is_connected(0)


def test_a_rank_that_breaks_the_protocol_is_lost_without_harm(
    served: _Served, until: Callable[..., None]
) -> None:
    error = protocol.error("E", "m", "t")
    events = []

    def lost() -> bool:
        served.serve()
        events.extend(served.hub.take_events())
        return any(event.message is None for event in events)

    with served.connect(served.hello(0) + protocol.encode(error) + b"garbage\n"):
        until(lost, "the rank is lost")
    assert [event.message for event in events] == [error, None]


def test_stream_bytes_arrive_unchanged(served: _Served, until: Callable[..., None]) -> None:
    data = bytes(range(256)) * 100
    greeting = protocol.stream(served.hub.address.token, 1, "stderr")
    with served.connect(protocol.encode(greeting) + data):
        received = lambda: b"".join(piece for _, _, piece in served.output)  # noqa: E731
        until(lambda: bool(served.serve() or received() == data), "all bytes arrive")
    assert {item[:2] for item in served.output} == {(1, "stderr")}


def test_channel_sends_receives_and_notices_the_end(
    served: _Served, until: Callable[..., None]
) -> None:
    channel = Channel.connect(served.hub.address)
    answered, ended = threading.Event(), threading.Event()
    channel.on("stack", lambda _: answered.set())
    channel.listen(ended.set)
    assert channel.send(protocol.hello(served.hub.address.token, 0, 2, 0))
    assert channel.send(protocol.beat("compute", step=3, collective="all_reduce"))
    until(
        lambda: bool(served.serve() or (served.hub.ranks and served.hub.ranks[0].beat)),
        "the beat arrives",
    )
    beat = served.hub.ranks[0].beat
    assert beat is not None
    assert (beat["step"], beat["collective"]) == (3, "all_reduce")
    served.hub.send(0, protocol.stack())
    assert answered.wait(10)
    for connection in list(served.hub._connections):
        served.hub._drop(connection)
    assert ended.wait(10)
    channel.close()
    assert not channel.send(protocol.bye(0))


def test_closing_a_channel_is_not_the_launchers_death(
    served: _Served, until: Callable[..., None]
) -> None:
    channel = Channel.connect(served.hub.address)
    ended = threading.Event()
    channel.listen(ended.set)
    channel.send(protocol.hello(served.hub.address.token, 0, 2, 0))
    until(lambda: bool(served.serve() or served.hub.is_connected(0)), "the rank is there")
    channel.close()
    channel.close()
    until(lambda: bool(served.serve() or not served.hub.is_connected(0)), "the hub sees the end")
    assert not ended.is_set()


# The child only looks at two values and ends, so the threads it lacks do not matter.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_the_current_channel_belongs_to_the_process_that_opened_it(served: _Served) -> None:
    channel = Channel.connect(served.hub.address)
    channel.install()
    try:
        assert Channel.current() is channel
        pid = os.fork()
        if pid == 0:
            os._exit(0 if Channel.current() is None and not channel.send({"kind": "x"}) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert channel.send(protocol.bye(0))
    finally:
        channel.close()
    assert Channel.current() is None
