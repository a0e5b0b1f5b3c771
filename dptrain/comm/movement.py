"""Collectives among ranks that can read each other's memory.

Owns: `SharedTransport`, how every collective is done once a rank can see the arrays of its peers:
directly (threads, shared windows), by copying from and to their memory, or piece by piece through a
staging area.
Must not know: how that memory came to be shared, or how ranks wait for each other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dptrain.comm.call import PRIVATE, Call, Kind, Roster
from dptrain.comm.reduction import reduce_arrays
from dptrain.comm.transport import Transport, Watch

Array = np.ndarray[Any, Any]
# Slices of a reduction begin on multiples of this many elements: no cache line has two writers.
_SLICE_ELEMENTS = 1024
_FENCE = b""
_REDUCTIONS = frozenset({Kind.ALL_REDUCE, Kind.REDUCE, Kind.REDUCE_SCATTER})
# Bytes of the peers' arrays that are copied here before they are reduced: they stay in the cache.
_ACROSS_NBYTES = 512 * 1024


class SharedTransport(Transport):
    """A transport whose ranks read each other's memory.

    Attributes:
        small_nbytes: arrays up to this size are shown to the peers by the header meeting itself.
        chunk_nbytes: how much one meeting can show; None if any array, as it lies in memory.
    """

    small_nbytes: int
    chunk_nbytes: int | None

    @abstractmethod
    def views(self, rows: int, columns: int, dtype: np.dtype[Any]) -> list[Array]:
        """Each rank's source of the last meeting, (rows, columns); undefined where it had none."""

    def window_views(self, position: tuple[int, int], nbytes: int) -> list[Array]:
        """Each rank's `nbytes` bytes at `position` of its part of a window: uint8 arrays."""
        raise NotImplementedError(f"{type(self).__name__} has no windows")

    def fetch(self, rank: int, address: int, into: Array, watch: Watch) -> None:
        """Copy what lies at `address` in the memory of `rank` into the contiguous `into`."""
        raise NotImplementedError(f"{type(self).__name__} cannot reach other processes' memory")

    def store(self, rank: int, address: int, array: Array, watch: Watch) -> None:
        """Copy the contiguous `array` to `address` in the memory of `rank`."""
        raise NotImplementedError(f"{type(self).__name__} cannot reach other processes' memory")

    def move(self, call: Call, roster: Roster, watch: Watch) -> None:
        if call.nbytes == 0 or call.dtype is None:
            return
        if self.chunk_nbytes is None:
            self._move_directly(
                call, roster, self.views(call.rows, call.columns, call.dtype), watch
            )
        elif call.nbytes <= self.small_nbytes:
            rows = self._rows(call, roster, self.views(call.rows, call.columns, call.dtype))
            self._finish_piece(call, roster, rows, 0, call.columns)
        elif roster.position != PRIVATE:
            windows = self.window_views(roster.position, call.nbytes)
            shape = (call.rows, call.columns)
            views = [window.view(call.dtype).reshape(shape) for window in windows]
            self._move_directly(call, roster, views, watch)
        elif roster.addresses:
            self._move_across(call, roster, watch)
        else:
            self._move_in_pieces(call, roster, watch)

    def _move_in_pieces(self, call: Call, roster: Roster, watch: Watch) -> None:
        """Show piece after piece of the source; each rank completes its own target."""
        assert call.dtype is not None
        assert self.chunk_nbytes is not None
        step = max(self.chunk_nbytes // (call.rows * call.dtype.itemsize), 1)
        # Of a broadcast only the root shows anything.
        shown = None if call.kind is Kind.BROADCAST and roster.root != self.rank else call.source
        shared = call.kind is Kind.ALL_REDUCE and self.world_size > 2
        for begin in range(0, call.columns, step):
            end = min(begin + step, call.columns)
            self.meet(_FENCE, None if shown is None else shown[:, begin:end], watch)
            rows = self._rows(call, roster, self.views(call.rows, end - begin, call.dtype))
            if shared:
                # Each rank reduces a slice for all. For two it is less work that each reduces
                # everything it needs.
                self._reduce_slice(call, roster, rows, end - begin)
                self.meet(_FENCE, None, watch)
                if call.target is not None:
                    np.copyto(call.target[begin:end], rows[self.rank])
            else:
                self._finish_piece(call, roster, rows, begin, end)
        # No closing fence: what is shown stays untouched until every rank has come to the next
        # meeting, whatever that will be.

    def move_parts(self, call: Call, lengths: Array, watch: Watch) -> None:
        """Show this rank's parts behind one another, as much at a time as a meeting can show."""
        parts = call.parts
        assert parts is not None
        if parts.same_to_all:
            stream, offsets, totals = parts.outgoing[0], np.zeros_like(lengths), lengths.max(axis=1)
        else:
            stream = np.concatenate(parts.outgoing)
            offsets, totals = np.cumsum(lengths, axis=1) - lengths, lengths.sum(axis=1)
        longest = int(totals.max())
        step = longest if self.chunk_nbytes is None else self.chunk_nbytes
        for begin in range(0, longest, max(step, 1)):
            self.meet(_FENCE, stream[begin : begin + step].reshape(1, -1), watch)
            views = self.views(1, step, stream.dtype)
            for rank, room in enumerate(parts.incoming):
                offset, length = int(offsets[rank, self.rank]), int(lengths[rank, self.rank])
                first, last = max(offset, begin), min(offset + length, begin + step)
                if first < last:
                    shown = views[rank][0][first - begin : last - begin]
                    np.copyto(room[first - offset : last - offset], shown)
        if self.chunk_nbytes is None and longest:
            self.meet(_FENCE, None, watch)  # What was shown is the memory itself.

    def _rows(self, call: Call, roster: Roster, views: Sequence[Array]) -> dict[int, Array]:
        """By rank that shows something, the row of its view that this rank has to do with."""
        row = self._row(call)
        shown = (roster.root,) if call.kind is Kind.BROADCAST else roster.participants
        return {rank: views[rank][row] for rank in shown}

    def _row(self, call: Call) -> int:
        return self.rank if call.rows > 1 else 0

    def _finish_piece(
        self, call: Call, roster: Roster, rows: Mapping[int, Array], begin: int, end: int
    ) -> None:
        """Complete columns `begin` to `end` of this rank's target from the peers' rows of them."""
        target, ranks = call.target, roster.participants
        if target is None or self.rank not in ranks:
            return
        if call.kind in _REDUCTIONS:
            if call.kind is not Kind.REDUCE or self.rank == roster.root:
                assert call.op is not None
                reduce_arrays([rows[rank] for rank in ranks], [target[begin:end]], call.op)
        elif call.kind is Kind.BROADCAST:
            if self.rank != roster.root:
                np.copyto(target[begin:end], rows[roster.root])
        else:
            for rank in ranks:
                np.copyto(target[rank, begin:end], rows[rank])

    def _move_directly(self, call: Call, roster: Roster, views: list[Array], watch: Watch) -> None:
        """Work on the peers' arrays where they lie, then wait until everybody has."""
        rows = self._rows(call, roster, views)
        if call.kind is Kind.ALL_REDUCE:
            self._reduce_slice(call, roster, rows, call.columns)
        else:
            self._finish_piece(call, roster, rows, 0, call.columns)
        self.meet(_FENCE, None, watch)

    def _reduce_slice(
        self, call: Call, roster: Roster, rows: Mapping[int, Array], columns: int
    ) -> None:
        """Reduce this rank's slice of the rows and write it into all of them.

        Ranks in join() do their share of the work.
        """
        assert call.op is not None
        mine = self._own_slice(columns)
        if mine.start < mine.stop:
            sources = [rows[rank][mine] for rank in roster.participants]
            reduce_arrays(sources, sources, call.op)

    def _own_slice(self, columns: int) -> slice:
        per_rank = -(-columns // (self.world_size * _SLICE_ELEMENTS)) * _SLICE_ELEMENTS
        return slice(self.rank * per_rank, min((self.rank + 1) * per_rank, columns))

    def _move_across(self, call: Call, roster: Roster, watch: Watch) -> None:
        """Copy from and to the peers' memory, then wait until everybody has."""
        target, row = call.target, self._row(call)
        if call.kind in _REDUCTIONS:
            self._reduce_across(call, roster, watch)
        elif target is not None and self.rank in roster.participants:
            if call.kind is not Kind.BROADCAST:
                rooms = dict(enumerate(target))
            else:
                rooms = {} if self.rank == roster.root else {roster.root: target}
            for rank, room in rooms.items():
                if rank == self.rank:
                    assert call.source is not None
                    np.copyto(room, call.source[row])
                else:
                    self.fetch(rank, roster.addresses[rank] + row * room.nbytes, room, watch)
        self.meet(_FENCE, None, watch)

    def _reduce_across(self, call: Call, roster: Roster, watch: Watch) -> None:
        """Reduce what this rank has to do with, block by block; an all_reduce's slice for everybody.

        Ranks in join() do their share of the work.
        """
        assert call.op is not None
        assert call.dtype is not None
        wanted = slice(0, call.columns)
        if call.kind is Kind.ALL_REDUCE:
            wanted = self._own_slice(call.columns)
        elif call.kind is Kind.REDUCE and self.rank != roster.root:
            return
        ranks, row = roster.participants, self._row(call)
        others = [rank for rank in ranks if rank != self.rank]
        step = max(_ACROSS_NBYTES // (max(len(others), 1) * call.dtype.itemsize), _SLICE_ELEMENTS)
        scratch = np.empty((len(ranks), step), call.dtype)
        for begin in range(wanted.start, wanted.stop, step):
            end = min(begin + step, wanted.stop)
            rows = list(scratch[:, : end - begin])
            total = rows[0]
            offset = (row * call.columns + begin) * call.dtype.itemsize
            for i, rank in enumerate(ranks):
                if rank != self.rank:
                    self.fetch(rank, roster.addresses[rank] + offset, rows[i], watch)
                elif call.source is not None and call.target is not None:
                    rows[i], total = call.source[row, begin:end], call.target[begin:end]
            reduce_arrays(rows, [total], call.op)
            if call.kind is Kind.ALL_REDUCE:
                for rank in others:
                    self.store(rank, roster.addresses[rank] + offset, total, watch)
