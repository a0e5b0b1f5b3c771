"""Batches in page-locked memory, from where a GPU copies by itself: `pin`, and the thread that does it ahead of time.

Owns: what of a batch is pinned; `PinThread`. Must not know: how answers are heard, in which order tasks are given out.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any

from dptrain.core import cuda
from dptrain.core.tensor import Tensor
from dptrain.data.collate import with_fields


def pin(data: Any) -> Any:
    """The tensors in nested mappings, sequences and named tuples in page-locked memory.

    What has a method `pin_memory` is replaced by what that gives; everything else stays as it is.
    """
    if isinstance(data, Tensor) or hasattr(data, "pin_memory"):
        return data.pin_memory()
    return with_fields(data, pin)


def pinning_gpu() -> int | None:
    """The GPU for which this thread pins memory, the current one; None if there is none."""
    return cuda.library().current() if cuda.device_count() else None


class PinThread:
    """Runs a function, time after time, in a thread of its own, ahead of the moment when its result is wanted.

    The function runs between `ask` and the end of `result` and at no other time, so that what it works on needs no
    lock.

    Args:
        function: gets a function that says whether to give up.
        index: the GPU that is the current one for it.
    """

    def __init__(self, function: Callable[[Callable[[], bool]], Any], index: int) -> None:
        self._asked = False
        self._requests: SimpleQueue[bool] = SimpleQueue()
        self._results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._given_up = threading.Event()
        # The thread does not know this object, nor who has it, so that it ends when nobody has it any more.
        around = self._requests, self._results, function, self._given_up.is_set, index
        self._thread = threading.Thread(
            target=copy_context().run, args=(_work, *around), name="dptrain-pin", daemon=True
        )
        self._thread.start()
        self._dismiss = weakref.finalize(self, _dismiss, self._given_up, self._requests)

    def ask(self) -> None:
        """Let the function run, unless a result is still to be taken."""
        if not self._asked:
            self._asked = True
            self._requests.put(True)

    def result(self, timeout_s: float) -> Any:
        """What the function gave; it is asked if it was not.

        Args:
            timeout_s: how long to wait; 0 waits for ever.

        Raises:
            TimeoutError: time is up; the function still runs.
            BaseException: what the function raised.
        """
        self.ask()
        try:
            value, error = self._results.get(timeout=timeout_s or None)
        except Empty:
            raise TimeoutError from None
        self._asked = False
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """Let the function give up, and wait for the end of the thread."""
        self._dismiss()
        # The garbage collector may call from that very thread; at the interpreter's end it never gets on.
        if threading.current_thread() is not self._thread and not sys.is_finalizing():
            self._thread.join()


def _dismiss(given_up: threading.Event, requests: SimpleQueue[bool]) -> None:
    given_up.set()
    requests.put(False)


def _work(
    requests: SimpleQueue[bool],
    results: SimpleQueue[tuple[Any, BaseException | None]],
    function: Callable[[Callable[[], bool]], Any],
    given_up: Callable[[], bool],
    index: int,
) -> None:
    answer: tuple[Any, BaseException | None]
    while requests.get():
        try:
            with cuda.library().on(index):
                answer = function(given_up), None
        except BaseException as error:  # the consumer's to see, whatever it is
            answer = None, error
        results.put(answer)
        del answer
