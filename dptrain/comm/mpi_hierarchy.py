"""Processes of several hosts, with several on some host: shared memory inside, messages between.

Owns: how large reductions, broadcasts and gatherings go through one rank per host, the leader.
Must not know: how ranks meet, which is as among hosts of one rank each (`mpi_network`).

A reduction is computed inside every host first, in rank order, and then over the hosts, in the order
of their leaders. So a result depends on the grouping of the ranks, but neither on timing nor on the
rank that looks at it. Only the leaders' messages cross the network: for a reduction two times the
array per host, however many ranks the host has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from dptrain.comm.arguments import flat_bytes
from dptrain.comm.call import NO_ROOT, PRIVATE, Call, Kind, Parts, Roster
from dptrain.comm.errors import RankLeftError
from dptrain.comm.mpi_host import HostTransport
from dptrain.comm.mpi_network import SMALL_NBYTES, NetworkTransport
from dptrain.comm.reduction import ReduceOp, accumulator, divide, reduce_arrays
from dptrain.comm.transport import Transport, Watch

_FENCE = b""


class _PartWatch(Watch):
    """The patience of a call while only a part of its ranks is waited for."""

    __slots__ = ("_ranks", "_whole")

    def __init__(self, whole: Watch, ranks: Sequence[int]) -> None:
        self._whole, self._ranks = whole, ranks
        self.spin = whole.spin

    def patience_s(self) -> float:
        return self._whole.patience_s()

    def check(self, missing: Sequence[int]) -> None:
        self._whole.check([self._ranks[rank] for rank in missing])

    def left(self, rank: int, reason: str) -> RankLeftError:
        return self._whole.left(self._ranks[rank], reason)

    def stopped(self, reason: str) -> RankLeftError:
        return self._whole.stopped(reason)


class HierarchicalTransport(NetworkTransport):
    """Connects processes of several hosts.

    Args:
        inside: the ranks of this host.
        leaders: the first ranks of all hosts, on a leader; else None.
        hosts: for each host its ranks, ascending; hosts in the order of their first ranks.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        inside: HostTransport,
        leaders: NetworkTransport | None,
        hosts: Sequence[Sequence[int]],
        reconnect: Callable[[MPI.Intracomm], Transport],
    ) -> None:
        super().__init__(comm, inside.rank, inside.world_size, reconnect)
        self._inside = inside
        self._leaders = leaders
        self._hosts = hosts
        self._host_of = {rank: host for host, ranks in enumerate(hosts) for rank in ranks}

    def move(self, call: Call, roster: Roster, watch: Watch) -> None:
        # What ranks send each other one by one is the same number of bytes either way.
        if call.nbytes <= SMALL_NBYTES or call.kind is Kind.ALL_TO_ALL:
            super().move(call, roster, watch)
            return
        assert call.dtype is not None
        here = self._hosts[self._host_of[self.rank]]
        inner = _PartWatch(watch, here)
        outer = _PartWatch(watch, [ranks[0] for ranks in self._hosts])
        shown = call.source
        if call.kind is Kind.BROADCAST and self.rank != roster.root:
            shown = None
        # Rows that a rank shows, and rows that the leader shows of the result.
        results = {Kind.ALL_GATHER: self.world_size, Kind.REDUCE_SCATTER: len(here)}
        rows = results.get(call.kind, 1)
        widest = max(rows, call.rows)
        step = max(self._inside.chunk_nbytes // (widest * call.dtype.itemsize), 1)
        for begin in range(0, call.columns, step):
            piece = slice(begin, min(begin + step, call.columns))
            length = piece.stop - begin
            self._inside.meet(_FENCE, None if shown is None else shown[:, piece], inner)
            result = None
            if self._leaders is not None:
                views = self._inside.views(call.rows, length, call.dtype)
                result = self._result(call, roster, views, outer)
            self._inside.meet(_FENCE, result, inner)
            self._take(call, roster, piece, self._inside.views(rows, length, call.dtype)[0])
        # No closing fence: see `SharedTransport`.

    def _take(self, call: Call, roster: Roster, piece: slice, result: np.ndarray) -> None:
        """Complete a piece of this rank's target from what the leader shows."""
        if call.target is None or self.rank not in roster.participants:
            return
        at_root = self.rank == roster.root
        if call.kind is Kind.ALL_GATHER:
            np.copyto(call.target[:, piece], result)
        elif call.kind is Kind.REDUCE_SCATTER:
            np.copyto(call.target[piece], result[self.local_rank])
        elif call.kind is Kind.ALL_REDUCE or at_root is (call.kind is Kind.REDUCE):
            np.copyto(call.target[piece], result[0])

    def _result(
        self, call: Call, roster: Roster, views: list[np.ndarray], watch: Watch
    ) -> np.ndarray:
        """(rows, columns) of a piece, on a leader, from what the ranks of its host show."""
        if call.kind is Kind.BROADCAST:
            return self._passed_on(call, roster, views, watch)
        if call.kind is Kind.ALL_GATHER:
            return self._gathered(views, watch)
        if call.kind is Kind.REDUCE_SCATTER:
            return self._scattered(call, views, watch)
        return self._reduced(call, roster, views, watch)

    def _passed_on(
        self, call: Call, roster: Roster, views: list[np.ndarray], watch: Watch
    ) -> np.ndarray:
        """A piece of the root's array, on every leader."""
        assert self._leaders is not None
        source = self._host_of[roster.root]
        data = np.empty(views[0].size, call.dtype)
        if self._leaders.rank == source:
            np.copyto(data, views[self._hosts[source].index(roster.root)][0])
        self._leaders.move(_between(call, data), Roster((), source, PRIVATE), watch)
        return data.reshape(1, -1)

    def _reduced(
        self, call: Call, roster: Roster, views: list[np.ndarray], watch: Watch
    ) -> np.ndarray:
        """The reduction of a piece over all hosts, on every leader."""
        assert self._leaders is not None
        assert call.op is not None
        assert call.dtype is not None
        acting = [[rank for rank in ranks if rank in roster.participants] for ranks in self._hosts]
        host = self._leaders.rank
        mine = [views[self._hosts[host].index(rank)][0] for rank in acting[host]]
        total = np.zeros(views[0].size, accumulator(call.dtype))
        combine = ReduceOp.SUM if call.op is ReduceOp.AVG else call.op
        if mine:
            wide = [np.asarray(view, total.dtype) for view in mine]
            reduce_arrays(wide, [total], combine)
        between = _between(call, total)
        between.kind, between.op = Kind.ALL_REDUCE, combine
        hosts = tuple(number for number, ranks in enumerate(acting) if ranks)
        self._leaders.move(between, Roster(hosts, NO_ROOT, PRIVATE), watch)
        if call.op is ReduceOp.AVG:
            divide(total, len(roster.participants))
        return total.astype(call.dtype, copy=False).reshape(1, -1)

    def _gathered(self, views: list[np.ndarray], watch: Watch) -> np.ndarray:
        """The pieces of all ranks: every leader sends its host's to every other."""
        mine = np.concatenate(views)
        found = [np.empty((len(ranks), mine.shape[1]), mine.dtype) for ranks in self._hosts]
        self._exchange([mine] * len(found), found, watch)
        result = np.empty((self.world_size, mine.shape[1]), mine.dtype)
        for ranks, rows in zip(self._hosts, found, strict=True):
            result[list(ranks)] = rows
        return result

    def _scattered(self, call: Call, views: list[np.ndarray], watch: Watch) -> np.ndarray:
        """The reduced pieces of this host's ranks: leaders send each other sums over their hosts."""
        assert call.op is not None
        assert call.dtype is not None
        total = np.empty(views[0].shape, accumulator(call.dtype))
        combine = ReduceOp.SUM if call.op is ReduceOp.AVG else call.op
        wide = [np.asarray(view, total.dtype).reshape(-1) for view in views]
        reduce_arrays(wide, [total.reshape(-1)], combine)
        found = [np.empty((len(views), total.shape[1]), total.dtype) for _ in self._hosts]
        self._exchange([total[list(ranks)] for ranks in self._hosts], found, watch)
        result = np.empty_like(found[0])
        reduce_arrays([part.reshape(-1) for part in found], [result.reshape(-1)], combine)
        if call.op is ReduceOp.AVG:
            divide(result, self.world_size)
        return result.astype(call.dtype, copy=False)

    def _exchange(
        self, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray], watch: Watch
    ) -> None:
        """Send `outgoing[i]` to the leader of host i, whose message comes into `incoming[i]`."""
        assert self._leaders is not None
        parts = Parts([flat_bytes(a) for a in outgoing], [flat_bytes(a) for a in incoming])
        # A leader looks at what concerns itself only.
        lengths = np.zeros((len(outgoing), len(incoming)), np.int64)
        lengths[self._leaders.rank] = [part.size for part in parts.outgoing]
        lengths[:, self._leaders.rank] = [part.size for part in parts.incoming]
        self._leaders.move_parts(Call(Kind.ALL_TO_ALL, parts=parts), lengths, watch)

    def leave(self, reason: str | None) -> None:
        self._inside.leave(reason)
        if self._leaders is not None:
            self._leaders.leave(reason)
        super().leave(reason)


def _between(call: Call, data: np.ndarray) -> Call:
    """The part of `call` that the leaders make among themselves."""
    return Call(
        call.kind,
        dtype=data.dtype,
        columns=data.size,
        source=data.reshape(1, -1),
        target=data,
        timeout_s=call.timeout_s,
        site=call.site,
    )
