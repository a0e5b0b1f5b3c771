"""Ranks whose GPUs exchange arrays by NCCL.

Owns: `NcclTransport`: how calls over a GPU's arrays run on a stream of their own, in the order of the
caller's stream; which calls of NCCL they are is in `nccl_moves`. Must not know: what is communicated.

The ranks are connected by a transport of the host, too (MPI; a world of one by itself). Over it they
meet before every collective, which is what compares their calls, names who is missing, and carries
NCCL's unique id; over it go the host's arrays, and the messages between two ranks. The host is never
blocked by a GPU: a call is over for it when NCCL has it in its queue.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

import numpy as np

from dptrain.comm.call import Call, Roster
from dptrain.comm.errors import CollectiveTimeoutError, CommunicatorError, rank_prefix
from dptrain.comm.flights import Flights
from dptrain.comm.nccl_moves import MOVES, NcclMoves
from dptrain.comm.transport import Pending, Transport, Watch
from dptrain.core.cuda import library
from dptrain.core.device import device

Array = Any
#: How long a peer that has left may still be finishing what was begun.
_PARTING_S = 5.0
#: How long NCCL may connect before somebody says what is going on.
_CONNECT_WARN_S = 30.0


def binding() -> Any:
    """CuPy's binding of NCCL.

    Raises:
        RuntimeError: CuPy was not built with NCCL, or libnccl cannot be loaded; says what to do.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns that it did not find the library; so do we.
        try:
            found = import_module("cupy.cuda.nccl")
        except ImportError as error:
            raise RuntimeError(f"CuPy has no NCCL ({error}); {_REMEDY}") from error
    if not found.available:
        raise RuntimeError(f"CuPy cannot load libnccl; {_REMEDY}")
    return found


_REMEDY = (
    'pip install "dptrain[cuda13]" (CUDA 12: "dptrain[cuda12]") brings it, or use backend "mpi", which moves '
    "GPU arrays through the host's memory"
)


