"""What happens at the end of a pass over a DataLoader.

Owns: the callbacks that loaders call when a pass is over. Ranks may be threads of one process, so the
callbacks belong to the thread that registered them. Must not know: what the callbacks do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

#: Called with the loader and the time (`time.perf_counter_ns`) at which the pass's first batch was asked for.
PassEndCallback = Callable[[Any, int], None]


class _Registered(threading.local):
    """The callbacks of a thread.

    Not a context variable: a rank's thread starts with a copy of its parent's context, and must not
    call the parent's callbacks.
    """

    def __init__(self) -> None:
        self.handles: tuple[PassEndHandle, ...] = ()


class PassEndHandle:
    """Takes a callback off again: `handle.remove()`, from any thread, as often as one likes."""

    def __init__(self, callback: PassEndCallback) -> None:
        self.callback: PassEndCallback | None = callback

    def remove(self) -> None:
        """Remove the callback and let go of it."""
        self.callback = None


_registered = _Registered()


def register_pass_end(callback: PassEndCallback) -> PassEndHandle:
    """Have `callback(loader, first_batch_time_ns)` called when a pass in this thread is exhausted.

    Callbacks run in the order of their registration, after the loader's position has moved to the
    next epoch and before the `for` loop ends. A pass that is abandoned (`break`) has no end. What a
    callback raises leaves the `for` loop.
    """
    handle = PassEndHandle(callback)
    kept = tuple(held for held in _registered.handles if held.callback is not None)
    _registered.handles = (*kept, handle)
    return handle


def pass_ended(loader: Any, first_batch_time_ns: int) -> None:
    """Call the callbacks of this thread."""
    for handle in _registered.handles:
        if handle.callback is not None:
            handle.callback(loader, first_batch_time_ns)
