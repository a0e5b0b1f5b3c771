"""The meeting of the ranks with which every collective begins.

Owns: the exchange and comparison of headers, the reaction to a mismatch, the answers of a rank in
`join()`, and the state of a communicator that an error has broken.
Must not know: queues, threads, arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dptrain.comm.call import (
    AT_ADDRESS,
    NO_ROOT,
    PRIVATE,
    Call,
    Header,
    Kind,
    Roster,
    is_of,
    mismatch_error,
    position_of,
    same_call,
)
from dptrain.comm.communicator import JoinResult
from dptrain.comm.errors import CommunicatorError, rank_prefix
from dptrain.comm.reduction import dtype_from_name
from dptrain.comm.transport import GAVE_UP_AS, Transport, Watch
from dptrain.comm.work import Work


class Meetings:
    """Runs the collectives of one communicator, one at a time.

    Args:
        transport: the connection of the ranks.
        name: of the communicator.
        warn_after_s: when to warn about missing ranks; None never does.
        may_spin: whether the calling thread may poll for a moment before it sleeps.

    Attributes:
        broken: the error after which the communicator can no longer be used; None while it can.
        closed: whether the communicator was closed here.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        warn_after_s: float | None,
        may_spin: Callable[[], bool],
    ) -> None:
        self.broken: BaseException | None = None
        self.closed = False
        self._transport = transport
        self._name = name
        self._warn_after_s = warn_after_s
        self._may_spin = may_spin
        self._number = 0
        self._everyone = tuple(range(transport.world_size))

    def check_usable(self) -> None:
        """Refuse to go on after an error or after `close()`.

        Raises:
            CommunicatorError: see above; it repeats what broke the communicator.
        """
        if self.broken is None and not self.closed:
            return
        prefix = rank_prefix(self._transport.rank, self._transport.world_size)
        if self.broken is None:
            raise CommunicatorError(f"{prefix} communicator {self._name!r} is closed")
        # The first error may never have been looked at: nobody waited for its call.
        raise CommunicatorError(
            f"{prefix} communicator {self._name!r} can no longer be used after an error: "
            f"{self.broken}"
        ) from self.broken

    def execute(self, call: Call, work: Work) -> None:
        """Meet, then move the data of `call`."""
        if call.kind is Kind.BARRIER:
            self.check_usable()
            with _Breaking(self):
                self._transport.settle()
        roster, _, watch = self.meet(call, work)
        with _Breaking(self):
            if call.parts is not None:
                lengths = call.parts.lengths
                if lengths is None:
                    lengths = self._tell_sizes(call, roster, watch)
                self._transport.move_parts(call, lengths, watch)
                self._transport.finish(call)
            elif call.dtype is not None:
                self._transport.move(call, roster, watch)

    def _tell_sizes(self, call: Call, roster: Roster, watch: Watch) -> np.ndarray[Any, Any]:
        """(ranks, ranks) bytes from rank i to rank j, having compared both sides' views of it.

        The meeting of `call` has just shown every rank's sizes.

        Raises:
            CollectiveMismatchError: a rank sends another size than its receiver has room for.
        """
        size = self._transport.world_size
        both = np.empty((size, 2 * size), np.int64)
        sizes = Call(
            Kind.ALL_GATHER,
            dtype=both.dtype,
            columns=2 * size,
            source=call.source,
            target=both,
            timeout_s=call.timeout_s,
        )
        self._transport.move(sizes, roster, watch)
        sent, expected = both[:, :size], both[:, size:].T
        wrong = np.argwhere(sent != expected)
        if wrong.size:
            src, dst = map(int, wrong[0])
            raise mismatch_error(
                self._transport.rank,
                self._transport.exchange(call.describe(), watch),
                f"the ranks disagree about sizes: rank {src} sends {sent[src, dst]} bytes to rank "
                f"{dst}, which has room for {expected[src, dst]}",
            )
        return sent

    def meet(self, call: Call, work: Work) -> tuple[Roster, list[bytes], Watch]:
        """Come together with all ranks over `call`.

        Raises:
            CollectiveMismatchError: the ranks do not make the same call.
            CommunicatorError: a rank left, or did not come in time; or see `check_usable`.
        """
        self.check_usable()
        self._number += 1
        call.number = self._number
        watch = Watch(self._transport, call, self._warn_after_s, spin=self._may_spin())
        if not work.started_ns:
            work.started_ns = time.perf_counter_ns()
        with _Breaking(self):
            records = self._transport.meet(call.record(), self._shown(call), watch)
            work.met_ns = time.perf_counter_ns()
            return self._agree(call, records, watch), records, watch

    def join(self, call: Call, work: Work) -> JoinResult:
        """Answer the joinable collectives of the others until all ranks are here."""
        shadowed = 0
        while True:
            call.count = shadowed
            roster, records, watch = self.meet(call, work)
            if not roster.participants:
                counts = tuple(Header.parse(record).nbytes for record in records)
                return JoinResult(shadowed, counts)
            shadowed += 1
            header = Header.parse(records[roster.participants[0]])
            dtype = dtype_from_name(header.dtype_name)
            # The others' call without arrays: this rank only keeps step with their meetings, and
            # reduces its slice of shared memory for them.
            mirror = Call(
                header.kind,
                op=header.op,
                dtype=dtype,
                root=header.root,
                timeout_s=call.timeout_s,
                columns=header.nbytes // dtype.itemsize,
                site=call.site,
                on_gpu=header.on_gpu,
            )
            with _Breaking(self):
                self._transport.move(mirror, roster, watch)

    def fail(self, error: BaseException) -> None:
        """Mark the communicator as broken by `error` and let the others know."""
        if self.broken is None:
            self.broken = error
            cause = getattr(error, "cause", "")
            self._transport.leave(
                f"{GAVE_UP_AS}{cause}" if cause else f"gave up ({type(error).__name__})"
            )

    def _shown(self, call: Call) -> np.ndarray[Any, Any] | None:
        """What the meeting itself shows of `call`: on a broadcast only the root's array.

        Of arrays on GPUs nothing, but the sizes where these differ by rank.
        """
        if call.on_gpu and not call.is_uneven:
            return None
        if call.kind is Kind.BROADCAST and call.root not in (NO_ROOT, self._transport.rank):
            return None
        return call.source

    def _agree(self, call: Call, records: Sequence[bytes], watch: Watch) -> Roster:
        rank = self._transport.rank
        if same_call(records, rank):
            ranks = () if call.kind is Kind.JOIN else self._everyone
            return self._roster(ranks, call.root, records)
        ranks = tuple(other for other in self._everyone if not is_of(Kind.JOIN, records[other]))
        acting = [records[other] for other in ranks]
        if len(ranks) < len(records) and same_call(acting, 0):
            header = Header.parse(acting[0])
            if header.joinable and header.root in (NO_ROOT, *ranks):
                return self._roster(ranks, header.root, records)
        raise mismatch_error(rank, self._transport.exchange(call.describe(), watch))

    def _roster(self, ranks: tuple[int, ...], root: int, records: Sequence[bytes]) -> Roster:
        if not ranks:
            return Roster((), root, PRIVATE)
        found = {rank: position_of(records[rank]) for rank in ranks}
        positions = set(found.values())
        position, addresses = PRIVATE, {}
        if all(window == AT_ADDRESS for window, _ in positions):
            addresses = {rank: address for rank, (_, address) in found.items()}
        elif len(positions) == 1:
            position = positions.pop()
        if root == NO_ROOT and is_of(Kind.BROADCAST, records[ranks[0]]):
            root = ranks[0]  # broadcast(root=None): the lowest rank that takes part.
        return Roster(ranks, root, position, addresses)


class _Breaking:
    """Whatever is raised inside, be it Ctrl-C, leaves the ranks out of step: that breaks."""

    __slots__ = ("_meetings",)

    def __init__(self, meetings: Meetings) -> None:
        self._meetings = meetings

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            self._meetings.fail(error)
