"""Processes of one host, connected by memory that they share.

Owns: the control memory in which ranks meet, the staging areas through which private arrays pass
where ranks may not reach each other's memory, and the windows of `allocate`. Must not know: what the collectives do with what they see.

MPI brings the processes together and carries their sends and receives; collectives never call it.

Each rank has a slot that it alone writes: a word that counts the meetings it has come to, two
header records, and its state. To meet is to write the record, then the word, to wake whoever sleeps
on the word, and to wait for the words of the others. Records and staging areas have two sides, used
in turn: a rank may come to the next meeting while another still reads what was shown at this one,
but not to the one after that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from dptrain.comm import futex
from dptrain.comm.call import AT_ADDRESS, PRIVATE, RECORD_NBYTES, Header
from dptrain.comm.errors import RankLeftError
from dptrain.comm.movement import SharedTransport
from dptrain.comm.mpi_link import MpiLink
from dptrain.comm.peer import Peer
from dptrain.comm.segment import Segment
from dptrain.comm.transport import ENDED, Transport, Watch, private_memory

Array = np.ndarray[Any, Any]

_PAGE = 4096
# Offsets in a slot. Word, state and records lie in different cache lines.
_SLOT_NBYTES = 4096
_WORD, _STATE, _PID, _HAS_HANDLER = 0, 64, 72, 80
_REASON, _REASON_NBYTES = 128, 128
_RECORDS = (512, 1024)
_TEXT, _TEXT_NBYTES = 2048, 2048
_SMALL_NBYTES = 64 * 1024
_CHUNK_NBYTES = 512 * 1024
_WORD_MASK = 2**32 - 1
# How long a rank polls before it sleeps; about what falling asleep and waking up cost.
_SPIN_S = 30e-6


class HostTransport(MpiLink, SharedTransport):
    """Connects the processes of one host."""

    small_nbytes = _SMALL_NBYTES
    chunk_nbytes = _CHUNK_NBYTES

    def __init__(
        self,
        comm: MPI.Intracomm,
        control: Segment,
        reconnect: Callable[[MPI.Intracomm], Transport],
        peer_memory: bool,
    ) -> None:
        super().__init__(comm, comm.rank, comm.size)
        self._reconnect = reconnect
        self._control = control.bytes
        self._memory = memoryview(control.bytes)  # type: ignore[arg-type]
        self._words = self._memory.cast("I")
        self._slots = [rank * _SLOT_NBYTES for rank in range(self.world_size)]
        self._word_at = [(slot + _WORD) // 4 for slot in self._slots]
        self._state_at = [(slot + _STATE) // 4 for slot in self._slots]
        base = control.bytes.__array_interface__["data"][0]
        self._address = [base + slot + _WORD for slot in self._slots]
        self._peers = [rank for rank in range(self.world_size) if rank != self.rank]
        self._stages = self._slots[-1] + _SLOT_NBYTES
        self._turn = 0
        self._windows: dict[int, tuple[Segment, int, int]] = {}
        self._num_windows = 0
        self._order_memory = _memory_barrier()
        self._processes = [Peer(pid) for pid in comm.allgather(os.getpid())]
        self._introduce()
        self._reaches = peer_memory and _reach_each_other(comm, self._processes)

    def _introduce(self) -> None:
        """Write into the slot what the others have to know to ask for a stack."""
        facts = self._control[self._slots[self.rank] :]
        facts[_PID : _PID + 8].view(np.int64)[0] = os.getpid()
        facts[_HAS_HANDLER] = _shows_stacks()

    # -- meeting -----------------------------------------------------------------------------------

    def meet(self, record: bytes, source: Array | None, watch: Watch) -> list[bytes]:
        self._turn = turn = (self._turn + 1) & _WORD_MASK
        memory, side = self._memory, _RECORDS[turn & 1]
        if record:
            begin = self._slots[self.rank] + side
            memory[begin : begin + RECORD_NBYTES] = record
        if source is not None and source.nbytes <= (_SMALL_NBYTES if record else _CHUNK_NBYTES):
            np.copyto(self._stage(self.rank, source.shape, source.dtype), source)
        if self._order_memory is not None:
            self._order_memory()
        # From here on the others may read what was written above.
        self._words[self._word_at[self.rank]] = turn
        futex.wake(self._address[self.rank])
        behind = (turn - 1) & _WORD_MASK
        for rank in self._peers:
            if self._words[self._word_at[rank]] == behind:
                self._await(rank, behind, watch)
        if self._order_memory is not None:
            self._order_memory()
        if not record:
            return []
        return [bytes(memory[slot + side : slot + side + RECORD_NBYTES]) for slot in self._slots]

    def _await(self, rank: int, behind: int, watch: Watch) -> None:
        """Return when the word of `rank` is no longer `behind`."""
        words, at = self._words, self._word_at[rank]
        if watch.spin:
            until_s = time.perf_counter() + _SPIN_S
            while time.perf_counter() < until_s:
                if words[at] != behind:
                    return
                os.sched_yield()  # The rank that is waited for may need this very core.
        while words[at] == behind:
            # The state is read before the word is read again: a rank comes, and then leaves.
            reason = self._said_why(rank)
            if reason is not None and words[at] == behind:
                raise watch.left(rank, reason)
            futex.wait(self._address[rank], behind, watch.patience_s())
            if words[at] == behind:
                if self._processes[rank].has_ended() and words[at] == behind:
                    raise watch.left(rank, self._said_why(rank) or ENDED)
                watch.check([r for r in self._peers if words[self._word_at[r]] == behind])

    def exchange(self, text: str, watch: Watch) -> list[str]:
        begin = self._slots[self.rank] + _TEXT
        data = text.encode()[: _TEXT_NBYTES - 1]
        self._memory[begin : begin + len(data) + 1] = data + b"\0"
        self.meet(b"", None, watch)
        return [self._text(slot + _TEXT, _TEXT_NBYTES) for slot in self._slots]

    def _text(self, begin: int, nbytes: int) -> str:
        data = bytes(self._memory[begin : begin + nbytes])
        return data.partition(b"\0")[0].decode(errors="replace")

    # -- data --------------------------------------------------------------------------------------

    def views(self, rows: int, columns: int, dtype: np.dtype[Any]) -> list[Array]:
        return [self._stage(rank, (rows, columns), dtype) for rank in range(self.world_size)]

    def _stage(self, rank: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        begin = self._stages + (2 * rank + (self._turn & 1)) * _CHUNK_NBYTES
        return np.ndarray(shape, dtype, self._control, begin)

    def allocate(self, nbytes: int, watch: Watch) -> Array:
        window, self._num_windows = self._num_windows, self._num_windows + 1
        stride = -(-max(nbytes, 1) // _PAGE) * _PAGE
        segment = share(self.comm, stride * self.world_size)
        if segment is None:  # No memory to share; the collectives work from private memory too.
            return private_memory(nbytes)
        self._windows[window] = (segment, stride, nbytes)
        begin = self.rank * stride
        return segment.bytes[begin : begin + nbytes]

    def release(self, buffer: Array) -> None:
        self._windows.pop(self.position(buffer)[0], None)

    def position(self, array: Array) -> tuple[int, int]:
        if not self._windows and array.nbytes <= _SMALL_NBYTES:
            return PRIVATE
        address = array.__array_interface__["data"][0]
        for window, (segment, stride, nbytes) in self._windows.items():
            begin = segment.bytes.__array_interface__["data"][0] + self.rank * stride
            if begin <= address and address + array.nbytes <= begin + nbytes:
                return window, address - begin
        reached = self._reaches and array.nbytes > _SMALL_NBYTES
        return (AT_ADDRESS, address) if reached else PRIVATE

    def window_views(self, position: tuple[int, int], nbytes: int) -> list[Array]:
        segment, stride, _ = self._windows[position[0]]
        begins = [rank * stride + position[1] for rank in range(self.world_size)]
        return [segment.bytes[begin : begin + nbytes] for begin in begins]

    def fetch(self, rank: int, address: int, into: Array, watch: Watch) -> None:
        try:
            self._processes[rank].read(address, into)
        except OSError as error:
            raise self._lost(rank, error, watch) from error

    def store(self, rank: int, address: int, array: Array, watch: Watch) -> None:
        try:
            self._processes[rank].write(address, array)
        except OSError as error:
            raise self._lost(rank, error, watch) from error

    def _lost(self, rank: int, error: OSError, watch: Watch) -> RankLeftError:
        # A process that is ending has no memory any more before it is seen to have ended.
        ended = error.errno == errno.ESRCH or self._processes[rank].has_ended()
        return watch.left(rank, ENDED if ended else f"cannot be reached any more ({error})")

    def split(self, color: int | None, key: int, watch: Watch) -> Transport | None:
        comm = MPI.Intracomm(self.comm.Split(MPI.UNDEFINED if color is None else color, key))
        return None if comm == MPI.COMM_NULL else self._reconnect(comm)

    # -- who is here -------------------------------------------------------------------------------

    def has_left(self, rank: int) -> str | None:
        reason = self._said_why(rank)
        return reason or (ENDED if self._processes[rank].has_ended() else None)

    def _said_why(self, rank: int) -> str | None:
        """What a rank that has left wrote into its slot."""
        if not self._words[self._state_at[rank]]:
            return None
        return self._text(self._slots[rank] + _REASON, _REASON_NBYTES)

    def last_seen(self, rank: int) -> str:
        # Only the newer side is sure to hold a header: fences write none.
        headers = []
        for side in _RECORDS:
            begin = self._slots[rank] + side
            headers.append(Header.parse(bytes(self._memory[begin : begin + RECORD_NBYTES])))
        newest = max(headers, key=lambda header: header.number)
        return f"{newest.text}, number {newest.number}" if newest.number else "none yet"

    def request_stack(self, rank: int) -> bool:
        facts = self._control[self._slots[rank] :]
        if rank == self.rank or not facts[_HAS_HANDLER]:
            return False
        try:
            os.kill(int(facts[_PID : _PID + 8].view(np.int64)[0]), signal.SIGUSR2)
        except OSError:
            return False
        return True

    def leave(self, reason: str | None) -> None:
        slot = self._slots[self.rank]
        data = (reason or "closed its communicator").encode()[: _REASON_NBYTES - 1]
        self._memory[slot + _REASON : slot + _REASON + len(data) + 1] = data + b"\0"
        if self._order_memory is not None:
            self._order_memory()
        self._words[self._state_at[self.rank]] = 1
        futex.wake(self._address[self.rank])


def share(comm: MPI.Intracomm, nbytes: int) -> Segment | None:
    """Shared memory of the ranks of `comm`, or None on all of them if some rank cannot have it."""
    segment = None
    with contextlib.suppress(OSError):  # None is agreed upon below.
        if comm.rank == 0:
            segment = Segment.create(nbytes)
    path = comm.bcast("" if segment is None else segment.path)
    with contextlib.suppress(OSError):
        if comm.rank != 0 and path:
            segment = Segment.attach(path, nbytes)
    everywhere = all(comm.allgather(segment is not None))
    if segment is not None:
        segment.seal()
    return segment if everywhere else None


def control_nbytes(world_size: int) -> int:
    """The size of the control memory: slots, then two sides of staging area for each rank."""
    return world_size * (_SLOT_NBYTES + 2 * _CHUNK_NBYTES)


def _reach_each_other(comm: MPI.Intracomm, processes: Sequence[Peer]) -> bool:
    """Whether every rank of `comm` may read the memory of every other."""
    token = np.frombuffer(os.urandom(16), np.uint8)
    facts = comm.allgather((token.__array_interface__["data"][0], token.tobytes()))
    copy, reached = np.zeros_like(token), True
    for process, (address, wanted) in zip(processes, facts, strict=True):
        try:
            process.read(address, copy)
        except OSError:
            reached = False
        reached = reached and copy.tobytes() == wanted
    # Everybody has to decide alike; and the tokens have to stay until all have looked.
    return all(comm.allgather(reached))


def _shows_stacks() -> bool:
    """Whether this process prints its Python stacks on SIGUSR2 rather than dying of it.

    That is so if the signal is caught, but by no Python function: `faulthandler.register`.
    """
    if signal.getsignal(signal.SIGUSR2) not in (None, signal.SIG_DFL):
        return False
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1)
    return False


def _memory_barrier() -> Callable[[], None] | None:
    """Makes writes visible in their order; None where the processor does so by itself."""
    if platform.machine() in ("x86_64", "AMD64"):
        return None
    window = MPI.Win.Create(None, comm=MPI.COMM_SELF)
    window.Lock_all()  # Synchronising is defined inside an epoch only; MPICH insists.
    return window.Sync
