"""What a CUDA graph needs beside its recorded work: memory that stays, what the host does before a replay.

Owns: `Capture`, and the one that this thread is making. Must not know: tensors, optimizers, streams.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np

_thread = threading.local()


class Capture:
    """One recording, or a rehearsal of one.

    Args:
        recording: False for a rehearsal: work runs as ever, and it is noted what a recording would keep.

    Attributes:
        kept: arrays that the recorded work reads and that nobody else need hold.
        before: called in order before each replay.
        arrived: what was copied from the host, for comparison with another run.
        apart: whether work runs at once, beside what is recorded.
    """

    def __init__(self, recording: bool = True) -> None:
        self.recording = recording
        self.kept: list[Any] = []
        self.before: list[Callable[[], None]] = []
        self.arrived: list[Any] = []
        self.apart = False

    def note_arrival(self, values: Any) -> None:
        """Values of the host come to the GPU."""
        if isinstance(values, np.ndarray):
            digest = blake2b(values.tobytes()).hexdigest()
            self.arrived.append((values.shape, str(values.dtype), digest))
        else:
            self.arrived.append(repr(values))

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Inside this block work is no part of the recording."""
        before, self.apart = self.apart, True
        try:
            yield
        finally:
            self.apart = before

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside this block it is what this thread makes."""
        before, _thread.capture = noting_capture(), self
        try:
            yield
        finally:
            _thread.capture = before


def noting_capture() -> Capture | None:
    """The recording or the rehearsal of this thread."""
    found: Capture | None = getattr(_thread, "capture", None)
    return found


def current_capture() -> Capture | None:
    """The recording that this thread makes, if it makes one."""
    found = noting_capture()
    return None if found is None or not found.recording else found
