"""What each collective is in NCCL.

Owns: `NcclMoves`. Must not know: how ranks connect, when a call may run, when it is over.

NCCL adds in an order of its own (the same result on every rank), 16-bit types in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dptrain.comm import nccl_types
from dptrain.comm.call import Call, Kind, Roster
from dptrain.comm.nccl_types import BYTES
from dptrain.comm.reduction import ReduceOp, accumulator, divide, reduce_arrays
from dptrain.comm.transport import Transport
from dptrain.core.arrays import address

Array = Any
#: Scratch memory for what the ranks gather to reduce it themselves, in bytes.
_SCRATCH_NBYTES = 64 << 20


class NcclMoves(Transport):
    """Calls of NCCL, on the current GPU and a stream; the connection is a subclass's."""

    _nccl: Any  #: CuPy's binding
    _library: Any  #: CuPy
    _stream: Any

    def _constant(self, name: str) -> int:
        return int(getattr(self._nccl, name))

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


def _divide(array: Array, count: int) -> None:
    wide = array.astype(accumulator(array.dtype), copy=False)
    divide(wide, count)
    if wide is not array:
        array[...] = wide.astype(array.dtype)


def _rows(array: Array) -> list[Array]:
    return [array[rank] for rank in range(array.shape[0])]


#: What a kind of call is done by.
MOVES: dict[Kind, Callable[[NcclMoves, Any, Call, Roster], None]] = {
    Kind.ALL_REDUCE: NcclMoves._all_reduce,
    Kind.REDUCE: NcclMoves._all_reduce,
    Kind.BROADCAST: NcclMoves._broadcast,
    Kind.ALL_GATHER: NcclMoves._all_gather,
    Kind.REDUCE_SCATTER: NcclMoves._reduce_scatter,
    Kind.ALL_TO_ALL: NcclMoves._all_to_all,
}
