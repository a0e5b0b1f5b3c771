"""Streams and events: what runs beside what, and when something was over.

The current stream is CuPy's, per thread and GPU: what operations launch goes there. Memory that is
freed goes back to the pool of the stream it was taken on; a tensor used on another stream has to live
until that use is over (`wait_stream` before it is dropped).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from dptrain.core.cuda import cuda_device
from dptrain.core.device import device as device_type
from dptrain.cuda.devices import index_of, library


class Stream:
    """Work that runs in order on a GPU, beside that of other streams.

    Args:
        device: the GPU; the current one by default.
        priority: lower numbers go first.

    Raises:
        RuntimeError: there is no GPU.
    """

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        index, found = index_of("Stream", device), library("Stream")
        with found.on(index):
            made = found.cupy.cuda.Stream(non_blocking=True, priority=priority)
        self._bind(made, index)

    def _bind(self, stream: Any, index: int) -> None:
        self._stream, self._index = stream, index

    @classmethod
    def _around(cls, stream: Any, index: int) -> Stream:
        result = cls.__new__(cls)
        result._bind(stream, index)
        return result

    @property
    def device(self) -> device_type:
        """The GPU."""
        return cuda_device(self._index)

    @property
    def cuda_stream(self) -> int:
        """CUDA's own handle."""
        return int(self._stream.ptr)

    @property
    def priority(self) -> int:
        """Lower numbers go first."""
        return int(self._stream.priority)

    def query(self) -> bool:
        """Whether all work on it is over."""
        return bool(self._stream.done)

    def synchronize(self) -> None:
        """Wait, on the host, for all work on it."""
        self._stream.synchronize()

    def record_event(self, event: Event | None = None) -> Event:
        """An event that happens when the work so far is over."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let the work from here on wait for an event; the host does not."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Let the work from here on wait for that of another stream so far; the host does not."""
        self.wait_event(stream.record_event())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and (self._index, self.cuda_stream) == (
            other._index,
            other.cuda_stream,
        )

    def __hash__(self) -> int:
        return hash((self._index, self.cuda_stream))

    def __repr__(self) -> str:
        return f"<dptrain.cuda.Stream device={self.device} cuda_stream={self.cuda_stream:#x}>"


class Event:
    """A place in a stream's work.

    Args:
        enable_timing: `elapsed_time` can be asked for.
        blocking: `synchronize` sleeps instead of spinning.
        interprocess: other processes may wait for it; not with `enable_timing`.

    Raises:
        RuntimeError: there is no GPU.
    """

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self._library = library("Event")
        self._timed, self._options = enable_timing, (blocking, not enable_timing, interprocess)
        self._event: Any = None  # made on the GPU where it is recorded first

    def record(self, stream: Stream | None = None) -> None:
        """It happens when the work of the stream (the current one) so far is over."""
        stream = current_stream() if stream is None else stream
        with self._library.on(stream._index):
            if self._event is None:
                self._event = self._library.cupy.cuda.Event(*self._options)
            self._event.record(stream._stream)

    def wait(self, stream: Stream | None = None) -> None:
        """Let the work of a stream (the current one) from here on wait for it."""
        if self._event is not None:  # one that was never recorded is over
            (current_stream() if stream is None else stream)._stream.wait_event(self._event)

    def query(self) -> bool:
        """Whether it has happened."""
        return self._event is None or bool(self._event.done)

    def synchronize(self) -> None:
        """Wait for it on the host."""
        if self._event is not None:
            self._event.synchronize()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to another.

        Raises:
            RuntimeError: one was made without `enable_timing`, or not recorded.
        """
        ends = (("start", self), ("end", end_event))
        for name, event in ends:
            if not event._timed:
                raise RuntimeError(
                    f"elapsed_time: the {name} event was made without enable_timing=True"
                )
        for name, event in ends:
            if event._event is None:
                raise RuntimeError(
                    f"elapsed_time: both events must be recorded; the {name} event is not"
                )
        return float(self._library.cupy.cuda.get_elapsed_time(self._event, end_event._event))


def current_stream(device: Any = None) -> Stream:
    """The stream that work on a GPU (the current one) goes to.

    Raises:
        RuntimeError: there is no GPU.
    """
    index, found = index_of("current_stream", device), library("current_stream")
    with found.on(index):
        return Stream._around(found.cupy.cuda.get_current_stream(), index)


def default_stream(device: Any = None) -> Stream:
    """The stream that work goes to where no other was chosen.

    Raises:
        RuntimeError: there is no GPU.
    """
    index = index_of("default_stream", device)
    return Stream._around(library("default_stream").cupy.cuda.Stream.null, index)


def set_stream(stream: Stream) -> None:
    """Make a stream the current one of its GPU, and this the current GPU."""
    library("set_stream").cupy.cuda.runtime.setDevice(stream._index)
    stream._stream.use()


class StreamContext:
    """Makes a stream (and its GPU) the current one inside a `with` block; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream
        self._stack = ExitStack()

    def __enter__(self) -> None:
        if self.stream is not None:
            found = library("stream")
            self._stack.enter_context(found.on_stream(self.stream._index, self.stream._stream))

    def __exit__(self, *error: Any) -> None:
        self._stack.close()


def stream(stream: Stream | None) -> StreamContext:
    """Makes a stream the current one inside a `with` block; None changes nothing."""
    return StreamContext(stream)
