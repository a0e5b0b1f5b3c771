"""Collectives among ranks that can read each other's memory.

Owns: `SharedTransport`, how every collective is done once a rank can see the arrays of its peers:
directly (threads, shared windows), or piece by piece through a staging area.
Must not know: how that memory came to be shared, or how ranks wait for each other.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from dptrain.comm.call import PRIVATE, Call, Kind, Parts, Roster
from dptrain.comm.reduction import reduce_arrays
from dptrain.comm.transport import Transport, Watch

Array = np.ndarray[Any, Any]
# Slices of a reduction begin on multiples of this many elements: no cache line has two writers.
_SLICE_ELEMENTS = 1024
_FENCE = b""


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

    def move(self, call: Call, roster: Roster, watch: Watch) -> None:
        if call.nbytes == 0 or call.dtype is None:
            return
        if self.chunk_nbytes is None:
            self._move_directly(
                call, roster, self.views(call.rows, call.columns, call.dtype), watch
            )
        elif call.nbytes <= self.small_nbytes:
            views = self.views(call.rows, call.columns, call.dtype)
            self._finish_piece(call, roster, views, 0, call.columns)
        elif roster.position != PRIVATE:
            windows = self.window_views(roster.position, call.nbytes)
            shape = (call.rows, call.columns)
            views = [window.view(call.dtype).reshape(shape) for window in windows]
            self._move_directly(call, roster, views, watch)
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
            views = self.views(call.rows, end - begin, call.dtype)
            if shared:
                # Each rank reduces a slice for all. For two it is less work that each reduces
                # everything it needs.
                self._reduce_slice(call, roster, views, end - begin)
                self.meet(_FENCE, None, watch)
                if call.target is not None:
                    np.copyto(call.target[begin:end], views[self.rank][0])
            else:
                self._finish_piece(call, roster, views, begin, end)
        # No closing fence: what is shown stays untouched until every rank has come to the next
        # meeting, whatever that will be.

    def move_parts(self, parts: Parts, lengths: Array, watch: Watch) -> None:
        """Show this rank's parts behind one another, as much at a time as a meeting can show."""
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

    def _finish_piece(
        self, call: Call, roster: Roster, views: list[Array], begin: int, end: int
    ) -> None:
        """Complete columns `begin` to `end` of this rank's target from the peers' views of them."""
        target, ranks = call.target, roster.participants
        if target is None or self.rank not in ranks:
            return
        if call.kind is Kind.ALL_REDUCE or (call.kind is Kind.REDUCE and self.rank == roster.root):
            assert call.op is not None
            reduce_arrays([views[rank][0] for rank in ranks], [target[begin:end]], call.op)
        elif call.kind is Kind.BROADCAST and self.rank != roster.root:
            np.copyto(target[begin:end], views[roster.root][0])
        elif call.kind is Kind.ALL_GATHER:
            for rank in ranks:
                np.copyto(target[rank, begin:end], views[rank][0])
        elif call.kind is Kind.REDUCE_SCATTER:
            assert call.op is not None
            mine = [views[rank][self.rank] for rank in ranks]
            reduce_arrays(mine, [target[begin:end]], call.op)
        elif call.kind is Kind.ALL_TO_ALL:
            for rank in ranks:
                np.copyto(target[rank, begin:end], views[rank][self.rank])

    def _move_directly(self, call: Call, roster: Roster, views: list[Array], watch: Watch) -> None:
        """Work on the peers' arrays where they lie, then wait until everybody has."""
        if call.kind is Kind.ALL_REDUCE:
            self._reduce_slice(call, roster, views, call.columns)
        else:
            self._finish_piece(call, roster, views, 0, call.columns)
        self.meet(_FENCE, None, watch)

    def _reduce_slice(self, call: Call, roster: Roster, views: list[Array], columns: int) -> None:
        """Reduce this rank's slice of the views and write it into all of them.

        Ranks in join() do their share of the work.
        """
        assert call.op is not None
        per_rank = -(-columns // (self.world_size * _SLICE_ELEMENTS)) * _SLICE_ELEMENTS
        mine = slice(self.rank * per_rank, min((self.rank + 1) * per_rank, columns))
        if mine.start < mine.stop:
            sources = [views[rank][0][mine] for rank in roster.participants]
            reduce_arrays(sources, sources, call.op)
