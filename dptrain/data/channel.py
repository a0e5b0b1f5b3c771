"""How objects travel between a training process and its workers: small ones in a message, large
arrays in memory that both have mapped.

Owns: `Channel` (one end of a connection), its shared segments and their reuse, `dumps`. Must not
know: batches, datasets, what a message means.

A message is one packet of a Unix socket. What does not fit into a small packet lies in a segment: memory
without a name, whose descriptor travels once with the first message that uses it and which is gone with
the last process that has it mapped, however the processes end. A receiver's arrays look into the
segment itself; when the last of them is gone, the next message in the other direction says so and
the sender uses the segment again.
"""

from __future__ import annotations

import array
import io
import pickle
import socket
import struct
import types
import weakref
from collections import ChainMap, deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from dptrain.comm.segment import Segment
from dptrain.data.backing import LEAST_BYTES, PAGE

#: Larger contents lie in a segment. Small enough for many packets to wait in a socket's buffer.
INLINE_BYTES = 16 * 1024
#: So many segments of one sender may be held by arrays of the receiver; further messages are copied out.
MOST_HELD = 8
_ALIGNMENT = 64
#: Bytes of the pickle, number of buffers, number of segments given back, the segment used (-1: none),
#: its size if its descriptor comes along (else 0).
_HEADER = struct.Struct("<QIIiQ")
_ROOM = 4096


class ChannelClosed(EOFError):
    """The process at the other end has ended or closed its end."""


def dumps(obj: Any, buffer_callback: Callable[[Any], Any] | None = None) -> bytes:
    """Pickle; what only exists in the script (`__main__`), lambdas and local classes by value."""
    file = io.BytesIO()
    _by_value()(file, 5, buffer_callback=buffer_callback).dump(obj)
    return file.getvalue()


@cache
def _by_value() -> Any:
    import cloudpickle  # takes its time, and most processes have no workers

    known = cloudpickle.Pickler.dispatch_table

    def code(obj: types.CodeType) -> Any:
        # cloudpickle hides the file's name, which a traceback out of a worker should show.
        make, arguments = known[types.CodeType](obj)
        return make, tuple(obj.co_filename if a == "<dynamic-code>" else a for a in arguments)

    class ByValue(cloudpickle.Pickler):
        dispatch_table: ClassVar = ChainMap(
            {types.CodeType: code, np.memmap: _reduce_memmap}, known
        )

    return ByValue


def _reduce_memmap(array: np.memmap) -> Any:
    """A memory-mapped file by its name: it may be larger than memory."""
    root = array
    while isinstance(root.base, np.memmap):
        root = root.base
    if array.filename is None or array.mode == "c" or not array.flags.c_contiguous:
        return np.asarray(array).__reduce_ex__(5)
    offset = root.offset + array.ctypes.data - root.ctypes.data
    mode = "r+" if array.flags.writeable else "r"
    return np.memmap, (array.filename, array.dtype, mode, offset, array.shape)


