"""The interface between the collectives and what connects the ranks.

Owns: `Transport` (meet, move, split, allocate), and `Watch`, the patience of one meeting.
Must not know: any particular way of connecting ranks.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from dptrain.comm.call import PRIVATE, Call, Roster
from dptrain.comm.errors import CollectiveTimeoutError, RankLeftError, rank_prefix
from dptrain.core.device import device

# How often somebody who waits looks whether a peer has left.
POLL_S = 0.25
# How the reason of a rank begins that leaves because another did.
GAVE_UP_AS = "gave up, as "
# Why a process is gone of which nothing was heard.
ENDED = "has ended without closing its communicator"


class Pending(ABC):
    """A send or a receive that has been started.

    Attributes:
        peer: the other rank; of a receive from any rank None until the message has come.
    """

    def __init__(self, peer: int | None) -> None:
        self.peer = peer

    @abstractmethod
    def test(self) -> bool:
        """Whether it is over; drives it on. Never blocks.

        Raises:
            ValueError: the message has another size or type of elements than the array.
        """

    @staticmethod
    def check(room: tuple[int, str], sent: tuple[int, str], src: int) -> None:
        """Compare bytes and dtype of the array that receives with those that rank `src` sent.

        Raises:
            ValueError: they differ.
        """
        if sent[0] != room[0]:
            raise ValueError(f"recv has room for {room[0]} bytes, but rank {src} sent {sent[0]}")
        if sent[1] != room[1]:
            raise ValueError(
                f"recv expects elements of type {room[1]}, but rank {src} sent {sent[1]}"
            )


class Awaited(Protocol):
    """What somebody waits for: how to name it, and for how long."""

    timeout_s: float

    def describe(self) -> str:
        """What it is and where it was called."""


class Watch:
    """How long a rank has waited for the others in one meeting or message, and what it does about it.

    Warns once on stderr after `warn_after_s`, names the missing ranks and asks them for their
    Python stacks; gives up after the timeout of the call.
    """

    __slots__ = ("_begin_s", "_call", "_transport", "_warn_after_s", "spin")

    def __init__(
        self, transport: Transport, call: Awaited, warn_after_s: float | None, spin: bool = False
    ) -> None:
        self._transport = transport
        self._call = call
        self._warn_after_s = warn_after_s
        self._begin_s = time.monotonic()
        # Whether this thread may poll for some microseconds before it sleeps: only where no other
        # thread of this process is kept from computing by that.
        self.spin = spin

    def patience_s(self) -> float:
        """How long to sleep before the next `check`, at most."""
        left_s = self._call.timeout_s - (time.monotonic() - self._begin_s)
        if self._warn_after_s is not None:
            left_s = min(left_s, self._warn_after_s - (time.monotonic() - self._begin_s))
        return min(POLL_S, max(left_s, 0.001))

    def check(self, missing: Sequence[int]) -> None:
        """Warn or give up, if it is time.

        Args:
            missing: the ranks that have not come.

        Raises:
            CollectiveTimeoutError: the timeout of the call has passed.
        """
        elapsed_s = time.monotonic() - self._begin_s
        if elapsed_s >= self._call.timeout_s:
            raise CollectiveTimeoutError(
                f"{self._prefix()} {self._call.describe()} timed out after "
                f"{self._call.timeout_s:g} s; {self._absence(missing)}"
            )
        if self._warn_after_s is not None and elapsed_s >= self._warn_after_s:
            self._warn_after_s = None  # Once per meeting.
            asked = [rank for rank in missing if self._transport.request_stack(rank)]
            stacks = (
                f"; asked for the Python stack of rank {', '.join(map(str, asked))}"
                if asked
                else ""
            )
            print(
                f"{self._prefix()} waiting for {elapsed_s:.1f} s in {self._call.describe()}: "
                f"{self._absence(missing)}{stacks}",
                file=sys.stderr,
                flush=True,
            )

    def left(self, rank: int, reason: str) -> RankLeftError:
        """The error for a peer that will not come any more."""
        # Who gives up because of another rank says so, and its cause is passed on as it is.
        cause = f"rank {rank} {reason}"
        if reason.startswith(GAVE_UP_AS):
            cause = reason.removeprefix(GAVE_UP_AS)
        return RankLeftError(
            f"{self._prefix()} rank {rank} {reason} while this rank waits for it in "
            f"{self._call.describe()}; rank {rank}'s last collective: "
            f"{self._transport.last_seen(rank)}",
            cause,
        )

    def stopped(self, reason: str) -> RankLeftError:
        """The error for a job that somebody has ended."""
        return RankLeftError(f"{self._prefix()} {self._call.describe()} was stopped: {reason}")

    def _prefix(self) -> str:
        return rank_prefix(self._transport.rank, self._transport.world_size)

    def _absence(self, missing: Sequence[int]) -> str:
        if not missing:
            return "every rank has come, but the data has not"
        return "; ".join(
            f"rank {rank} is missing (its last collective: {self._transport.last_seen(rank)})"
            for rank in missing
        )


class Transport(ABC):
    """What connects the ranks. Used by one thread at a time, except for sends and receives."""

    backend: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @abstractmethod
    def meet(self, record: bytes, source: np.ndarray[Any, Any] | None, watch: Watch) -> list[bytes]:
        """Give this rank's header record and return those of all ranks, by rank.

        Blocks until every rank has come. `source` may be shown to the peers on the same occasion.

        Raises:
            RankLeftError: a rank that has not come has left.
            CollectiveTimeoutError: see `Watch`.
        """

    @abstractmethod
    def move(self, call: Call, roster: Roster, watch: Watch) -> None:
        """Move the data of a call that all ranks agreed on in the `meet` just before."""

    @abstractmethod
    def move_parts(self, call: Call, lengths: np.ndarray[Any, Any], watch: Watch) -> None:
        """Move every rank's outgoing parts of a call into the incoming ones of the others.

        Args:
            lengths: (ranks, ranks) int64, bytes from rank i to rank j, as all ranks agreed.
        """

    def finish(self, call: Call) -> None:
        """Do what is left to do with the parts that have come."""
        if call.parts is not None and call.parts.finish is not None:
            call.parts.finish()

    @abstractmethod
    def exchange(self, text: str, watch: Watch) -> list[str]:
        """Every rank's text, by rank; each cut to about 2,000 characters."""

    @abstractmethod
    def split(self, color: int | None, key: int, watch: Watch) -> Transport | None:
        """The transport among the ranks that gave the same color; None for color None."""

    @abstractmethod
    def allocate(self, nbytes: int, watch: Watch) -> np.ndarray[Any, Any]:
        """This rank's part of a new piece of memory: (nbytes,) uint8, 64-byte aligned."""

    @abstractmethod
    def release(self, buffer: np.ndarray[Any, Any]) -> None:
        """Treat a buffer of `allocate` as any other memory from now on; on all ranks alike."""

    def position(self, array: np.ndarray[Any, Any]) -> tuple[int, int]:
        """Where peers find `array`; see `Call.position`."""
        return PRIVATE

    def serves(self, place: device) -> bool:
        """Whether arrays on a GPU are moved as they are; else they are brought to the host first.

        Raises:
            ValueError: arrays there cannot be moved at all.
        """
        return False

    def order(self, call: Call) -> Callable[[], None]:
        """Have a call on a GPU run after the work that the caller has started there so far.

        Sets the call's `on_gpu` and `captured`.

        Returns:
            What whoever waits for the call has to do on their own thread.
        """
        raise NotImplementedError(f"{type(self).__name__} moves the host's memory only")

    def settle(self) -> None:  # noqa: B027 - most have nothing to wait for
        """Return when what was moved on GPUs so far is there; before a barrier."""

    @abstractmethod
    def post_send(self, array: np.ndarray[Any, Any], dst: int, tag: int, dtype: str) -> Pending:
        """Start sending the bytes of `array`, which stand for elements of type `dtype`."""

    @abstractmethod
    def post_recv(
        self, array: np.ndarray[Any, Any], src: int | None, tag: int, dtype: str
    ) -> Pending:
        """Start receiving elements of type `dtype` into the bytes of `array`; `src` None: from any rank."""

    def has_left(self, rank: int) -> str | None:
        """Why `rank` takes part in nothing any more, or None if it does as far as is known."""
        return None

    def last_seen(self, rank: int) -> str:
        """The last collective that `rank` is known to have come to."""
        return "unknown"

    def request_stack(self, rank: int) -> bool:
        """Ask the process of `rank` to print its Python stacks; whether that was possible."""
        return False

    @abstractmethod
    def abort(self, code: int) -> None:
        """End every rank of the job now, those that wait included."""

    @abstractmethod
    def leave(self, reason: str | None) -> None:
        """Tell the others that this rank takes part in nothing any more.

        Args:
            reason: None if it is closing normally, else what went wrong. Never blocks for long.
        """


def private_memory(nbytes: int) -> np.ndarray[Any, Any]:
    """(nbytes,) zeroed uint8 of this process, on a 64-byte boundary."""
    room = np.zeros(nbytes + 64, np.uint8)
    begin = -room.__array_interface__["data"][0] % 64
    return room[begin : begin + nbytes]