class NcclTransport(NcclMoves):
    """Connects the GPUs of ranks that a transport of the host connects already.

    Args:
        host: that transport; owned from now on.
        index: this rank's GPU.
        nccl: CuPy's binding.
    """

    backend = "nccl"

    def __init__(self, host: Transport, index: int, nccl: Any = None) -> None:
        self._host, self._index = host, index
        self._nccl = binding() if nccl is None else nccl
        self._library = library()
        self._comm: Any = None
        self._stream: Any = None
        self._error: BaseException | None = None
        self._left_s: float | None = None
        self._flights = Flights(self._use_gpu, self._trouble, self._give_up)
        self.rank, self.world_size = host.rank, host.world_size
        self.local_rank, self.local_world_size = host.local_rank, host.local_world_size

    # -- calls over a GPU's arrays -----------------------------------------------------------------

    def serves(self, place: device) -> bool:
        if place.type != "cuda":
            return False
        if place.index != self._index:
            raise ValueError(
                f"{self._prefix()} the array lives on {place}, but this rank communicates from cuda:{self._index}: "
                f"one rank drives one GPU. Call dptrain.cuda.set_device({place.index}) before init_process_group, "
                "or move the array"
            )
        return True

    def order(self, call: Call) -> Callable[[], None]:
        call.on_gpu = True
        with self._library.on(self._index):
            stream = self._library.cupy.cuda.get_current_stream()
            call.captured = bool(stream.is_capturing())
            if call.captured and self._comm is None:
                raise CommunicatorError(
                    f"{self._prefix()} {call.describe()} is the first over GPUs in its group and was made while a "
                    "CUDA graph is captured; NCCL connects at the first call: make one before the capture"
                )
            call.ready = self._mark(stream)

        def settle() -> None:
            if call.settled is not None:
                with self._library.on(self._index):
                    self._library.cupy.cuda.get_current_stream().wait_event(call.settled)

        return settle

    def settle(self) -> None:
        self._flights.land(float("inf"))
        if self._error is not None:
            raise self._error

    def move(self, call: Call, roster: Roster, watch: Watch) -> None:
        if not call.on_gpu:
            self._host.move(call, roster, watch)
        elif call.nbytes:
            with self._running(call, watch) as comm:
                MOVES[call.kind](self, comm, call, roster)

    def move_parts(self, call: Call, lengths: np.ndarray[Any, Any], watch: Watch) -> None:
        if not call.on_gpu:
            self._host.move_parts(call, lengths, watch)
            return
        parts = call.parts
        assert parts is not None
        with self._running(call, watch) as comm:
            self._exchange(comm, parts.outgoing, parts.incoming)

    def finish(self, call: Call) -> None:
        if not call.on_gpu or call.parts is None or call.parts.finish is None:
            super().finish(call)
            return
        with self._library.on_stream(self._index, self._stream):
            call.parts.finish()
            call.settled = self._mark(self._stream)

    @contextmanager
    def _running(self, call: Call, watch: Watch) -> Iterator[Any]:
        """NCCL, on its GPU and stream, after what the caller's stream was given before the call."""
        comm = self._connected(watch)
        with self._library.on_stream(self._index, self._stream):
            if call.ready is not None:
                self._stream.wait_event(call.ready)
            try:
                yield comm
            except self._nccl.NcclError as error:
                raise CommunicatorError(
                    f"{self._prefix()} NCCL refused {call.describe()}: {error}"
                ) from error
            call.settled = self._mark(self._stream)
            # What is recorded into a graph runs when the graph does; its events cannot be asked.
            if not call.captured:
                self._flights.add(call, call.settled)

    def _mark(self, stream: Any) -> Any:
        """An event on a stream."""
        return stream.record(self._library.cupy.cuda.Event(disable_timing=True))

    # -- the connection ----------------------------------------------------------------------------

    def _connected(self, watch: Watch) -> Any:
        """NCCL's communicator, made by all ranks together at the first call that needs it."""
        if self._comm is not None:
            return self._comm
        identity = self._identity(watch)
        with self._library.on(self._index), self._patience():
            try:
                self._stream = self._library.cupy.cuda.Stream(non_blocking=True)
                self._comm = self._nccl.NcclCommunicator(self.world_size, identity, self.rank)
            except self._nccl.NcclError as error:
                raise CommunicatorError(
                    f"{self._prefix()} NCCL cannot connect cuda:{self._index} with the other ranks: {error}; "
                    "NCCL_DEBUG=INFO in the environment shows why"
                ) from error
        return self._comm

    def _identity(self, watch: Watch) -> bytes:
        """The unique id that rank 0 has made."""
        told = ""
        if self.rank == 0:
            try:
                told = bytes(self._nccl.get_unique_id()).hex()
            except self._nccl.NcclError as error:
                told = f"failed: {error}"  # The others wait for it, and have to know.
        told = self._host.exchange(told, watch)[0]
        if told.startswith("failed"):
            raise CommunicatorError(f"{self._prefix()} NCCL's unique id on rank 0 {told}")
        return bytes.fromhex(told)

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Says that NCCL is taking long to connect: it cannot be interrupted."""
        text = (
            f"{self._prefix()} NCCL has been connecting cuda:{self._index} for {_CONNECT_WARN_S:g} s; all ranks have "
            "come. NCCL_DEBUG=INFO shows what it waits for (often a network interface: NCCL_SOCKET_IFNAME)"
        )
        timer = threading.Timer(_CONNECT_WARN_S, print, (text,), {"file": sys.stderr})
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _use_gpu(self) -> None:
        # A thread begins on GPU 0; asking an event there would make a context nobody wants.
        self._library.cupy.cuda.runtime.setDevice(self._index)

    def _trouble(self, call: Call) -> str | None:
        try:
            self._comm.check_async_error()
        except self._nccl.NcclError as error:
            return f"failed on the GPU: {error}"
        gone = [rank for rank in range(self.world_size) if rank != self.rank]
        gone = [rank for rank in gone if self._host.has_left(rank) is not None]
        if not gone:
            return None
        self._left_s = self._left_s or time.monotonic()
        if time.monotonic() - self._left_s < _PARTING_S:
            return None
        return f"cannot end: rank {gone[0]} {self._host.has_left(gone[0])}"

    def _give_up(self, call: Call, reason: str) -> None:
        """Stop what the GPU waits for in vain; the next call, and every one after it, says why."""
        text = f"{self._prefix()} {call.describe()} {reason}; NCCL was aborted"
        kind = CollectiveTimeoutError if "timed out" in reason else CommunicatorError
        self._error = kind(text)
        with suppress(OSError, ValueError):  # nobody reads it any more; the GPU waits all the same
            print(text, file=sys.stderr, flush=True)
        self._end("abort")

    def _end(self, how: str) -> None:
        comm, self._comm = self._comm, None
        self._flights.stop()
        if comm is not None:
            with self._library.on(self._index):
                getattr(comm, how)()

    def _prefix(self) -> str:
        return rank_prefix(self.rank, self.world_size)

    # -- what the host's transport does --------------------------------------------------------------

    def meet(self, record: bytes, source: Array | None, watch: Watch) -> list[bytes]:
        if self._error is not None:
            raise self._error
        return self._host.meet(record, source, watch)

    def exchange(self, text: str, watch: Watch) -> list[str]:
        return self._host.exchange(text, watch)

    def split(self, color: int | None, key: int, watch: Watch) -> Transport | None:
        part = self._host.split(color, key, watch)
        return None if part is None else NcclTransport(part, self._index, self._nccl)

    def allocate(self, nbytes: int, watch: Watch) -> Array:
        return self._host.allocate(nbytes, watch)

    def release(self, buffer: Array) -> None:
        self._host.release(buffer)

    def position(self, array: Array) -> tuple[int, int]:
        return self._host.position(array)

    def post_send(self, array: Array, dst: int, tag: int, dtype: str) -> Pending:
        return self._host.post_send(array, dst, tag, dtype)

    def post_recv(self, array: Array, src: int | None, tag: int, dtype: str) -> Pending:
        return self._host.post_recv(array, src, tag, dtype)

    def has_left(self, rank: int) -> str | None:
        return self._host.has_left(rank)

    def last_seen(self, rank: int) -> str:
        return self._host.last_seen(rank)

    def request_stack(self, rank: int) -> bool:
        return self._host.request_stack(rank)

    def abort(self, code: int) -> None:
        self._end("abort")
        self._host.abort(code)

    def leave(self, reason: str | None) -> None:
        # The others' part of what is under way may still need this rank's.
        whole = reason is None and self._flights.land(_PARTING_S)
        self._end("destroy" if whole else "abort")
        self._host.leave(reason)
