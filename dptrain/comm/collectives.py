"""A communicator on top of any transport.

Owns: `TransportCommunicator`, its calls and what they ask of their arguments.
Must not know: whether ranks are threads, processes of one host or of several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dptrain.comm import arguments
from dptrain.comm.call import NO_ROOT, Call, Kind
from dptrain.comm.communicator import Communicator, JoinResult
from dptrain.comm.point_to_point import PointToPointWork
from dptrain.comm.reduction import ReduceOp, dtype_name
from dptrain.comm.staging import Staging
from dptrain.comm.submission import Submission
from dptrain.comm.transport import Pending, Transport
from dptrain.comm.work import Work
from dptrain.core.arrays import device_of

Array = np.ndarray[Any, Any]


class TransportCommunicator(Submission):
    """A `Communicator` whose ranks are connected by a `Transport`; the arguments are `Submission`'s."""

    # -- collectives over arrays -------------------------------------------------------------------

    def all_reduce(
        self,
        array: Array,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        name: str | None = None,
        timeout: float | None = None,
        joinable: bool = False,
        async_op: bool = True,
    ) -> Work:
        call = arguments.reduction(Kind.ALL_REDUCE, array, op)
        call.joinable = joinable
        return self._submit(call, name, timeout, async_op, array, (array,))

    def reduce(
        self,
        array: Array,
        root: int = 0,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        arguments.check_rank("root", root, self.rank, self.world_size)
        call = arguments.reduction(Kind.REDUCE, array, op)
        call.root = root
        return self._submit(call, name, timeout, async_op, array, (array,))

    def broadcast(
        self,
        array: Array,
        root: int | None = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        joinable: bool = False,
        async_op: bool = True,
    ) -> Work:
        if root is not None:
            arguments.check_rank("root", root, self.rank, self.world_size)
        elif not joinable:
            raise ValueError("broadcast with root=None needs joinable=True; name a root rank")
        call = arguments.broadcast(array, writeable=root != self.rank)
        call.root = NO_ROOT if root is None else root
        call.joinable = joinable
        return self._submit(call, name, timeout, async_op, array, (array,))

    def all_gather(
        self,
        out: Array,
        array: Array,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        call = arguments.all_gather(out, array, self.world_size)
        return self._submit(call, name, timeout, async_op, out, (out, array))

    def reduce_scatter(
        self,
        out: Array,
        array: Array,
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        call = arguments.reduce_scatter(out, array, op, self.world_size)
        return self._submit(call, name, timeout, async_op, out, (out, array))

    def all_to_all(
        self,
        out: Array,
        array: Array,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        call = arguments.all_to_all(out, array, self.world_size)
        return self._submit(call, name, timeout, async_op, out, (out, array))

    def all_gather_uneven(
        self,
        outs: Sequence[Array],
        array: Array,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        arguments.check_count("outs", outs, self.world_size)
        call = arguments.all_gather_uneven(outs, array)
        return self._submit(call, name, timeout, async_op, None, (*outs, array))

    def reduce_scatter_uneven(
        self,
        out: Array,
        arrays: Sequence[Array],
        op: ReduceOp | str = ReduceOp.SUM,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        arguments.check_count("arrays", arrays, self.world_size)
        call = arguments.reduce_scatter_uneven(out, arrays, op)
        return self._submit(call, name, timeout, async_op, out, (out, *arrays))

    def all_to_all_uneven(
        self,
        outs: Sequence[Array],
        arrays: Sequence[Array],
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        arguments.check_count("outs", outs, self.world_size)
        arguments.check_count("arrays", arrays, self.world_size)
        call = arguments.all_to_all_uneven(outs, arrays)
        return self._submit(call, name, timeout, async_op, None, (*outs, *arrays))

    def gather(
        self,
        out: Array | None,
        array: Array,
        root: int = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        arguments.check_rank("root", root, self.rank, self.world_size)
        call = arguments.gather(out, array, root, self.rank, self.world_size)
        return self._submit(call, name, timeout, async_op, out, (out, array))

    def scatter(
        self,
        out: Array,
        array: Array | None,
        root: int = 0,
        *,
        name: str | None = None,
        timeout: float | None = None,
        async_op: bool = True,
    ) -> Work:
        arguments.check_rank("root", root, self.rank, self.world_size)
        call = arguments.scatter(out, array, root, self.rank, self.world_size)
        return self._submit(call, name, timeout, async_op, out, (out, array))

    def barrier(self, *, name: str | None = None, timeout: float | None = None) -> None:
        self._submit(Call(Kind.BARRIER), name, timeout, False, None, ())

    # -- point to point ----------------------------------------------------------------------------

    def send(
        self, array: Array, dst: int, tag: int = 0, *, timeout: float | None = None
    ) -> PointToPointWork:
        arguments.check_peer("dst", dst, tag, self.rank, self.world_size)
        arguments.check_array("array", array)
        self._meetings.check_usable()
        shown = arguments.flat_bytes(array)
        staging = self._staged([shown], [])
        if staging is not None:
            staging.fetch()
            shown = staging.twin(shown)
        pending = self._transport.post_send(shown, dst, tag, dtype_name(array.dtype))
        return self._started("send", array, None, pending, timeout, shown)

    def recv(
        self, array: Array, src: int | None = None, tag: int = 0, *, timeout: float | None = None
    ) -> PointToPointWork:
        arguments.check_peer("src", src, tag, self.rank, self.world_size)
        arguments.check_array("array", array, writeable=True)
        self._meetings.check_usable()
        room = arguments.flat_bytes(array)
        staging = self._staged([], [room])
        pending = self._transport.post_recv(
            room if staging is None else staging.twin(room), src, tag, dtype_name(array.dtype)
        )
        bring = None if staging is None else staging.bring
        return self._started("recv", array, array, pending, timeout, room, bring)

    def _staged(self, sources: list[Array], targets: list[Array]) -> Staging | None:
        """The twins of what a message carries; of the host's own memory there are none."""
        (array,) = sources or targets
        return None if type(array) is np.ndarray else Staging(sources, targets, device_of(array))

    def _started(
        self,
        kind: str,
        array: Array,
        result: Array | None,
        pending: Pending,
        timeout: float | None,
        moved: Array,
        bring: Callable[[], None] | None = None,
    ) -> PointToPointWork:
        return PointToPointWork(
            kind,
            pending,
            self._transport,
            nbytes=array.nbytes,
            result=result,
            kept=(array, moved),
            bring=bring,
            timeout_s=self.timeout_s if timeout is None else timeout,
            warn_after_s=self.warn_after_s,
            observe=self._observe,
        )

    # -- groups and memory -------------------------------------------------------------------------

    def join(self, *, timeout: float | None = None) -> JoinResult:
        call = Call(Kind.JOIN)
        return self._run_now(call, timeout, lambda work: self._meetings.join(call, work))

    def split(
        self, color: int | None, key: int = 0, *, timeout: float | None = None
    ) -> Communicator | None:
        call = Call(Kind.SPLIT)

        def divide(work: Work) -> Transport | None:
            _, _, watch = self._meetings.meet(call, work)
            return self._transport.split(color, key, watch)

        transport = self._run_now(call, timeout, divide)
        if transport is None:
            return None
        child = TransportCommunicator(
            transport,
            name=f"{self.name}/{color}",
            timeout_s=self.timeout_s,
            warn_after_s=self.warn_after_s,
            queue=self._queue,
        )
        self._children.append(child)
        return child

    def allocate(self, nbytes: int, *, timeout: float | None = None) -> Array:
        if nbytes < 0:
            raise ValueError(f"allocate needs a size of 0 bytes or more, got {nbytes}")
        call = Call(Kind.ALLOCATE, shape=(nbytes,), count=nbytes)

        def create(work: Work) -> Array:
            _, _, watch = self._meetings.meet(call, work)
            return self._transport.allocate(nbytes, watch)

        buffer = self._run_now(call, timeout, create)
        self._allocated[id(buffer)] = buffer
        return buffer

    def release(self, buffer: Array, *, timeout: float | None = None) -> None:
        if self._allocated.get(id(buffer)) is not buffer:
            raise ValueError(
                f"release was given an array of {buffer.nbytes} bytes that is no result of "
                f"allocate of communicator {self.name!r}, or was released before"
            )
        call = Call(Kind.RELEASE, shape=(buffer.nbytes,), count=buffer.nbytes)

        def forget(work: Work) -> None:
            self._meetings.meet(call, work)
            self._transport.release(buffer)

        self._run_now(call, timeout, forget)
        del self._allocated[id(buffer)]
