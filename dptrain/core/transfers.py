"""A watch on what leaves a device for the host: copies of arrays, and reads of single values.

Owns: `watch`, and `report`, which those call that carry values out. Must not know: who they are.

An operation that computes on a device and looks at its arrays from the host makes the host wait, and
breaks the capture of a CUDA graph. Tests run operations under a watch to show that they do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

Kind = Literal["copy", "read"]


class Transfer(NamedTuple):
    """One transfer: a copy of an array, or a read of a value, and the shape that left."""

    kind: Kind
    shape: tuple[int, ...]


_seen: ContextVar[list[Transfer] | None] = ContextVar("transfers", default=None)


@contextmanager
def watch() -> Iterator[list[Transfer]]:
    """The transfers that happen inside a `with` block of this context, in order."""
    seen: list[Transfer] = []
    token = _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(token)


def report(kind: Kind, array: Any) -> None:
    """Values of an array are about to go to the host."""
    seen = _seen.get()
    if seen is not None:
        seen.append(Transfer(kind, tuple(array.shape)))
