"""Ranks as threads of one process.

Owns: `ThreadTransport`, and `run_ranks`, which runs a function once per rank.
Must not know: MPI. For tests, for learning, and for several devices in one process: the same
contract as between processes, the same checks, no start-up.
"""

from __future__ import annotations

import contextvars
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from dptrain.comm.call import Header
from dptrain.comm.collectives import TransportCommunicator
from dptrain.comm.communicator import DEFAULT_TIMEOUT_S, Communicator
from dptrain.comm.errors import rank_prefix
from dptrain.comm.movement import SharedTransport
from dptrain.comm.transport import Pending, Transport, Watch, private_memory

Array = np.ndarray[Any, Any]
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class _Board:
    """What the ranks of one group share. Everything is guarded by `changed`."""

    def __init__(self, world_size: int) -> None:
        self.changed = threading.Condition()
        self.turns = [0] * world_size
        # Two sides, used in turn: a rank may come to the next meeting while another one has yet to
        # read what was put here for this one; it cannot come to the one after that.
        self.records = [[b""] * world_size for _ in range(2)]
        self.sources: list[list[Array | None]] = [[None] * world_size for _ in range(2)]
        self.notes: list[Any] = [None] * world_size
        self.left: list[str | None] = [None] * world_size
        self.aborted: str | None = None
        self.last = [b""] * world_size
        self.mail: defaultdict[tuple[int, int, int], deque[tuple[Array, str]]] = defaultdict(deque)
        self.subgroups: list[_Board] = []


class _Sent(Pending):
    def test(self) -> bool:
        return True


class _Receiving(Pending):
    def __init__(
        self, board: _Board, array: Array, src: int | None, dst: int, tag: int, dtype: str
    ) -> None:
        super().__init__(src)
        self._board, self._array, self._dst, self._tag, self._dtype = board, array, dst, tag, dtype

    def test(self) -> bool:
        sources = range(len(self._board.turns)) if self.peer is None else (self.peer,)
        with self._board.changed:
            for src in sources:
                letters = self._board.mail[src, self._dst, self._tag]
                if letters:
                    letter, dtype = letters.popleft()
                    break
            else:
                return False
        self.peer = src
        self.check((self._array.size, self._dtype), (letter.size, dtype), src)
        np.copyto(self._array, letter)
        return True


class ThreadTransport(SharedTransport):
    """Connects threads: each sees the others' arrays where they lie."""

    backend = "thread"
    small_nbytes = 0
    chunk_nbytes = None

    def __init__(self, board: _Board, rank: int, world_size: int) -> None:
        self._board = board
        self._turn = 0
        self.rank = self.local_rank = rank
        self.world_size = self.local_world_size = world_size

    def meet(self, record: bytes, source: Array | None, watch: Watch) -> list[bytes]:
        board, self._turn = self._board, self._turn + 1
        side = self._turn & 1
        with board.changed:
            board.records[side][self.rank] = record
            board.sources[side][self.rank] = source
            if record:
                board.last[self.rank] = record
            board.turns[self.rank] = self._turn
            board.changed.notify_all()
            while missing := [r for r, turn in enumerate(board.turns) if turn < self._turn]:
                if board.aborted is not None:
                    raise watch.stopped(board.aborted)
                for rank in missing:
                    reason = board.left[rank]
                    if reason is not None:
                        raise watch.left(rank, reason)
                board.changed.wait(watch.patience_s())
                watch.check(missing)
            return list(board.records[side])

    def views(self, rows: int, columns: int, dtype: np.dtype[Any]) -> list[Array]:
        # None for ranks in join(): nobody reads theirs.
        return list(self._board.sources[self._turn & 1])  # type: ignore[arg-type]

    def exchange(self, text: str, watch: Watch) -> list[str]:
        return [str(note) for note in self._share(text, watch)]

    def _share(self, note: Any, watch: Watch) -> list[Any]:
        """Every rank's note, by rank."""
        self._board.notes[self.rank] = note
        self.meet(b"", None, watch)
        notes = list(self._board.notes)
        self.meet(b"", None, watch)  # Nobody writes the next note before all have read this one.
        return notes

    def split(self, color: int | None, key: int, watch: Watch) -> Transport | None:
        wishes = self._share((color, key), watch)
        members = sorted((wish[1], rank) for rank, wish in enumerate(wishes) if wish[0] == color)
        ranks = [rank for _, rank in members]
        # The first member makes the board, and all read it at one place.
        first = color is not None and ranks[0] == self.rank
        own = _Board(len(ranks)) if first else None
        if own is not None:
            # Before any member can use it, so that an abort finds every group there is.
            with self._board.changed:
                self._board.subgroups.append(own)
        boards = self._share(own, watch)
        if color is None:
            return None
        board: _Board = boards[ranks[0]]
        return ThreadTransport(board, ranks.index(self.rank), len(ranks))

    def allocate(self, nbytes: int, watch: Watch) -> Array:
        return private_memory(nbytes)

    def release(self, buffer: Array) -> None:
        pass  # It was private memory all along.

    def post_send(self, array: Array, dst: int, tag: int, dtype: str) -> Pending:
        with self._board.changed:
            self._board.mail[self.rank, dst, tag].append((array.copy(), dtype))
        return _Sent(dst)

    def post_recv(self, array: Array, src: int | None, tag: int, dtype: str) -> Pending:
        return _Receiving(self._board, array, src, self.rank, tag, dtype)

    def has_left(self, rank: int) -> str | None:
        return self._board.left[rank]

    def last_seen(self, rank: int) -> str:
        record = self._board.last[rank]
        if not record:
            return "none yet"
        header = Header.parse(record)
        return f"{header.text}, number {header.number}"

    def abort(self, code: int) -> None:
        _abort(self._board, f"rank {self.rank} aborted the job with code {code}")

    def leave(self, reason: str | None) -> None:
        with self._board.changed:
            self._board.left[self.rank] = reason or "closed its communicator"
            self._board.changed.notify_all()


