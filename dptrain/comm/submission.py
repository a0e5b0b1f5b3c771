"""How calls become work over a transport: prepared, queued, run, listened to; and the end of all of them.

Owns: `Submission`. Must not know: which calls there are, whether ranks are threads, processes or hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from dptrain.comm.call import Call, call_site
from dptrain.comm.call_queue import CallQueue
from dptrain.comm.communicator import DEFAULT_TIMEOUT_S, Communicator
from dptrain.comm.errors import CommunicatorError, rank_prefix
from dptrain.comm.meetings import Meetings
from dptrain.comm.staging import stage
from dptrain.comm.transport import Transport
from dptrain.comm.work import Work

Array = np.ndarray[Any, Any]
_Result = TypeVar("_Result")
# How long close() lets queued calls run on before it leaves without them.
_CLOSE_PATIENCE_S = 5.0


class Submission(Communicator):
    """The transport of a communicator, its queue, and who listens to its calls.

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
        self._children: list[Communicator] = []
        self._allocated: dict[int, Array] = {}
        self._listeners: tuple[Callable[[Work], None], ...] = ()
        self._meetings = Meetings(
            transport, name, warn_after_s, lambda: not self._queue.on_own_thread()
        )

    def add_listener(self, listener: Callable[[Work], None]) -> Callable[[], None]:
        self._listeners = (*self._listeners, listener)

        def remove() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return remove

    def _observe(self, work: Work) -> None:
        for listener in self._listeners:
            listener(work)

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