def _dumps_fast(obj: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    try:
        return pickle.dumps(obj, 5, buffer_callback=buffers.append)
    except Exception:  # by name is several times faster, but not everything has one
        buffers.clear()
        return dumps(obj, buffers.append)


class Content:
    """A pickle and its buffers, laid out one after the other with aligned beginnings.

    Large buffers begin as far from a page's beginning as they do in this process (see `backing`).
    """

    def __init__(self, body: bytes, buffers: Sequence[pickle.PickleBuffer]) -> None:
        self.body = body
        self.raw = [buffer.raw() for buffer in buffers]
        table, end = [], _padded(16 * len(self.raw)) + _padded(len(body))
        for part in self.raw:
            if part.nbytes >= LEAST_BYTES:
                end += (np.frombuffer(part, np.uint8).ctypes.data - end) % PAGE
            table += [end, part.nbytes]
            end += _padded(part.nbytes)
        self._table = table
        self.nbytes = end

    def write(
        self, target: np.ndarray, copy: Callable[[np.ndarray, int, int], Any] | None = None
    ) -> None:
        """Lay it out in `target` (uint8, at least `nbytes` long).

        Args:
            target: where.
            copy: what to do instead of copying with a buffer, the beginning of its place in `target` and
                the end of it.
        """
        start = self._put(target, 0, struct.pack(f"<{len(self._table)}Q", *self._table))
        self._put(target, start, self.body)
        for part, start in zip(self.raw, self._table[::2], strict=True):
            if copy is None:
                self._put(target, start, part)
            elif part.nbytes:
                copy(np.frombuffer(part, np.uint8), start, start + part.nbytes)

    @staticmethod
    def _put(target: np.ndarray, start: int, part: Any) -> int:
        if len(part):
            target[start : start + len(part)] = np.frombuffer(part, np.uint8)
        return start + _padded(len(part))

    @staticmethod
    def read(source: memoryview, body_bytes: int, count: int) -> Any:
        """The object; its arrays look into `source`."""
        table = struct.unpack_from(f"<{2 * count}Q", source)
        start = _padded(16 * count)
        body = source[start : start + body_bytes]
        buffers = [
            source[begin : begin + size]
            for begin, size in zip(table[::2], table[1::2], strict=True)
        ]
        return pickle.loads(body, buffers=buffers)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


class _Outgoing:
    """The segments that this end writes to."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._free: list[int] = []

    def give_back(self, numbers: Sequence[int]) -> None:
        self._free.extend(numbers)

    def take(self, nbytes: int) -> tuple[int, Segment, bool]:
        """Number and segment of at least `nbytes` that nobody reads, and whether it is new."""
        for number in self._free:
            if self._segments[number].bytes.size >= nbytes:
                self._free.remove(number)
                return number, self._segments[number], False
        # A quarter more, so that batches of slightly different sizes soon find one that fits.
        segment = Segment.create(_padded(nbytes + nbytes // 4))
        if (
            self._free
        ):  # takes the number of one that is too small, and with it its place at the receiver
            number = self._free.pop()
            self._segments[number] = segment
        else:
            number = len(self._segments)
            self._segments.append(segment)
        return number, segment, True


class Channel:
    """One end of a connection between two processes of this host.

    Args:
        end: a connected Unix socket of type SOCK_SEQPACKET; closed with the channel.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._outgoing = _Outgoing()
        self._incoming: dict[int, Segment] = {}
        self._leases: dict[int, weakref.ref[np.ndarray]] = {}
        self._read_out: deque[int] = deque()  # appended to by finalizers, in whichever thread

    def fileno(self) -> int:
        """The socket's descriptor, to wait for."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; arrays that were received stay valid."""
        self._socket.close()

    def send(self, obj: Any, when_full: Callable[[], Any] | None = None) -> None:
        """Send an object.

        Args:
            obj: anything that pickle or cloudpickle can write.
            when_full: called while the other end does not take messages; by default, wait for it.

        Raises:
            ChannelClosed: the other end is gone.
        """
        buffers: list[pickle.PickleBuffer] = []
        content = Content(_dumps_fast(obj, buffers), buffers)
        number, size, descriptors, segment = -1, 0, [], None
        if content.nbytes <= INLINE_BYTES:
            inline = np.empty(content.nbytes, np.uint8)
            content.write(inline)
        else:
            inline = np.empty(0, np.uint8)
            number, segment, new = self._outgoing.take(content.nbytes)
            content.write(segment.bytes)
            if new:
                size, descriptors = segment.bytes.size, [segment.fileno()]
        read_out = [self._read_out.popleft() for _ in range(len(self._read_out))]
        header = _HEADER.pack(
            len(content.body), len(content.raw), len(read_out), number, size
        ) + struct.pack(f"<{len(read_out)}I", *read_out)
        send_packet(self._socket, [header, inline.data], descriptors, when_full)
        if segment is not None:
            segment.seal()

    def recv(self, wait: bool = True) -> Any:
        """The next object.

        Raises:
            BlockingIOError: there is none yet, and `wait` is False.
            ChannelClosed: the other end is gone, and everything it sent has been received.
        """
        packet, descriptors = receive_packet(self._socket, INLINE_BYTES + _ROOM, wait)
        body_bytes, count, read_out, number, size = _HEADER.unpack_from(packet)
        start = _HEADER.size + 4 * read_out
        self._outgoing.give_back(struct.unpack_from(f"<{read_out}I", packet, _HEADER.size))
        if number < 0:
            # Aligned memory of its own; the packet's is neither.
            source = np.frombuffer(packet, np.uint8, offset=start).copy()
            return Content.read(source.data, body_bytes, count)
        if size:
            self._incoming[number] = Segment.received(descriptors[0], size)
        segment = self._incoming[number]
        if len(self._leases) >= MOST_HELD:
            self._read_out.append(number)
            return Content.read(segment.bytes.copy().data, body_bytes, count)
        lease = segment.bytes[:]
        self._leases[number] = weakref.ref(lease, lambda _: self._end_lease(number))
        return Content.read(lease.data, body_bytes, count)

    def _end_lease(self, number: int) -> None:
        del self._leases[number]
        self._read_out.append(number)


def send_packet(
    end: socket.socket,
    parts: Sequence[Any],
    descriptors: Sequence[int] = (),
    when_full: Callable[[], Any] | None = None,
) -> None:
    """Send one packet with open files.

    Raises:
        ChannelClosed: the other end is gone.
    """
    ancillary = (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        if descriptors
        else []
    )
    flags = socket.MSG_NOSIGNAL | (0 if when_full is None else socket.MSG_DONTWAIT)
    while True:
        try:
            end.sendmsg(parts, ancillary, flags)
            return
        except BlockingIOError:
            assert when_full is not None
            when_full()
        except (BrokenPipeError, ConnectionResetError):
            raise ChannelClosed from None


def receive_packet(
    end: socket.socket, most_bytes: int, wait: bool = True, most_descriptors: int = 1
) -> tuple[bytes, list[int]]:
    """One packet and the files that came with it.

    Raises:
        BlockingIOError: there is none yet, and `wait` is False.
        ChannelClosed: the other end is gone.
    """
    flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
    try:
        packet, ancillary, _, _ = end.recvmsg(
            most_bytes, socket.CMSG_SPACE(4 * most_descriptors), flags
        )
    except ConnectionResetError:
        raise ChannelClosed from None
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data[: len(data) - len(data) % 4])
    if not packet:
        raise ChannelClosed
    return packet, list(descriptors)
