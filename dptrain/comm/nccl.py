"""Ranks whose GPUs exchange arrays by NCCL.

Owns: `NcclTransport`: how every collective over a GPU's arrays becomes calls of NCCL on a stream of its
own, in the order of the caller's stream. Must not know: what is communicated.

The ranks are connected by a transport of the host, too (MPI; a world of one by itself). Over it they
meet before every collective, which is what compares their calls, names who is missing, and carries
NCCL's unique id; over it go the host's arrays, and the messages between two ranks. The host is never
blocked by a GPU: a call is over for it when NCCL has it in its queue.

NCCL adds in an order of its own (the same result on every rank), 16-bit types in 16 bits.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from dptrain.comm import nccl_types
from dptrain.comm.call import Call, Kind, Roster
from dptrain.comm.errors import CollectiveTimeoutError, CommunicatorError, rank_prefix
from dptrain.comm.flights import Flights
from dptrain.comm.nccl_types import BYTES
from dptrain.comm.reduction import ReduceOp, accumulator, divide, reduce_arrays
from dptrain.comm.transport import Pending, Transport, Watch
from dptrain.core.arrays import address
from dptrain.core.cuda import library
from dptrain.core.device import device

Array = Any
#: Scratch memory for what the ranks gather to reduce it themselves, in bytes.
_SCRATCH_NBYTES = 64 << 20
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


class NcclTransport(Transport):
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
                _MOVES[call.kind](self, comm, call, roster)

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
        with self._library.on(self._index), self._stream:
            call.parts.finish()
            call.settled = self._mark(self._stream)

    @contextmanager
    def _running(self, call: Call, watch: Watch) -> Iterator[Any]:
        """NCCL, on its GPU and stream, after what the caller's stream was given before the call."""
        comm = self._connected(watch)
        with self._library.on(self._index), self._stream:
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

    def _constant(self, name: str) -> int:
        return int(getattr(self._nccl, name))

    # -- what each collective is in NCCL -----------------------------------------------------------

    def _all_reduce(self, comm: Any, call: Call, roster: Roster) -> None:
        assert call.op is not None
        assert call.dtype is not None
        found = nccl_types.native(call.op, call.dtype)
        if found is None:
            self._reduce_gathered(comm, call, roster)
            return
        ranks = len(roster.participants)
        array = call.target
        if array is None:  # In join(): takes part with what changes nothing.
            neutral = nccl_types.neutral(call.op, call.dtype)
            array = self._library.cupy.full(call.columns, neutral, call.dtype)
        kind, op, divided = self._reduction(found, call, ranks)
        at = address(array)
        if call.kind is Kind.ALL_REDUCE:
            comm.allReduce(at, at, call.columns, kind, op, self._stream.ptr)
        else:
            receiving = at if self.rank == roster.root else 0
            comm.reduce(at, receiving, call.columns, kind, op, roster.root, self._stream.ptr)
        wanted = call.kind is Kind.ALL_REDUCE or self.rank == roster.root
        if divided and call.target is not None and wanted:
            _divide(array, ranks)

    def _reduction(self, found: tuple[str, str], call: Call, ranks: int) -> tuple[int, int, bool]:
        """NCCL's element type and operator, and whether the result is still to be divided."""
        kind, op = found
        assert call.dtype is not None
        divided = call.op is ReduceOp.AVG and not (
            ranks == self.world_size and nccl_types.divides(call.dtype, ranks)
        )
        return self._constant(kind), self._constant("NCCL_SUM" if divided else op), divided

    def _reduce_gathered(self, comm: Any, call: Call, roster: Roster) -> None:
        """Every rank gets what all have, piece by piece, and reduces it itself, in rank order."""
        assert call.op is not None
        assert call.dtype is not None
        cupy, width = self._library.cupy, call.dtype.itemsize
        step = max(_SCRATCH_NBYTES // (self.world_size * width), 1)
        for begin in range(0, call.columns, step):
            end = min(begin + step, call.columns)
            rows = cupy.empty((self.world_size, end - begin), call.dtype)
            given = rows[self.rank] if call.source is None else call.source[0, begin:end]
            nbytes = (end - begin) * width
            comm.allGather(
                address(given), address(rows), nbytes, self._constant(BYTES), self._stream.ptr
            )
            wanted = call.kind is Kind.ALL_REDUCE or self.rank == roster.root
            if call.target is not None and wanted:
                sources = [rows[rank] for rank in roster.participants]
                reduce_arrays(sources, [call.target[begin:end]], call.op)

    def _reduce_scatter(self, comm: Any, call: Call, roster: Roster) -> None:
        assert call.op is not None
        assert call.dtype is not None
        assert call.source is not None
        assert call.target is not None
        found = nccl_types.native(call.op, call.dtype)
        if found is not None:
            kind, op, divided = self._reduction(found, call, self.world_size)
            at, to = address(call.source), address(call.target)
            comm.reduceScatter(at, to, call.columns, kind, op, self._stream.ptr)
            if divided:
                _divide(call.target, self.world_size)
            return
        rows = self._library.cupy.empty((self.world_size, call.columns), call.dtype)
        self._exchange(comm, _rows(call.source), _rows(rows))
        sources = [rows[rank] for rank in range(self.world_size)]
        reduce_arrays(sources, [call.target], call.op)

    def _broadcast(self, comm: Any, call: Call, roster: Roster) -> None:
        array = call.target
        if array is None:  # In join(): passes on what comes through.
            array = self._library.cupy.empty(call.columns, call.dtype)
        at, kind = address(array), self._constant(BYTES)
        comm.broadcast(at, at, call.nbytes, kind, roster.root, self._stream.ptr)

    def _all_gather(self, comm: Any, call: Call, roster: Roster) -> None:
        assert call.source is not None
        assert call.target is not None
        at, to, kind = address(call.source), address(call.target), self._constant(BYTES)
        comm.allGather(at, to, call.nbytes, kind, self._stream.ptr)

    def _all_to_all(self, comm: Any, call: Call, roster: Roster) -> None:
        assert call.source is not None
        assert call.target is not None
        self._exchange(comm, _rows(call.source), _rows(call.target))

    def _exchange(self, comm: Any, outgoing: Sequence[Array], incoming: Sequence[Array]) -> None:
        """Send `outgoing[i]` to rank i, and fill `incoming[j]` with what rank j sends: one group.

        In a group no send waits for its receive, or everybody would wait for everybody.
        """
        kind, stream = self._constant(BYTES), self._stream.ptr
        mine, own = outgoing[self.rank], incoming[self.rank]
        if own.nbytes and address(own) != address(mine):
            own[...] = mine.reshape(own.shape)
        self._nccl.groupStart()
        try:
            for rank in range(self.world_size):
                if rank == self.rank:
                    continue
                if outgoing[rank].nbytes:
                    at = address(outgoing[rank])
                    comm.send(at, outgoing[rank].nbytes, kind, rank, stream)
                if incoming[rank].nbytes:
                    at = address(incoming[rank])
                    comm.recv(at, incoming[rank].nbytes, kind, rank, stream)
        finally:
            self._nccl.groupEnd()

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

    def post_send(self, array: Array, dst: int, tag: int) -> Pending:
        return self._host.post_send(array, dst, tag)

    def post_recv(self, array: Array, src: int | None, tag: int) -> Pending:
        return self._host.post_recv(array, src, tag)

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


def _divide(array: Array, count: int) -> None:
    wide = array.astype(accumulator(array.dtype), copy=False)
    divide(wide, count)
    if wide is not array:
        array[...] = wide.astype(array.dtype)


def _rows(array: Array) -> list[Array]:
    return [array[rank] for rank in range(array.shape[0])]


_MOVES: dict[Kind, Callable[[NcclTransport, Any, Call, Roster], None]] = {
    Kind.ALL_REDUCE: NcclTransport._all_reduce,
    Kind.REDUCE: NcclTransport._all_reduce,
    Kind.BROADCAST: NcclTransport._broadcast,
    Kind.ALL_GATHER: NcclTransport._all_gather,
    Kind.REDUCE_SCATTER: NcclTransport._reduce_scatter,
    Kind.ALL_TO_ALL: NcclTransport._all_to_all,
}
