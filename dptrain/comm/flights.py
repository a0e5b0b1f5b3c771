"""What is under way on a GPU, and what happens if it never ends.

Owns: `Flights`: the calls that were given to NCCL and are not over, and the thread that looks after
them. Must not know: NCCL.

A rank that dies in the middle of a collective leaves the others' GPUs waiting in a kernel, which no
host thread notices by itself. The arrays of a call stay referenced here until it is over, so that
nobody gets their memory before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from dptrain.comm.call import Call

_LOOK_S = 0.1


class _Flight(NamedTuple):
    call: Call
    over: Any  # a CUDA event
    deadline_s: float


class Flights:
    """The calls that a GPU has not finished, oldest first.

    Args:
        on_thread: run at the start of the thread that looks after them, so that it uses the right GPU.
        trouble: says what is wrong with the oldest call (which has been waiting for some seconds), or
            None.
        give_up: called once with the call and what is wrong.
    """

    def __init__(
        self,
        on_thread: Callable[[], None],
        trouble: Callable[[Call], str | None],
        give_up: Callable[[Call, str], None],
    ) -> None:
        self._on_thread, self._trouble, self._give_up = on_thread, trouble, give_up
        self._flights: deque[_Flight] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, call: Call, over: Any) -> None:
        """Look after a call that is over when its event is."""
        flight = _Flight(call, over, time.monotonic() + call.timeout_s)
        with self._changed:
            self._drop_landed()
            self._flights.append(flight)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._look_after, name="dptrain-nccl-watch", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def land(self, timeout_s: float) -> bool:
        """Wait until everything is over; whether it was in time."""
        deadline_s = time.monotonic() + timeout_s
        pause_s = 20e-6
        while True:
            with self._changed:
                self._drop_landed()
                if not self._flights or self._stopped:
                    return not self._flights
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1e-3)

    def stop(self) -> None:
        """Look after nothing any more."""
        with self._changed:
            self._stopped = True
            self._flights.clear()
            self._changed.notify_all()

    def _drop_landed(self) -> None:
        while self._flights and self._flights[0].over.done:
            self._flights.popleft()

    def _look_after(self) -> None:
        self._on_thread()
        while not self._stopped:
            with self._changed:
                if not self._flights:
                    self._changed.wait()
                    continue
                oldest, reason = self._flights[0], None
                try:
                    self._drop_landed()
                except Exception as error:  # the GPU has failed: every question to it raises
                    reason = f"failed on the GPU: {error}"
                if not self._flights:
                    continue
            reason = reason or self._trouble(oldest.call)
            if reason is None and time.monotonic() > oldest.deadline_s:
                reason = f"timed out after {oldest.call.timeout_s:g} s on the GPU"
            if reason is not None:
                self.stop()
                self._give_up(oldest.call, reason)
                return
            time.sleep(_LOOK_S)