def _abort(board: _Board, reason: str) -> None:
    """Make every rank that waits, here or in a group split off from here, stop."""
    with board.changed:
        board.aborted = board.aborted or reason
        board.left = [left or f"was stopped, as {reason}" for left in board.left]
        board.changed.notify_all()
        subgroups = list(board.subgroups)
    for subgroup in subgroups:
        _abort(subgroup, reason)


def connect(
    world_size: int,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    warn_after_s: float | None = 30.0,
) -> list[TransportCommunicator]:
    """Communicators that connect `world_size` threads; one for each, by rank."""
    if world_size < 1:
        raise ValueError(f"world_size has to be 1 or more, got {world_size}")
    board = _Board(world_size)
    return [
        TransportCommunicator(
            ThreadTransport(board, rank, world_size),
            timeout_s=timeout_s,
            warn_after_s=warn_after_s,
        )
        for rank in range(world_size)
    ]


def run_ranks(
    world_size: int,
    fn: Callable[Concatenate[Communicator, _Parameters], _Result],
    *args: _Parameters.args,
    **kwargs: _Parameters.kwargs,
) -> list[_Result]:
    """Run `fn(communicator, *args, **kwargs)` on `world_size` threads, one per rank.

    Each thread has its own copy of the caller's context variables, in which the communicator is the
    default one.

    Returns:
        What the calls returned, by rank.

    Raises:
        Exception: the first exception of any rank, with `[rank r/N]` in front of its message. The
            other ranks are stopped: their collectives raise `RankLeftError`.
    """
    from dptrain.comm.default import set_default

    communicators = connect(world_size)
    results: list[Any] = [None] * world_size
    failures: list[tuple[int, BaseException]] = []

    def run(communicator: TransportCommunicator) -> None:
        set_default(communicator)
        try:
            results[communicator.rank] = fn(communicator, *args, **kwargs)
        except BaseException as error:
            failures.append((communicator.rank, error))
            communicator.abort(1)
        finally:
            communicator.close()

    threads = [
        threading.Thread(
            target=contextvars.copy_context().run,
            args=(run, communicator),
            name=f"dptrain-rank-{communicator.rank}",
            daemon=True,
        )
        for communicator in communicators
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        rank, error = failures[0]
        raise _with_rank(error, rank, world_size)
    return results


def _with_rank(error: BaseException, rank: int, world_size: int) -> BaseException:
    prefix = rank_prefix(rank, world_size)
    if not error.args or not isinstance(error.args[0], str):
        error.add_note(f"{prefix} raised this")
    elif not error.args[0].startswith("[rank "):
        error.args = (f"{prefix} {error.args[0]}", *error.args[1:])
    return error
