"""A communicator on top of any transport.

Owns: `TransportCommunicator`, which turns calls into queued work, and its life.
Must not know: whether ranks are threads, processes of one host or of several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from dptrain.comm import arguments
from dptrain.comm.call import NO_ROOT, Call, Kind, call_site
from dptrain.comm.call_queue import CallQueue
from dptrain.comm.communicator import DEFAULT_TIMEOUT_S, Communicator, JoinResult
from dptrain.comm.errors import CommunicatorError, rank_prefix
from dptrain.comm.meetings import Meetings
from dptrain.comm.point_to_point import PointToPointWork
from dptrain.comm.reduction import ReduceOp
from dptrain.comm.staging import Staging, stage
from dptrain.comm.transport import Pending, Transport
from dptrain.comm.work import Work
from dptrain.core.arrays import device_of

Array = np.ndarray[Any, Any]
_Result = TypeVar("_Result")
# How long close() lets queued calls run on before it leaves without them.
_CLOSE_PATIENCE_S = 5.0


class TransportCommunicator(Communicator):
    """A `Communicator` whose ranks are connected by a `Transport`.

    Args:
        transport: the connection, owned from now on.
        name: for messages.
        timeout_s: default timeout of every call, in seconds.
        warn_after_s: when to warn about missing ranks, in seconds; None never does.
        queue: the queue of the family, for the result of a split.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        name: str = "world",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        warn_after_s: float | None = 30.0,
        queue: CallQueue | None = None,
    ) -> None:
        self.rank = transport.rank
        self.world_size = transport.world_size
        self.local_rank = transport.local_rank
        self.local_world_size = transport.local_world_size
        self.backend = transport.backend
        self.name = name
        self.timeout_s = timeout_s
        self.warn_after_s = warn_after_s
        self._transport = transport
        self._owns_queue = queue is None
        self._queue = CallQueue(name) if queue is None else queue
        self._listeners: tuple[Callable[[Work], None], ...] = ()
        self._children: list[TransportCommunicator] = []
        self._allocated: dict[int, Array] = {}
        self._meetings = Meetings(
            transport, name, warn_after_s, lambda: not self._queue.on_own_thread()
        )

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
        pending = self._transport.post_send(shown, dst, tag)
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
            room if staging is None else staging.twin(room), src, tag
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
            nbytes=array.nbytes,
            result=result,
            kept=(array, moved),
            bring=bring,
            prefix=rank_prefix(self.rank, self.world_size),
            timeout_s=self.timeout_s if timeout is None else timeout,
            has_left=self._transport.has_left,
            observe=self._observe,
        )

    # -- groups, memory, the end -------------------------------------------------------------------

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

    def abort(self, code: int = 1) -> None:
        if self._meetings.broken is None:
            self._meetings.broken = CommunicatorError(f"aborted with code {code}")
        self._transport.abort(code)

    def close(self) -> None:
        if self._meetings.closed:
            return
        dropped: list[Work] = []
        if self._owns_queue:
            patience_s = 0.0 if self._meetings.broken else _CLOSE_PATIENCE_S
            dropped = self._queue.drain(patience_s)
        for child in self._children:
            child.close()
        self._meetings.closed = True
        for work in dropped:
            prefix = rank_prefix(self.rank, self.world_size)
            work._finish(
                CommunicatorError(f"{prefix} {self.name!r} was closed before {work.kind} ran")
            )
        if self._meetings.broken is None:
            self._transport.leave(None)
        if self._owns_queue:
            self._queue.stop()
        self._allocated.clear()

    # -- statistics --------------------------------------------------------------------------------

    def add_listener(self, listener: Callable[[Work], None]) -> Callable[[], None]:
        self._listeners = (*self._listeners, listener)

        def remove() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return remove

    def _observe(self, work: Work) -> None:
        for listener in self._listeners:
            listener(work)

    # -- running -----------------------------------------------------------------------------------

    def _submit(
        self,
        call: Call,
        name: str | None,
        timeout: float | None,
        async_op: bool,
        result: Array | None,
        kept: tuple[Array | None, ...],
    ) -> Work:
        """Queue a collective; a world of one has nobody to overlap with and runs it at once."""
        self._prepare(call, name, timeout)
        execute, settle = self._ways(call) if call.device is not None else (None, None)
        if call.source is not None and not call.on_gpu:
            call.position = self._transport.position(call.source)
        work = Work(
            call.kind.name.lower(),
            name=name,
            nbytes=call.nbytes,
            result=result,
            kept=kept,
            execute=execute or (lambda work: self._meetings.execute(call, work)),
            settle=settle,
            observe=self._observe if self._listeners else None,
        )
        # What a graph records it records from the thread that captures it.
        if async_op and self.world_size > 1 and not call.captured:
            self._queue.start(work)
        else:
            self._queue.run(work)
            work.blocked_ns = work.finished_ns - work.queued_ns
        if not async_op:
            work.wait()  # Never blocks here; raises what went wrong.
        return work

    def _ways(self, call: Call) -> tuple[Callable[[Work], None] | None, Callable[[], None] | None]:
        """How a call over a device's arrays runs, where the host's arrays would run otherwise."""
        assert call.device is not None
        if self._transport.serves(call.device):
            return None, self._transport.order(call)
        staging, finish = stage(call)

        def execute(work: Work) -> None:
            staging.fetch()
            self._meetings.execute(call, work)
            staging.bring(then=finish)

        return execute, None

    def _run_now(
        self, call: Call, timeout: float | None, action: Callable[[Work], _Result]
    ) -> _Result:
        """Run `action` in the order of the queue and return its result."""
        self._prepare(call, None, timeout)
        results: list[_Result] = []
        work = Work(call.kind.name.lower(), execute=lambda work: results.append(action(work)))
        self._queue.run(work)
        work.wait()
        return results[0]

    def _prepare(self, call: Call, name: str | None, timeout: float | None) -> None:
        self._meetings.check_usable()
        call.name = name
        call.timeout_s = self.timeout_s if timeout is None else timeout
        call.site = call_site()
