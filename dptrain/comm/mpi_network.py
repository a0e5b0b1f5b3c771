"""Processes of several hosts, connected by messages.

Owns: how ranks meet and how data moves where no memory is shared. Must not know: arguments, queues.

Ranks meet by sending each other their header records, which shows who is missing. Data moves as
bytes and is reduced here, in rank order, so that every type can be sent and every result is the
same as in shared memory. Waiting polls: MPI makes no progress by itself, and its own waits would
keep a core busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from mpi4py import MPI

from dptrain.comm.call import RECORD_NBYTES, Call, Header, Kind, Roster, is_of
from dptrain.comm.mpi_link import MpiLink, failed_ranks, pieces
from dptrain.comm.reduction import reduce_arrays
from dptrain.comm.transport import ENDED, Transport, Watch, private_memory

Array = np.ndarray[Any, Any]

_TEXT_NBYTES = 2048
_NOTE_TAG = 1
_PART_TAG = 2
# Up to here every rank gets all arrays and reduces them itself: one message less to wait for.
SMALL_NBYTES = 64 * 1024
# Bytes of one rank's array that move at a time.
_CHUNK_NBYTES = 32 << 20
# How long to poll without a pause: before the others have come, and while data is moving.
_EAGER_S = 50e-6
_MOVING_S = 0.1
_LONGEST_PAUSE_S = 500e-6
# How long it may take until MPI knows which process has ended, after an error that says that one has.
_NEWS_S = 0.5


class NetworkTransport(MpiLink):
    """Connects processes wherever they run."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        local_rank: int,
        local_world_size: int,
        reconnect: Callable[[MPI.Intracomm], Transport],
    ) -> None:
        super().__init__(comm, local_rank, local_world_size)
        self._reconnect = reconnect
        self._peers = [rank for rank in range(self.world_size) if rank != self.rank]
        self._inbox = np.zeros((self.world_size, RECORD_NBYTES), np.uint8)
        self._last = [b""] * self.world_size
        self._left: list[str | None] = [None] * self.world_size
        # Every rank goes through the same meetings and transfers; this many are behind this rank.
        self._steps = 0
        self._steps_of_leaver = [0] * self.world_size
        self._sending: list[tuple[MPI.Request, bytes]] = []
        self._coming = {rank: self._expect(rank) for rank in self._peers}

    # -- meeting -----------------------------------------------------------------------------------

    def meet(self, record: bytes, source: Array | None, watch: Watch) -> list[bytes]:
        with self._naming_the_dead(watch):
            return self._meet(record, watch)

    @contextmanager
    def _naming_the_dead(self, watch: Watch) -> Iterator[None]:
        """An error of MPI is the end of a process, where MPI lives to tell."""
        try:
            yield
        except MPI.Exception as error:
            until_s = time.monotonic() + _NEWS_S
            while not (failed := failed_ranks(self.comm)):
                if time.monotonic() > until_s:
                    raise
                time.sleep(_LONGEST_PAUSE_S)
            raise watch.left(failed[0], ENDED) from error

    def _meet(self, record: bytes, watch: Watch) -> list[bytes]:
        self._send_notes(record)
        self._look_for_leavers(watch)
        self._poll(self._all_here, self._missing, watch, _EAGER_S)
        for rank in self._peers:
            if is_of(Kind.CLOSE, bytes(self._inbox[rank])):
                self._steps -= 1  # This was no meeting.
                self._look_for_leavers(watch)
        records = [bytes(row) for row in self._inbox]
        records[self.rank] = record
        for rank in self._peers:
            self._coming[rank] = self._expect(rank)
        self._last = records
        return records

    def _expect(self, rank: int) -> MPI.Request:
        """Start to receive the next record of `rank`."""
        return self.comm.Irecv([self._inbox[rank], MPI.BYTE], source=rank, tag=_NOTE_TAG)

    def _send_notes(self, record: bytes) -> None:
        self._sending = [pair for pair in self._sending if not _is_over(pair[0])]
        error: MPI.Exception | None = None
        for rank in self._peers:
            try:
                request = self.comm.Isend([record, MPI.BYTE], dest=rank, tag=_NOTE_TAG)
            except MPI.Exception as dead:
                error = dead  # The others are told all the same.
            else:
                self._sending.append((request, record))  # The bytes have to live until it is sent.
        if error is not None:
            raise error

    def _all_here(self) -> bool:
        return MPI.Request.Testall(list(self._coming.values()))

    def _missing(self) -> list[int]:
        return [rank for rank in self._peers if not self._arrived(rank)]

    def _arrived(self, rank: int) -> bool:
        """Whether the next record of `rank` is in the inbox."""
        return self._coming[rank] == MPI.REQUEST_NULL or self._coming[rank].Test()

    def _poll(
        self,
        done: Callable[[], bool],
        missing: Callable[[], list[int]],
        watch: Watch,
        eager_s: float,
    ) -> None:
        """Return when `done()`; polls without a pause for `eager_s`, then with growing pauses."""
        begin_s = time.perf_counter()
        pause_s = 0.0
        while not done():
            if time.perf_counter() - begin_s > eager_s:
                pause_s = min(max(2 * pause_s, 20e-6), _LONGEST_PAUSE_S)
                self._look_for_leavers(watch)
                watch.check(missing())
            time.sleep(pause_s)
        self._steps += 1

    def _look_for_leavers(self, watch: Watch) -> None:
        """Raise if a rank has left without taking part in the step that is waited for."""
        for rank in self._peers:
            if self._left[rank] is None and self._arrived(rank):
                record = bytes(self._inbox[rank])
                if is_of(Kind.CLOSE, record):
                    header = Header.parse(record)
                    self._left[rank] = _reason_in(header.text)
                    self._steps_of_leaver[rank] = header.nbytes
            reason = self._left[rank]
            # A rank that has finished this step and left since has done its part.
            if reason is not None and self._steps_of_leaver[rank] <= self._steps:
                raise watch.left(rank, reason)

    def exchange(self, text: str, watch: Watch) -> list[str]:
        mine = np.zeros(_TEXT_NBYTES, np.uint8)
        data = np.frombuffer(text.encode()[:_TEXT_NBYTES], np.uint8)
        mine[: data.size] = data
        texts = np.empty((self.world_size, _TEXT_NBYTES), np.uint8)
        self._finish(self.comm.Iallgather([mine, MPI.BYTE], [texts, MPI.BYTE]), watch)
        return [bytes(row).partition(b"\0")[0].decode(errors="replace") for row in texts]

    def _finish(self, request: MPI.Request, watch: Watch) -> None:
        """Drive a collective of MPI on until it is over."""
        self._poll(request.Test, lambda: [], watch, _MOVING_S)

    # -- data --------------------------------------------------------------------------------------

    def move(self, call: Call, roster: Roster, watch: Watch) -> None:
        if call.nbytes == 0 or call.dtype is None:
            return
        step = max(_CHUNK_NBYTES // (call.rows * call.dtype.itemsize), 1)
        with self._naming_the_dead(watch):
            for begin in range(0, call.columns, step):
                piece = slice(begin, min(begin + step, call.columns))
                if call.kind is Kind.BROADCAST:
                    self._broadcast(call, roster, piece, watch)
                elif call.kind in (Kind.ALL_REDUCE, Kind.REDUCE):
                    self._reduce(call, roster, piece, watch)
                else:
                    self._distribute(call, piece, watch)

    def _distribute(self, call: Call, piece: slice, watch: Watch) -> None:
        """The calls in which ranks get different things, and no rank can be missing."""
        source, target = call.source, call.target
        assert source is not None
        assert target is not None
        if call.kind is Kind.ALL_GATHER:
            target[:, piece] = self._gather(source[0, piece], watch)
        elif call.kind is Kind.ALL_TO_ALL:
            target[:, piece] = self._transpose(source[:, piece], watch)
        elif call.kind is Kind.REDUCE_SCATTER:
            assert call.op is not None
            reduce_arrays(list(self._transpose(source[:, piece], watch)), [target[piece]], call.op)

    def _broadcast(self, call: Call, roster: Roster, piece: slice, watch: Watch) -> None:
        if call.target is None:  # In join(): passes on what comes through.
            data = np.empty(piece.stop - piece.start, call.dtype)
        else:
            data = call.target[piece]
        buffer = [data.view(np.uint8), MPI.BYTE]
        self._finish(self.comm.Ibcast(buffer, root=roster.root), watch)

    def _reduce(self, call: Call, roster: Roster, piece: slice, watch: Watch) -> None:
        """Reduce on all ranks; the result stays with the root if there is one."""
        assert call.op is not None
        length = piece.stop - piece.start
        # What a rank in join() sends is received by the others and left out.
        source = call.source
        mine = np.zeros(length, call.dtype) if source is None else source[0, piece]
        if mine.nbytes <= SMALL_NBYTES:
            arrays = self._gather(mine, watch)
            result = np.empty(length, call.dtype)
            reduce_arrays([arrays[rank] for rank in roster.participants], [result], call.op)
        else:
            # Every rank reduces one part and gives the result to all: each byte crosses the
            # network twice, however many ranks there are.
            part = -(-length // self.world_size)
            padded = np.zeros((self.world_size, part), call.dtype)
            padded.reshape(-1)[:length] = mine
            parts = self._transpose(padded, watch)
            reduced = np.empty(part, call.dtype)
            reduce_arrays([parts[rank] for rank in roster.participants], [reduced], call.op)
            result = self._gather(reduced, watch).reshape(-1)[:length]
        if call.target is not None and (call.kind is Kind.ALL_REDUCE or self.rank == roster.root):
            call.target[piece] = result

    def move_parts(self, call: Call, lengths: Array, watch: Watch) -> None:
        with self._naming_the_dead(watch):
            self._move_parts(call, lengths, watch)

    def _move_parts(self, call: Call, lengths: Array, watch: Watch) -> None:
        parts, requests = call.parts, []
        assert parts is not None
        for rank, room in enumerate(parts.incoming):
            if rank == self.rank:
                np.copyto(room, parts.outgoing[rank])
            elif lengths[rank, self.rank]:
                requests += [
                    self.comm.Irecv([piece, MPI.BYTE], source=rank, tag=_PART_TAG)
                    for piece in pieces(room)
                ]
        for rank in self._peers:
            if lengths[self.rank, rank]:
                requests += [
                    self.comm.Isend([piece, MPI.BYTE], dest=rank, tag=_PART_TAG)
                    for piece in pieces(parts.outgoing[rank])
                ]
        self._poll(lambda: MPI.Request.Testall(requests), lambda: [], watch, _MOVING_S)

    def _gather(self, array: Array, watch: Watch) -> Array:
        """(world_size, len(array)): the flat arrays of all ranks."""
        out = np.empty((self.world_size, array.size), array.dtype)
        send, receive = [array.view(np.uint8), MPI.BYTE], [out.view(np.uint8), MPI.BYTE]
        self._finish(self.comm.Iallgather(send, receive), watch)
        return out

    def _transpose(self, array: Array, watch: Watch) -> Array:
        """(world_size, n): row r is what rank r has in its row `rank`."""
        array = np.ascontiguousarray(array)
        out = np.empty_like(array)
        send, receive = [array.view(np.uint8), MPI.BYTE], [out.view(np.uint8), MPI.BYTE]
        self._finish(self.comm.Ialltoall(send, receive), watch)
        return out

    def allocate(self, nbytes: int, watch: Watch) -> Array:
        return private_memory(nbytes)

    def release(self, buffer: Array) -> None:
        pass  # It was private memory all along.

    def split(self, color: int | None, key: int, watch: Watch) -> Transport | None:
        comm = MPI.Intracomm(self.comm.Split(MPI.UNDEFINED if color is None else color, key))
        return None if comm == MPI.COMM_NULL else self._reconnect(comm)

    # -- who is here -------------------------------------------------------------------------------

    def has_left(self, rank: int) -> str | None:
        return self._left[rank]

    def last_seen(self, rank: int) -> str:
        if not self._last[rank]:
            return "none yet"
        header = Header.parse(self._last[rank])
        return f"{header.text}, number {header.number}"

    def leave(self, reason: str | None) -> None:
        why = reason or "closed its communicator"
        with suppress(MPI.Exception):  # A dead rank need not be told.
            self._send_notes(Call(Kind.CLOSE, count=self._steps, name=why).record())
        for request in self._coming.values():
            if request != MPI.REQUEST_NULL:
                request.Cancel()
                request.Free()
        self._coming = dict.fromkeys(self._peers, MPI.REQUEST_NULL)


def _is_over(request: MPI.Request) -> bool:
    try:
        return request.Test()
    except MPI.Exception:  # To a rank that is dead.
        return True


def _reason_in(text: str) -> str:
    """Why a rank left, from the text of its last record, which may have been cut."""
    return text.removeprefix("close(name='").removesuffix("')")
