"""A communication that was asked for and may not be over yet.

Owns: `Work`, what a caller holds between starting a call and using its result.
Must not know: backends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Work:
    """One call of a communicator. Keeps the arrays of the call alive until it is dropped.

    Over arrays on a GPU that the ranks exchange without the host (NCCL), the call is over for the host
    once it is in the GPU's queue. `wait()` then does not block until the result is there: it makes what
    the calling thread's current stream is given from now on come after it.

    Attributes:
        kind: the call, such as "all_reduce".
        name: the name that the caller gave, or None.
        nbytes: bytes of this rank's array (the input, where a call has two).
        result: the array that holds the result after `wait()`; None for a barrier or a send.
        queued_ns: when the call was made (`time.perf_counter_ns`).
        started_ns: when this rank came to the meeting of the ranks; 0 until then.
        met_ns: when every rank had come, so that data could move; 0 until then.
        finished_ns: when the result was there; 0 until then.
        blocked_ns: how long callers were held up in `wait()`, or in a call with `async_op=False`.
    """

    __slots__ = (
        "_done",
        "_error",
        "_execute",
        "_help",
        "_kept",
        "_observe",
        "_settle",
        "blocked_ns",
        "finished_ns",
        "kind",
        "met_ns",
        "name",
        "nbytes",
        "queued_ns",
        "result",
        "started_ns",
    )

    def __init__(
        self,
        kind: str,
        *,
        name: str | None = None,
        nbytes: int = 0,
        result: np.ndarray[Any, Any] | None = None,
        kept: tuple[Any, ...] = (),
        execute: Callable[[Work], None] | None = None,
        settle: Callable[[], None] | None = None,
        observe: Callable[[Work], None] | None = None,
    ) -> None:
        self.kind = kind
        self.name = name
        self.nbytes = nbytes
        self.result = result
        self.queued_ns = time.perf_counter_ns()
        self.started_ns = 0
        self.met_ns = 0
        self.finished_ns = 0
        self.blocked_ns = 0
        self._kept = kept
        self._execute = execute
        self._observe = observe
        self._settle = settle
        self._help: Callable[[Work], None] | None = None
        self._error: BaseException | None = None
        # Held until the work is done: cheaper than an Event, and one is made for every call.
        self._done = threading.Lock()
        self._done.acquire()

    def is_completed(self) -> bool:
        """Whether the call is over, with a result or with an error. Never blocks."""
        return self.finished_ns != 0

    def wait(self, timeout: float | None = None) -> bool:
        """Return when the result is there.

        Args:
            timeout: seconds to wait here at most. The call itself goes on, with its own timeout.

        Returns:
            True.

        Raises:
            TimeoutError: the call was not over after `timeout` seconds.
            CommunicatorError: the call failed; raised here, on the thread that waits.
        """
        if not self.finished_ns:
            begin_ns = time.perf_counter_ns()
            self._block(timeout)
            self.blocked_ns += time.perf_counter_ns() - begin_ns
        if self._error is not None:
            raise self._error
        if self._settle is not None:
            self._settle()
        return True

    def exception(self) -> BaseException | None:
        """What the call failed with; None if it is not over or went well. Never blocks."""
        return self._error if self.is_completed() else None

    def _block(self, timeout: float | None) -> None:
        if timeout is None and self._help is not None:
            self._help(self)  # Runs the call on this thread if nobody has begun to.
        if not self._done.acquire(timeout=-1 if timeout is None else timeout):
            label = f"{self.kind} {self.name!r}" if self.name else self.kind
            raise TimeoutError(f"{label} was not over after waiting for {timeout} s")
        self._done.release()  # For the next one who waits.

    def _run(self) -> None:
        """Execute the call on this thread; whatever it raises is kept for `wait()`."""
        assert self._execute is not None
        try:
            self._execute(self)
        except BaseException as error:
            self._finish(error)
        else:
            self._finish(None)

    def _finish(self, error: BaseException | None) -> None:
        self._error = error
        self._execute = None
        self.finished_ns = time.perf_counter_ns()
        try:
            if self._observe is not None:
                self._observe(self)
        except (
            Exception
        ) as failure:  # A listener's error belongs to whoever waits, not to a thread.
            self._error = self._error or failure
        finally:
            self._done.release()
