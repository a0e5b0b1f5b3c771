"""The numbers of optimizer updates in a GPU's memory, where recorded launches find them at each replay.

Owns: `KeptNumbers` and which of them this thread's launches use. Must not know: optimizers, what the
numbers mean. What depends on the number of the step (a bias correction, a schedule's rate) would be
frozen in a CUDA graph if it were handed to a kernel by value.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dptrain.core.arrays import beside, namespace_of
from dptrain.core.kernels.cuda.launch import Family

#: As many as an update takes at most.
_MOST = 16

_SOURCE = f"""
extern "C" __global__ void set_numbers(double* table, long long count, {", ".join(f"A n{i}" for i in range(_MOST))}) {{
    A numbers[] = {{{", ".join(f"n{i}" for i in range(_MOST))}}};
    for (int i = 0; i < count; i++) table[i] = numbers[i];
}}
"""

FAMILY = Family("numbers", _SOURCE, ("float64",))

_thread = threading.local()


def kept_numbers() -> KeptNumbers | None:
    """Where the numbers of this thread's launches go, if not into the launches."""
    found: KeptNumbers | None = getattr(_thread, "kept", None)
    return found


class KeptNumbers:
    """The numbers of the launches of one step, a table for each launch."""

    def __init__(self) -> None:
        self._tables: list[tuple[str, Any]] = []
        self._sent: list[tuple[float, ...] | None] = []
        self._place: int | None = None
        self._recorded = False

    @contextmanager
    def launching(self, recorded: bool) -> Iterator[None]:
        """Inside this block launches read tables: filled at once, or, of a recorded launch, by `refreshing`."""
        self._recorded = recorded
        with self._in_use(None):
            yield

    @contextmanager
    def refreshing(self) -> Iterator[None]:
        """Inside this block launches only bring the numbers that have changed into their tables."""
        with self._in_use(0):
            yield

    @contextmanager
    def _in_use(self, place: int | None) -> Iterator[None]:
        before, self._place = kept_numbers(), place
        _thread.kept = self
        try:
            yield
        finally:
            _thread.kept = before

    def table(self, kernel: str, beside_array: Any, numbers: tuple[Any, ...]) -> Any:
        """The table that a launch reads; None if nothing is to be launched.

        Raises:
            RuntimeError: other launches than those that were recorded.
        """
        values = tuple(float(n) for n in numbers)
        with beside(beside_array):
            if self._place is None:
                table = namespace_of(beside_array).empty(len(values), np.float64)
                self._tables.append((kernel, table))
                self._sent.append(None if self._recorded else values)
                if not self._recorded:
                    _send(table, values)
                return table
            self._refresh(kernel, values)
        return None

    def _refresh(self, kernel: str, values: tuple[float, ...]) -> None:
        assert self._place is not None
        place = self._place
        known = self._tables[place] if place < len(self._tables) else ("nothing", ())
        if known[0] != kernel or len(known[1]) != len(values):
            raise RuntimeError(
                f"a recorded optimizer step consists of other updates now: {kernel} in the place of {known[0]}"
            )
        if self._sent[place] != values:
            _send(known[1], values)
            self._sent[place] = values
        self._place = place + 1


def _send(table: Any, values: tuple[float, ...]) -> None:
    """By a launch, whose arguments are copied when it is made: the host may go on at once."""
    rest = [0.0] * (_MOST - len(values))
    FAMILY.launch(
        "set_numbers", np.dtype(np.float64), 1, table, len(values), *values, *rest, block=1
    )
