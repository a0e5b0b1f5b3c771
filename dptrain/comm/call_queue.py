"""The order in which the calls of a rank run, and the thread that runs them in the background.

Owns: one first-in-first-out queue for a family of communicators, and its communication thread.
Must not know: what the calls do.

Calls run one at a time, in the order they were made. Which thread runs them does not matter: a
caller who has to wait anyway runs the queue itself, up to its own call, and saves the two changes
of threads; only calls that nobody waits for yet are left to the communication thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from queue import SimpleQueue

from dptrain.comm.work import Work


class CallQueue:
    """Runs `Work`s in order, on the caller's or on its own thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending: deque[Work] = deque()
        # Whoever holds it runs the queue. Calls are taken out and finished while it is held, so
        # that "not done" means "still in the queue" to the next holder.
        self._execution = threading.Lock()
        self._starting = threading.Lock()
        self._signals: SimpleQueue[bool] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, work: Work) -> None:
        """Run everything that is queued and then `work`, before returning."""
        self._pending.append(work)
        with self._execution:
            self._run_through(work)

    def start(self, work: Work) -> None:
        """Queue `work`; the communication thread runs it unless somebody who waits is faster."""
        work._help = self._help
        self._pending.append(work)
        if self._thread is None:
            self._start_thread()
        self._signals.put(True)

    def on_own_thread(self) -> bool:
        """Whether the communication thread is asking."""
        return threading.current_thread() is self._thread

    def drain(self, timeout_s: float) -> list[Work]:
        """Let the queue run empty for up to `timeout_s`.

        Returns:
            The calls that never ran; the caller has to finish them.
        """
        deadline_s = time.monotonic() + timeout_s
        # At least one attempt, even with an empty queue: somebody may be running the last call.
        while self._execution.acquire(timeout=max(deadline_s - time.monotonic(), 0.0)):
            with contextlib.ExitStack() as releasing:
                releasing.callback(self._execution.release)
                if not self._pending or time.monotonic() >= deadline_s:
                    break
                self._pending.popleft()._run()
        dropped = []
        while self._pending:
            dropped.append(self._pending.popleft())
        return dropped

    def stop(self) -> None:
        """End the communication thread once it is idle."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._signals.put(False)
            if thread is not threading.current_thread():
                thread.join(timeout=1.0)

    def _help(self, work: Work) -> None:
        # Only if nobody is running the queue: whoever does will come to `work` without help.
        if self._execution.acquire(blocking=False):
            try:
                self._run_through(work)
            finally:
                self._execution.release()

    def _run_through(self, work: Work) -> None:
        while not work.finished_ns:
            self._pending.popleft()._run()

    def _start_thread(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name=f"dptrain-comm-{self._name}", daemon=True
                )
                self._thread.start()

    def _serve(self) -> None:
        while self._signals.get():
            while self._pending:
                with self._execution:
                    if self._pending:
                        self._pending.popleft()._run()
